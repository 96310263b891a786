"""docs/attacks.md is written from runs alone, and a bar that is missed is said to be, by the worst of the attacks."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return _imported("attack_bars", monkeypatch)


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return _imported("attack_page", monkeypatch)


def _imported(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for known in ("attack_bars", "attack_page", "robust_rules"):
        monkeypatch.delitem(sys.modules, known, raising=False)
    return __import__(name)


def run(
    attack: str, share: float, loss: float | None, seed: int = 0, rule: str = "ours", **figures: Any
) -> dict[str, Any]:
    usual = {"rise": 0.0, "head_rise": 0.0, "honest_rejected": 0.1, "honest_rejected_worst": 0.1, "liars_rejected": 0.5}
    named = {
        "attack": attack,
        "share": share,
        "rule": rule,
        "seed": seed,
        "start": 3.0,
        "loss": loss,
        "commit": "c" * 40,
    }
    return {**named, **usual, **figures}


def found(
    bars: ModuleType, rows: list[dict[str, Any]], figure: str, share: float
) -> tuple[str, float | None, str | None]:
    [one] = [v for v in bars.verdicts(rows) if (v.bar.figure, v.bar.share) == (figure, share)]
    return one.word, one.found, one.attack


def test_the_loss_with_an_attack_is_compared_with_the_same_rule_and_seed_without(bars: ModuleType) -> None:
    rows = [run("none", 0.0, 1.0), run("alie", 0.2, 1.04), run("ipm", 0.2, 1.02), run("ipm", 0.4, 1.2)]
    rows += [run("none", 0.0, 2.0, rule="mean"), run("alie", 0.2, 2.9, rule="mean")]  # which is not ours
    assert found(bars, rows, "given_up", 0.2) == ("held", pytest.approx(0.02), "alie")
    assert found(bars, rows, "given_up", 0.4) == ("missed", pytest.approx(0.1), "ipm")


def test_seeds_are_judged_by_their_median_and_a_lost_run_as_endlessly_bad(bars: ModuleType) -> None:
    rows = [run("none", 0.0, 1.0, seed) for seed in range(3)]
    rows += [run("scale", 0.2, loss, seed) for seed, loss in enumerate((1.01, 1.02, None))]
    assert found(bars, rows, "given_up", 0.2) == ("held", pytest.approx(0.01), "scale")
    rows += [run("alie", 0.2, loss, seed, rise=None) for seed, loss in enumerate((1.0, None, None))]
    assert found(bars, rows, "given_up", 0.2) == ("missed", float("inf"), "alie")
    assert found(bars, rows, "rise", 0.2)[0] == "missed"


def test_what_was_not_run_is_neither_held_nor_missed(bars: ModuleType) -> None:
    rows = [run("alie", 0.2, 1.0, honest_rejected_worst=0.3)]
    assert found(bars, rows, "given_up", 0.2) == ("not measured", None, None)  # without attack there is no run
    assert found(bars, rows, "rise", 0.2) == ("held", 0.0, "alie")
    assert found(bars, rows, "honest_rejected_worst", 0.2) == ("missed", 0.3, "alie")
    assert found(bars, rows, "honest_rejected", 0.0) == ("not measured", None, None)


def test_the_page_says_how_much_was_run_and_what_was_missed(pages: ModuleType) -> None:
    rows = [run("none", 0.0, 1.0), run("alie", 0.2, 2.0)]
    size = {"task": "narrow", "layers": 2, "updates": 16}
    page = pages.page(size, 20, True, rows)
    assert "from 2 runs: 20 nodes of the narrow task" in page and "16 updates, commit ccccccc." in page
    assert pages.SHORT in page and pages.SHORT not in pages.page(size, 20, False, rows)
    assert "| 20% | 3.0% | 50.0% | alie | **missed** |" in page
    assert "| alie | 20% | 2.000 |" in page


def test_rules_are_compared_over_the_seeds_that_all_of_them_have(pages: ModuleType) -> None:
    rows = [run("alie", 0.2, loss, seed) for seed, loss in enumerate((2.0, 3.0, 4.0))]
    rows.append(run("alie", 0.2, 2.5) | {"rule": "mean"})
    page = pages.page({"task": "narrow", "layers": 2, "updates": 16}, 20, True, rows)
    assert "medians over seeds 0, 1, 2 of `ours`" in page and "run with, seeds 0." in page
    assert "| alie | 20% | 2.500 | 2.000 |" in page


def test_the_page_is_what_the_runs_beside_it_say(pages: ModuleType) -> None:
    document = BENCHMARKS.parent / "docs" / "attacks.md"
    kept = json.loads(document.with_suffix(".json").read_bytes())
    text = document.read_text(encoding="utf-8")
    nodes = int(re.search(r"runs: (\d+) nodes", text)[1])  # type: ignore[index]
    assert pages.page(kept["size"], nodes, "These runs are short" in text, kept["runs"]) == text


def test_the_page_says_where_ours_is_no_better_than_the_mean(pages: ModuleType) -> None:
    size = {"task": "narrow", "layers": 2, "updates": 48}
    rows = [run("alie", 0.2, 1.0, rule="mean"), run("alie", 0.2, 1.0), run("scale", 0.2, 9.0, rule="mean")]
    text = pages.page(size, 20, False, [{**row, "kept": 1.0} for row in (*rows, run("scale", 0.2, 1.0))])
    assert "Under alie `ours` ends where the plain mean does" in text

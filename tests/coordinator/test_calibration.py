"""The calibration set: folds that share no prompt, whatever the order of the file."""

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from base_model.examples import Example, InvalidExamples
from coordinator.calibration import CalibrationSet

PROMPTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=3)
EXAMPLES = st.lists(st.builds(Example, prompt=PROMPTS, completion=st.sampled_from(["on", "off"])), max_size=20)


def example(prompt: str, completion: str = "on") -> Example:
    return Example(prompt=prompt, completion=completion)


TEN = [example(f"lamp {number}") for number in range(10)]


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    """Write examples as JSON lines."""

    def write(examples: list[Example]) -> Path:
        path = tmp_path / "calibration.jsonl"
        path.write_text("".join(json.dumps(dict(one)) + "\n" for one in examples), encoding="utf-8")
        return path

    return write


def all_of(calibration: CalibrationSet) -> tuple[Example, ...]:
    return (*calibration.anchor, *calibration.gate, *calibration.held_out)


@given(EXAMPLES, st.integers(0, 10), st.integers(0, 10))
def test_no_prompt_is_in_two_folds_and_none_is_lost(examples: list[Example], anchor: int, gate: int) -> None:
    cut = CalibrationSet.cut(examples, anchor, gate)
    folds = [{one.prompt for one in fold} for fold in (cut.anchor, cut.gate, cut.held_out)]
    assert all(one.isdisjoint(other) for one, other in combinations(folds, 2))
    assert set().union(*folds) == {one.prompt for one in examples}
    assert len(all_of(cut)) == len({one.prompt for one in examples})
    assert set(all_of(cut)) <= set(examples)


@given(EXAMPLES.flatmap(lambda examples: st.tuples(st.just(examples), st.permutations(examples))))
def test_neither_order_nor_repetition_changes_a_fold(orders: tuple[list[Example], list[Example]]) -> None:
    one, other = orders
    assert CalibrationSet.cut([*other, *one, *one], 3, 4) == CalibrationSet.cut(one, 3, 4)


def test_folds_have_the_sizes_that_were_asked_for_and_the_rest_is_held_out() -> None:
    cut = CalibrationSet.cut(TEN, 3, 5)
    assert cut.folds == {"anchor": 3, "gate": 5}
    assert len(cut.held_out) == 2


def test_another_example_moves_no_other_from_fold_to_fold_by_more_than_one_place() -> None:
    before, after = CalibrationSet.cut(TEN, 5, 5), CalibrationSet.cut([*TEN, example("one more")], 5, 5)
    assert len(set(before.anchor) - set(after.anchor)) <= 1
    assert len(set(before.gate) - set(after.gate)) <= 2


def test_the_digest_is_of_what_the_folds_hold_and_in_which_one() -> None:
    digest = CalibrationSet.cut(TEN, 3, 4).digest
    assert CalibrationSet.cut(TEN[::-1], 3, 4).digest == digest
    changed = [example("lamp 0", "off"), *TEN[1:]]
    others = {
        "a completion": CalibrationSet.cut(changed, 5, 5).digest,
        "the same with the old one": CalibrationSet.cut(TEN, 5, 5).digest,
        "a larger anchor": CalibrationSet.cut(TEN, 4, 3).digest,
        "a smaller gate": CalibrationSet.cut(TEN, 3, 3).digest,
        "folds exchanged": CalibrationSet(
            CalibrationSet.cut(TEN, 3, 4).gate, CalibrationSet.cut(TEN, 3, 4).anchor
        ).digest,
    }
    assert len({digest, *others.values()}) == 1 + len(others)


def test_the_digest_says_nothing_of_what_is_held_out() -> None:
    cut = CalibrationSet.cut(TEN, 3, 4)
    assert CalibrationSet(cut.anchor, cut.gate).digest == cut.digest


def test_a_file_is_cut_as_its_examples_are(file: Callable[..., Path]) -> None:
    assert CalibrationSet.load(file(TEN), 3, 4) == CalibrationSet.cut(TEN, 3, 4)


def test_a_file_that_is_too_small_says_what_to_do(file: Callable[..., Path]) -> None:
    path = file([*TEN, *TEN])
    with pytest.raises(InvalidExamples) as caught:
        CalibrationSet.load(path, 6, 5)
    said = str(caught.value)
    assert f"{path} has 10 different prompts" in said
    assert "the anchor fold takes 6 and the gate fold 5" in said
    assert "add examples, or lower anchor_examples and gate_examples" in said
    assert CalibrationSet.load(path, 6, 4).folds == {"anchor": 6, "gate": 4}


def test_a_file_that_is_not_there_or_not_examples_says_where(tmp_path: Path, file: Callable[..., Path]) -> None:
    with pytest.raises(InvalidExamples, match="cannot read"):
        CalibrationSet.load(tmp_path / "nowhere.jsonl", 1, 1)
    path = file(TEN)
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(InvalidExamples, match="line 11"):
        CalibrationSet.load(path, 1, 1)

"""What runs say of the bars: every verdict from small made runs, whose figures can be checked by hand."""

import math
from collections.abc import Iterable, Sequence

import pytest

from simulation.comparison.document import Comparison, compare_runs
from simulation.comparison.summary import derive_targets, slow_nodes, summarise
from simulation.comparison.verdicts import Verdict, verdicts
from simulation.result import ByStage, Final, NodeShare, Point, RunResult, Staleness

SEEDS = (10, 11, 12)


def made(
    method: str,
    seed: int = 10,
    losses: Sequence[float] = (4.0, 2.0, 1.0),
    pace: float = 1.0,
    regime: str = "base",
    worst: float = 1.0,
    harmful: float = 0.0,
    intent: float | None = 0.5,
    gate_seconds: float = 0.0,
    slow_weight: float = 0.1,
) -> RunResult:
    """A run with a point every `pace`; four nodes, of which d is the slowest."""
    points = tuple(
        Point(time=pace * i, updates=4 * i, bytes=100 * i, fetched=0, version=i, loss=loss, head_loss=loss)
        for i, loss in enumerate(losses)
    )
    parts = {
        node: NodeShare(uploads=uploads, weight=weight, speed=speed)
        for node, uploads, weight, speed in (
            ("a", 0.5, 0.9 - slow_weight, 1.0), ("b", 0.3, 0.06, 2.0), ("c", 0.1, 0.04, 4.0),
            ("d", 0.1, slow_weight, 8.0),
        )
    }  # fmt: skip
    return RunResult(
        method=method, preset="full", regime=regime, seed=seed, config={"method": method}, task="t", commit="c",
        points=points,
        final=Final(
            loss=losses[-1], intent_accuracy=intent, exact_match=0.25, nodes=dict.fromkeys("abcd", worst),
            worst_quarter=worst, worst_tenth=worst, slowest_quarter=worst, jain=1.0,
        ),
        harmful=harmful, harmful_any=harmful, shares=parts,
        staleness=Staleness(mean=1.0, p90=2, max=2, histogram=(1, 2, 1)), receipts={}, releases={},
        server_time=ByStage(aggregate=0, anchor=0, align=0, gate=0),
        server_seconds=ByStage(aggregate=0.25, anchor=0.25, align=0.0, gate=gate_seconds),
        job_seconds=0.5, cpu_seconds={}, seconds=30.0, ended="done",
    )  # fmt: skip


def verdict_on(words: str, runs: Iterable[RunResult], targets: tuple[float, ...] = (2.0, 1.0)) -> Verdict:
    """The one verdict whose bar has these words."""
    runs = list(runs)
    regimes = summarise(runs, {run.regime: targets for run in runs})
    [verdict] = [verdict for verdict in verdicts(regimes) if words in verdict.bar]
    return verdict


def three(method: str, **settings: object) -> list[RunResult]:
    return [made(method, seed, **settings) for seed in SEEDS]  # type: ignore[arg-type]


def test_times_less_is_the_ratio_of_the_first_times_at_the_target():
    verdict = verdict_on("loss 1 against FedAvg that waits", three("alignfed") + three("fedavg", pace=9.0))
    assert verdict.measured is not None
    assert (verdict.measured.median, verdict.met) == (9, True)


def test_a_bar_of_speed_is_missed_by_less():
    verdict = verdict_on("loss 1 against FedAvg that waits", three("alignfed") + three("fedavg", pace=7.0))
    assert verdict.met is False


def test_fedbuff_is_taken_at_its_best_step():
    runs = three("alignfed") + three("fedbuff_1", pace=3.0) + three("fedbuff_2", pace=1.25)
    verdict = verdict_on("loss 1 against FedBuff at its best", runs)
    assert verdict.measured is not None
    assert (verdict.measured.median, verdict.met) == (1.25, False)
    assert "fedbuff_2" in verdict.note


def test_a_rival_that_never_reaches_the_target_meets_the_bar_and_is_said_to():
    verdict = verdict_on("loss 1 against FedAsync", three("alignfed") + three("fedasync", losses=(4.0, 2.0, 1.5)))
    assert verdict.measured is not None
    assert (verdict.measured.median, verdict.met) == (math.inf, True)
    assert verdict.note.startswith("fedasync reached it in 0 of 3 seeds")


def test_what_was_not_run_is_not_measured_and_not_met():
    verdict = verdict_on("against FedAsync", three("alignfed"))
    assert (verdict.measured, verdict.met) == (None, None)


def test_the_worst_quarter_must_be_lower_by_the_asked_gap():
    bar = "worst-quarter node loss against FedBuff with EMA"
    assert verdict_on(bar, three("alignfed", worst=0.85) + three("fedbuff_ema", worst=1.0)).met is True
    assert verdict_on(bar, three("alignfed", worst=0.95) + three("fedbuff_ema", worst=1.0)).met is False


def test_the_slow_quarter_must_weigh_what_it_uploads():
    assert verdict_on("weight share of the slowest", three("alignfed", slow_weight=0.1)).met is True
    assert verdict_on("weight share of the slowest", three("alignfed", slow_weight=0.05)).met is False


def test_harm_is_judged_in_the_regime_that_has_most_of_it():
    runs = three("alignfed", harmful=0.0) + three("alignfed", regime="iid", harmful=0.03)
    verdict = verdict_on("harmful releases in short runs", runs)
    assert (verdict.regime, verdict.met) == ("iid", False)


def test_long_runs_may_harm_more_often_than_short_ones():
    runs = three("alignfed") + three("alignfed", regime="long", harmful=0.04)
    assert verdict_on("harmful releases in short runs", runs).met is True
    assert verdict_on("harmful releases in long runs", runs).met is True


def test_the_ceiling_is_the_loss_improvement_of_centralised_training():
    ceiling = three("centralised", regime="long", losses=(4.0, 0.0))
    words = "share of centralised"
    close = verdict_on(words, three("alignfed", regime="long", losses=(4.0, 0.1)) + ceiling)
    assert close.measured is not None
    assert (close.measured.median, close.met) == (pytest.approx(3.9 / 4), True)
    assert verdict_on(words, three("alignfed", regime="long", losses=(4.0, 0.4)) + ceiling).met is False


def test_a_lead_counts_only_outside_the_interval():
    theirs = [made("fedbuff_ema", seed, (4.0, 1.0), regime="long") for seed in SEEDS]
    lost_once = [
        made("alignfed", seed, (4.0, end), regime="long") for seed, end in zip(SEEDS, (0.8, 0.8, 1.1), strict=True)
    ]
    assert verdict_on("loss against the best FedBuff", lost_once + theirs).met is False
    assert verdict_on("loss against the best FedBuff", three("alignfed", regime="long", losses=(4.0, 0.8)) + theirs).met


def test_with_poor_calibration_a_loss_within_the_interval_is_no_loss():
    regime = "calibration-8"
    theirs = [made("fedbuff_ema", seed, (4.0, 1.0), regime=regime) for seed in SEEDS]
    mixed = [
        made("alignfed", seed, (4.0, end), regime=regime) for seed, end in zip(SEEDS, (0.9, 1.1, 1.1), strict=True)
    ]
    assert verdict_on("calibration 8", mixed + theirs).met is True
    worse = [made("alignfed", seed, (4.0, 1.1), regime=regime) for seed in SEEDS]
    assert verdict_on("calibration 8", worse + theirs).met is False


def test_a_module_that_is_on_must_help():
    useless = three("alignfed") + three("alignfed_no_anchor")
    assert verdict_on("anchor: loss", useless).met is False
    useful = three("alignfed", losses=(4.0, 0.5)) + three("alignfed_no_anchor", losses=(4.0, 0.8))
    assert verdict_on("anchor: loss", useful).met is True


def test_a_module_for_fairness_need_not_lower_the_loss_but_must_give_slow_nodes_weight():
    without = [made("alignfed_no_participation", seed, slow_weight=0.1) for seed in SEEDS]
    for weight, fair in ((0.2, True), (0.1, False)):
        runs = [*without, *(made("alignfed", seed, slow_weight=weight) for seed in SEEDS)]
        assert verdict_on("participation weights: loss", runs).met is True
        assert verdict_on("participation weights: the slowest", runs).met is fair
    dearer = [*without, *(made("alignfed", seed, losses=(4.0, 2.0, 1.5), slow_weight=0.2) for seed in SEEDS)]
    assert verdict_on("participation weights: loss", dearer).met is False


def test_a_module_that_is_off_need_not_help():
    verdict = verdict_on("alignment by transplant", three("alignfed") + three("alignfed_transplant"))
    assert (verdict.met, verdict.note) == (True, "off by default")


def test_what_a_module_is_worth_elsewhere_is_shown_beside() -> None:
    aligned = [made("alignfed_transplant", seed, (4.0, 2.0, 0.75), regime="high-staleness") for seed in SEEDS]
    plain = [made("alignfed", seed, (4.0, 2.0, 1.0), regime="high-staleness") for seed in SEEDS]
    verdict = verdict_on("alignment by transplant: loss at the end", aligned + plain)
    assert (verdict.regime, verdict.met, verdict.note) == ("high-staleness", None, "off by default")
    assert verdict.measured is not None and verdict.measured.median == -0.25


def test_server_time_is_counted_in_jobs_of_a_node():
    # (0.25 + 0.25 + gate) CPU seconds per version, 0.5 per job
    verdict = verdict_on("server time per version", three("alignfed", gate_seconds=1.5))
    assert verdict.measured is not None
    assert (verdict.measured.median, verdict.met) == (4, True)
    assert verdict_on("server time per version", three("alignfed", gate_seconds=1.6)).met is False


def test_targets_are_what_the_reference_baseline_serves_half_way_and_at_the_end():
    runs = [made("alignfed", losses=(4.0, 0.1)), made("fedbuff_2", losses=(4.0, 3.0, 2.02, 1.5, 1.01))]
    assert derive_targets(runs) == pytest.approx((2.05, 1.05))


def test_equal_time_is_when_the_first_run_of_a_seed_ended():
    runs = [made("alignfed", losses=(4.0, 2.0)), made("fedavg", losses=(4.0, 3.0, 1.0), pace=1.0)]
    methods = summarise(runs, {"base": (2.0,)})["base"]
    assert methods["fedavg"].loss_at_equal_time.median == 3
    assert methods["fedavg"].final_loss.median == 1


def test_the_slowest_quarter_is_who_takes_longest_for_a_job():
    assert slow_nodes(made("alignfed")) == ("d",)


def test_the_summary_has_the_keys_that_others_read():
    comparison = compare_runs([made("alignfed", seed) for seed in SEEDS], "alignfed compare", None, {})
    values = comparison.model_dump(mode="json")
    assert values.keys() >= {"commit", "preset", "regimes"}
    method = values["regimes"]["base"]["alignfed"]
    assert method.keys() >= {
        "seeds", "time_to", "final_loss", "worst_quarter", "slow_share", "slow_upload_share", "harmful",
        "intent_accuracy", "exact_match", "server_seconds", "bytes",
    }  # fmt: skip
    assert method["seeds"] == 3
    for time in method["time_to"].values():
        assert time.keys() == {"median", "low", "high", "reached", "seeds"}
    assert method["final_loss"] == {"median": 1, "low": 1, "high": 1, "values": {"10": 1, "11": 1, "12": 1}}
    assert method["server_seconds"]["stages"].keys() == {"aggregate", "anchor", "align", "gate"}


def test_a_summary_reads_back_as_it_was_even_where_targets_were_never_reached():
    comparison = compare_runs(three("alignfed", losses=(4.0, 3.0)), "alignfed compare", (1.0,), {})
    assert comparison.regimes["base"]["alignfed"].time_to["1"].median == math.inf
    assert Comparison.model_validate_json(comparison.model_dump_json()) == comparison

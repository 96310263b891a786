"""The record of a run: what is in it, that it follows from the configuration, and how it is written."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import ValidationError

from coordinator.privacy.terms import PrivacyTerms
from coordinator.strategies import AlignFed, CalibrationOnly, FedBuff
from simulation.result import RunResult
from simulation.schedule import Schedule
from simulation.settings import Measuring, SimulationConfig

MEASURED = {"seconds", "server_seconds", "job_seconds", "cpu_seconds"}


def test_the_same_configuration_gives_the_same_record(simulate, alignfed: AlignFed) -> None:
    one, other = (simulate(alignfed).model_dump_json(exclude=MEASURED) for _ in range(2))
    assert one == other


def test_a_record_is_read_as_it_was_written(simulate, fedbuff: FedBuff, tmp_path: Path) -> None:
    run = simulate(fedbuff)
    run.write(tmp_path / "runs" / "one.json")
    assert RunResult.read(tmp_path / "runs" / "one.json") == run
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["one.json"]


def test_a_loss_that_diverged_is_null_in_the_file(simulate, fedbuff: FedBuff, tmp_path: Path) -> None:
    run = simulate(fedbuff)
    point = run.points[-1].model_copy(update={"loss": math.inf})
    run.model_copy(update={"points": (point,)}).write(tmp_path / "run.json")
    assert '"loss": null' in (tmp_path / "run.json").read_text()
    assert RunResult.read(tmp_path / "run.json").points[0].loss == math.inf


def test_the_configuration_in_a_record_makes_the_same_run_again(simulate, fedbuff: FedBuff) -> None:
    run = simulate(fedbuff)
    assert SimulationConfig.model_validate(run.config).strategy == fedbuff


def test_nodes_learn(simulate, fedbuff: FedBuff) -> None:
    run = simulate(fedbuff, updates=40)
    assert run.points[-1].loss < run.points[0].loss - 1
    assert run.final.loss == run.points[-1].loss


def test_every_share_sums_to_one_and_fast_nodes_have_more_uploads(simulate, fedbuff: FedBuff) -> None:
    shares = simulate(fedbuff, updates=24).shares
    assert math.isclose(sum(share.uploads for share in shares.values()), 1)
    assert math.isclose(sum(share.weight for share in shares.values()), 1)
    by_speed = sorted(shares.values(), key=lambda share: share.speed)
    assert by_speed[0].uploads > by_speed[-1].uploads


def test_staleness_counts_every_update_that_went_into_a_version(simulate, fedbuff: FedBuff) -> None:
    run = simulate(fedbuff)
    assert sum(run.staleness.histogram) == 2 * run.points[-1].version
    assert run.staleness.max == len(run.staleness.histogram) - 1


def test_of_several_decisions_one_is_measured_and_the_last(simulate, fedbuff: FedBuff) -> None:
    measuring = Measuring(every=3, held_out=4, generated=4)
    points = simulate(fedbuff, updates=10, measuring=measuring).points
    assert [point.version for point in points] == [0, 3, 5]


def test_of_decisions_at_one_instant_every_one_is_measured(simulate) -> None:
    together = Schedule(spread=1, jitter=0, latency=0, bytes_per_job=1e30)
    points = simulate(FedBuff(buffer_size=1), updates=4, schedule=together).points
    assert [point.version for point in points] == [0, 1, 2, 3, 4]
    assert len({point.time for point in points}) == 2


def test_measuring_less_changes_nothing_that_is_measured(simulate, alignfed: AlignFed) -> None:
    every = simulate(alignfed, updates=16).points
    fewer = simulate(alignfed, updates=16, measuring=Measuring(every=2, held_out=4, generated=4)).points
    assert 2 < len(fewer) < len(every)
    assert set(fewer) <= set(every)


def test_harm_is_counted_between_releases(simulate, fedbuff: FedBuff) -> None:
    run = simulate(fedbuff.model_copy(update={"step": 10.0}))
    losses = [point.loss for point in run.points]
    rises = sum(after > before for before, after in pairwise(losses))
    assert rises > 0
    assert run.harmful_any == rises / (len(losses) - 1)


def test_decisions_are_counted_by_what_is_served_since(simulate) -> None:
    run = simulate(AlignFed(buffer_size=2, step=4, anchor=None), updates=24)  # many an average is worse
    assert run.releases.keys() == {"average", "before"}
    assert sum(run.releases.values()) == len(run.points) - 1


def test_server_costs_are_told_by_stage(simulate, alignfed: AlignFed, fedbuff: FedBuff) -> None:
    quick = Schedule(spread=4, jitter=0, latency=0, server_speed=50)  # enough for an anchor and a gate in each version
    ours, theirs = simulate(alignfed, updates=16, schedule=quick), simulate(fedbuff)
    assert (ours.server_time.anchor, ours.server_time.gate) == (1 / 50, 0.5 / 50)
    assert min(ours.server_seconds.anchor, ours.server_seconds.gate, ours.server_seconds.aggregate) > 0
    assert (theirs.server_time.anchor, theirs.server_seconds.gate) == (0, 0)
    assert theirs.server_seconds.aggregate > 0


def test_without_labels_for_calibration_there_is_no_anchor_and_no_gate(simulate, alignfed: AlignFed) -> None:
    run = simulate(alignfed, anchor_examples=0, gate_examples=0)
    assert (run.server_time.anchor, run.server_time.gate) == (0, 0)
    assert run.releases == {"average": 4}


def test_calibration_alone_learns_from_labels_alone(simulate) -> None:
    with_labels, without = (simulate(CalibrationOnly(buffer_size=2), anchor_examples=n, updates=24) for n in (2, 0))
    assert with_labels.final.loss < with_labels.points[0].loss - 0.5
    assert without.final.loss == without.points[0].loss


def test_central_training_learns_more_from_as_many_examples(simulate, fedbuff: FedBuff) -> None:
    central, federated = simulate(None, updates=24), simulate(fedbuff, updates=24)
    assert central.final.loss < federated.final.loss
    assert [point.updates for point in central.points] == [0, 4, 8, 12, 16, 20, 24]
    assert central.points[-1].bytes == 0


def test_a_run_must_end() -> None:
    with pytest.raises(ValidationError, match="must end"):
        SimulationConfig(method="x", strategy=FedBuff(), updates=None)


def test_a_private_run_is_the_same_twice_and_more_noise_teaches_less(simulate, fedbuff: FedBuff) -> None:
    def loss(multiplier: float) -> float:
        # as much is learnt without noise that chance, or another processor's rounding, does not hide it
        terms = PrivacyTerms(clip_norm=10.0, noise_multiplier=multiplier)
        one, other = (simulate(fedbuff, privacy=terms, updates=48) for _ in range(2))
        assert one.model_dump_json(exclude=MEASURED) == other.model_dump_json(exclude=MEASURED)
        return float(one.points[-1].loss)

    assert loss(0.0) < loss(10.0)


def test_privacy_is_not_for_central_training_nor_for_steps_without_a_bound() -> None:
    terms = PrivacyTerms(clip_norm=1.0, noise_multiplier=1.0)
    with pytest.raises(ValidationError, match="central training has no nodes"):
        SimulationConfig(method="central", strategy=None, privacy=terms)
    with pytest.raises(ValidationError, match="calibration_only makes another"):
        SimulationConfig(method="alone", strategy=CalibrationOnly(), privacy=terms)

"""Speeds, durations and stays follow from the schedule and the seed."""

import math

import pytest

from simulation.schedule import Schedule, Turnover, job_time, presences, transfer_time

NODES = [f"n{number}" for number in range(40)]


@pytest.mark.parametrize("speeds", ["log-normal", "log-uniform"])
def test_the_fastest_node_takes_one_and_the_slowest_takes_the_spread(speeds: str) -> None:
    schedule = Schedule.model_validate({"spread": 15, "speeds": speeds})
    taken = [presence.speed for presence in presences(schedule, NODES, seed=3).values()]
    assert min(taken) == 1
    assert max(taken) == pytest.approx(15)
    assert len(set(taken)) == len(NODES)


def test_without_a_spread_all_nodes_are_equally_fast() -> None:
    assert {presence.speed for presence in presences(Schedule(spread=1), NODES, seed=3).values()} == {1.0}


def test_a_single_node_is_the_fastest() -> None:
    assert presences(Schedule(), ["alone"], seed=0)["alone"].speed == 1


def test_another_seed_makes_other_nodes_slow() -> None:
    one, other = (presences(Schedule(), NODES, seed=seed) for seed in (1, 2))
    assert max(one, key=lambda node: one[node].speed) != max(other, key=lambda node: other[node].speed)
    assert presences(Schedule(), NODES, seed=1) == one


def test_durations_of_one_node_vary_by_the_jitter() -> None:
    durations = [job_time(Schedule(jitter=0.1), 2.0, 1, "n1", number) for number in range(200)]
    logs = [math.log(duration / 2) for duration in durations]
    mean = sum(logs) / len(logs)
    assert abs(mean) < 0.03
    assert 0.08 < math.sqrt(sum((log - mean) ** 2 for log in logs) / len(logs)) < 0.12
    assert job_time(Schedule(jitter=0), 2.0, 1, "n1", 7) == 2.0


def test_a_share_of_the_nodes_comes_late_or_vanishes_in_its_time() -> None:
    schedule = Schedule(late=Turnover(share=0.5, first=3, last=5), lost=Turnover(share=0.25, first=6, last=6))
    stays = presences(schedule, NODES, seed=1).values()
    late = [stay.joins_at for stay in stays if stay.joins_at > 0]
    lost = [stay.leaves_at for stay in stays if stay.leaves_at < math.inf]
    assert len(late) == 20
    assert all(3 <= time <= 5 for time in late)
    assert lost == [6.0] * 10


def test_a_turnover_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(ValueError, match="after the last"):
        Turnover(share=0.5, first=5, last=3)


def test_a_transfer_takes_the_latency_and_a_time_for_every_byte() -> None:
    assert transfer_time(Schedule(latency=0.5, bytes_per_job=1000), 250) == 0.75

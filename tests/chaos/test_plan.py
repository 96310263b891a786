"""The plan of faults: the same from the same seed, with so many kills, and with every kind of fault in every round."""

import pytest

from chaos.plan import Again, AtPoint, BadLink, ClockJump, Freeze, FullDisk, Together, kills_of, plan


def test_a_seed_gives_the_same_faults_and_another_seed_or_round_others() -> None:
    assert plan(1, 0, 50) == plan(1, 0, 50)
    assert plan(1, 0, 50) != plan(2, 0, 50)
    assert plan(1, 0, 50) != plan(1, 1, 50)


@pytest.mark.parametrize("kills", [1, 2, 30, 100])
def test_a_round_kills_as_often_as_it_was_asked_to(kills: int) -> None:
    for seed in range(20):
        assert sum(map(kills_of, plan(seed, 0, kills))) == kills


@pytest.mark.parametrize("seed", range(5))
def test_every_round_has_every_kind_of_fault(seed: int) -> None:
    faults = plan(seed, 0, 100)
    assert {type(fault) for fault in faults} == {Again, AtPoint, BadLink, ClockJump, Freeze, FullDisk, Together}
    assert {fault.target for fault in faults if isinstance(fault, FullDisk)} == {"coordinator", "load-0"}


@pytest.mark.parametrize("seed", range(5))
def test_thirty_kills_have_three_power_cuts_for_the_control_to_lose_by(seed: int) -> None:
    cuts = [fault for fault in plan(seed, 0, 30) if isinstance(fault, Together) and fault.gap_s >= 0.3]
    assert len(cuts) >= 3
    assert all(fault.targets == ("coordinator", "broker") for fault in cuts)

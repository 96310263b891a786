"""When something counts as back after a kill."""

from typing import Any

from chaos.recovery import Kill, back_at, recoveries
from chaos.witness import Seen


def kill(target: str, at: float = 10.0, burst: int = 1, clients: tuple[str, ...] = ()) -> Kill:
    return Kill(burst, at, target, "random", epochs=3, clients=clients)


def seen(at: float, what: Any, node: str = "a", **facts: Any) -> Seen:
    return Seen(at, node, what, **facts)


def test_a_coordinator_is_back_with_its_next_epoch_and_not_with_what_was_on_its_way() -> None:
    on_its_way = [seen(10.1, "heard", epoch=3), seen(10.2, "receipted", update="u")]
    assert back_at(kill("coordinator"), on_its_way) is None
    assert back_at(kill("coordinator"), [*on_its_way, seen(11.0, "heard", epoch=4)]) == 11.0


def test_a_broker_is_back_when_a_node_that_lost_it_and_has_connected_anew_hears_something() -> None:
    before = [seen(9.0, "connected"), seen(10.1, "receipted", update="u")]
    assert back_at(kill("broker"), before) is None
    noted_late = [*before, seen(10.2, "connected"), seen(10.3, "heard")]
    assert back_at(kill("broker"), noted_late) is None
    after = [
        *noted_late,
        seen(10.4, "lost", "b"),
        seen(10.5, "connected", "b"),
        seen(10.6, "heard"),
        seen(10.7, "heard", "b"),
    ]
    assert back_at(kill("broker"), after) == 10.7


def test_a_broker_is_back_for_a_node_that_was_killed_with_it() -> None:
    assert back_at(kill("broker"), [seen(10.5, "boot"), seen(10.6, "connected"), seen(10.7, "heard")]) == 10.7


def test_a_node_is_back_when_it_has_started_anew_and_hears_something() -> None:
    of_others = [seen(10.1, "heard", "b"), seen(10.2, "boot", "b"), seen(10.3, "heard", "b")]
    assert back_at(kill("load-0", clients=("a",)), of_others) is None
    assert back_at(kill("load-0", clients=("a", "b")), of_others) == 10.3


def test_the_clock_of_a_burst_starts_with_its_last_kill() -> None:
    kills = [kill("coordinator", 10.0), kill("coordinator", 12.0), kill("coordinator", 20.0, burst=2)]
    found = recoveries(kills, [seen(13.5, "heard", epoch=4), seen(20.5, "heard", epoch=5)])
    assert found == {"coordinator": [1.5, 0.5]}


def test_what_came_after_the_next_burst_began_is_no_recovery_of_the_one_before() -> None:
    kills = [kill("broker", 10.0), kill("coordinator", 11.0, burst=2)]
    assert recoveries(kills, [seen(10.5, "lost"), seen(10.6, "connected"), seen(12.0, "heard", epoch=4)]) == {
        "coordinator": [1.0]
    }

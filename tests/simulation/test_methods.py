"""The table of methods: every one runs, and what should be alike is."""

import pytest

from coordinator.strategies import AlignFed, FedAvg, FedBuff
from coordinator.strategies.buffered import Buffered
from simulation.methods import METHODS, buffer_size, strategy_of

FEDERATED = [name for name in METHODS if name != "centralised"]


@pytest.mark.parametrize("method", FEDERATED)
def test_every_method_runs(simulate, method: str) -> None:
    strategy = strategy_of(method, nodes=4)
    run = simulate(strategy)
    assert run.points[-1].version > 0
    assert run.config["strategy"] == strategy.model_dump(mode="json")


@pytest.mark.parametrize("nodes", [1, 3, 16, 64, 1000, 5000])
def test_a_version_never_waits_for_more_nodes_than_there_are(nodes: int) -> None:
    assert 1 <= buffer_size(nodes) <= nodes
    for method in FEDERATED:
        strategy = strategy_of(method, nodes)
        if isinstance(strategy, FedAvg):
            assert 1 <= strategy.nodes_per_round <= nodes
        elif isinstance(strategy, Buffered):
            assert strategy.buffer_size == buffer_size(nodes)


def test_what_is_alike_in_all_buffered_methods_is_alike() -> None:
    buffered = [strategy for name in FEDERATED if isinstance(strategy := strategy_of(name, 16), Buffered)]
    assert len({(s.buffer_size, s.timeout_s, s.max_staleness) for s in buffered}) == 1
    assert len({s.staleness_exponent for s in buffered if isinstance(s, AlignFed)}) == 1
    assert {s.staleness_exponent for s in buffered if not isinstance(s, AlignFed)} == {0.5}


def test_the_named_ablations_switch_off_one_thing_each() -> None:
    ours = AlignFed.model_dump(strategy_of("alignfed", 16))
    for name, changed in {
        "alignfed_no_anchor": {"anchor"},
        "alignfed_no_gate": {"release"},
        "alignfed_no_release": {"release"},
        "alignfed_no_participation": {"participation"},
        "alignfed_transplant": {"align"},
        "alignfed_semantic": {"align"},
    }.items():
        other = strategy_of(name, 16).model_dump()
        assert {key for key in ours if ours[key] != other[key]} == changed


def test_the_server_step_is_the_one_in_the_name() -> None:
    assert [strategy_of(name, 16) for name in ("fedbuff_1", "fedbuff_2", "fedbuff_3")] == [
        FedBuff(step=step, timeout_s=30, max_staleness=500) for step in (1, 2, 3)
    ]


def test_an_unknown_method_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match=r"no method 'fedbuf'; choose one of alignfed, .*centralised"):
        strategy_of("fedbuf", 16)

"""What happens in a simulated federation, in virtual time, with real training and the coordinator's own core."""

import weakref
from collections.abc import Sequence
from itertools import pairwise

import psutil
import pytest

from base_model.settings import TrainingConfig
from coordinator.stages import ReleaseStage
from coordinator.strategies import (
    AlignFed,
    AlignFedLiteral,
    FedAsync,
    FedAvg,
    FedBuff,
    FedSALora,
    FFALora,
    Strategy,
)
from coordinator.trust.robust import HeadGuard
from schemas.adapter import Adapter, LoraConfig
from simulation.federation import Released, Version
from simulation.schedule import Schedule, Turnover
from simulation.settings import Measuring, SimulationConfig

ONE_BY_ONE = FedBuff(buffer_size=1)
LEVEL = Schedule(spread=1, jitter=0, latency=0, bytes_per_job=1e12, server_speed=1)


def bases(versions: list[Version]) -> list[tuple[str, int]]:
    """Who went into each version, and from which version it had started."""
    return [(given.node, given.base_version) for version in versions for given in version.manifest.inputs]


def times(news: Sequence[Version | Released]) -> list[float]:
    """When the versions came out or the decisions were made, without the instants that bytes take."""
    return [round(one.time, 3) for one in news]


def recorded(news: list[Version | Released]) -> list[bytes]:
    """All that is said of versions and decisions."""
    return [(one.manifest if isinstance(one, Version) else one.report).to_bytes() for one in news]


@pytest.mark.parametrize(
    "strategy",
    [
        AlignFed(buffer_size=2, align="semantic"),
        AlignFedLiteral(buffer_size=2),
        FedAsync(),
        FedSALora(buffer_size=2),
    ],
    ids=lambda strategy: strategy.name,
)
def test_the_same_configuration_gives_the_same_versions_and_decisions_bit_for_bit(news, strategy: Strategy) -> None:
    runs = [news(strategy, schedule=Schedule(spread=4)) for _ in range(2)]
    assert len([one for one in runs[0] if isinstance(one, Version)]) >= 3
    assert recorded(runs[0]) == recorded(runs[1])


def test_another_seed_gives_other_versions(happen, fedbuff: FedBuff) -> None:
    one, other = (happen(fedbuff, seed=seed)[-1].head for seed in (1, 2))
    assert one != other


def test_a_slow_nodes_update_comes_later_and_staler(happen) -> None:
    versions = happen(ONE_BY_ONE, nodes=2, updates=6)  # one node is four times slower
    fast = bases(versions)[0][0]
    assert [(node == fast, base) for node, base in bases(versions)] == [
        (True, 0),
        (True, 1),
        (True, 2),
        (False, 0),
        (True, 3),
        (True, 5),
    ]
    assert times(versions) == [0, 1, 2, 3, 4, 4, 5]


def test_fedavg_waits_for_the_slowest(happen) -> None:
    versions = happen(FedAvg(nodes_per_round=4), updates=8)
    assert times(versions) == [0, 4, 8]
    assert [len(version.manifest.inputs) for version in versions] == [0, 4, 4]


def test_fedavg_that_drops_stragglers_waits_for_fewer_and_refuses_the_rest(simulate) -> None:
    run = simulate(FedAvg(nodes_per_round=3), updates=8)
    assert 1 < run.points[1].time < 4
    assert run.receipts["stale"] > 0


def test_a_node_that_vanishes_takes_its_work_along_and_stops_nobody(happen) -> None:
    lost = Turnover(share=0.5, first=2.5, last=2.5)
    versions = happen(ONE_BY_ONE, updates=12, schedule=LEVEL.model_copy(update={"lost": lost}))
    early = {node for version in versions if version.time < 2.5 for node, _ in bases([version])}
    late = {node for version in versions if version.time > 2.5 for node, _ in bases([version])}
    assert (len(early), len(late)) == (4, 2)


def test_a_round_of_which_a_node_is_lost_closes_at_its_timeout(happen) -> None:
    lost = Turnover(share=0.25, first=0.5, last=0.5)
    strategy = FedAvg(nodes_per_round=4, timeout_s=7)
    versions = happen(strategy, updates=None, time=17, schedule=LEVEL.model_copy(update={"lost": lost}))
    assert times(versions) == [0, 8, 16]
    assert [len(version.manifest.inputs) for version in versions] == [0, 3, 3]


def test_without_a_timeout_a_round_waits_for_a_lost_node_for_ever(simulate) -> None:
    lost = Turnover(share=0.25, first=0.5, last=0.5)
    run = simulate(FedAvg(nodes_per_round=4), schedule=LEVEL.model_copy(update={"lost": lost}))
    assert "nothing was left to happen" in run.ended
    assert [point.version for point in run.points] == [0]


def test_a_late_joiner_starts_from_the_newest_head(happen) -> None:
    late = Turnover(share=0.5, first=3.5, last=3.5)
    versions = happen(ONE_BY_ONE, nodes=2, updates=6, schedule=LEVEL.model_copy(update={"late": late}))
    first = bases(versions)[0][0]
    assert [(node == first, base) for node, base in bases(versions)] == [
        (True, 0),
        (True, 1),
        (True, 2),
        (True, 3),
        (False, 3),
        (True, 4),
    ]


def test_patient_nodes_wait_for_the_next_version(happen) -> None:
    versions = happen(AlignFed(preset="patient", buffer_size=4, anchor=None), schedule=LEVEL, updates=12)
    for version in versions[1:]:
        assert len({given.node for given in version.manifest.inputs}) == 4
        assert {given.base_version for given in version.manifest.inputs} == {version.manifest.version - 1}


@pytest.mark.parametrize("server_speed", [0.1, 1, 50])
def test_no_version_waits_for_anchor_or_gate(happen, alignfed: AlignFed, fedbuff: FedBuff, server_speed: float) -> None:
    versions = happen(alignfed, schedule=LEVEL.model_copy(update={"server_speed": server_speed}))
    assert times(versions) == times(happen(fedbuff, schedule=LEVEL)) == [0, 1, 1, 2, 2]


def test_the_time_that_the_base_model_takes_on_the_coordinator_is_charged(news, alignfed: AlignFed) -> None:
    heard = news(alignfed, schedule=LEVEL)
    versions = [one for one in heard if isinstance(one, Version)]
    # the anchor is as many steps as a job; the gate is two adapters on four examples, a job is four, there and back
    assert versions[1].server_time == {"anchor": 1.0}
    assert versions[3].server_time == {"gate": 1.0}
    assert versions[1].manifest.anchor.seconds == 1.0
    _, decision, *_ = (one for one in heard if isinstance(one, Released))
    assert decision.report.seconds == 1.0


def test_the_base_model_answers_one_question_after_the_other(decide, alignfed: AlignFed) -> None:
    decisions = decide(alignfed, schedule=LEVEL, updates=16)
    # anchors from 0 to 2, and then the gate; from there on they take turns, and the gate knows what is served
    assert times(decisions)[:3] == [0, 3, 4.5]


def test_a_faster_server_answers_sooner(decide, alignfed: AlignFed) -> None:
    decisions = decide(alignfed, schedule=LEVEL.model_copy(update={"server_speed": 5}))
    assert times(decisions)[:2] == [0, 1.4]


def test_an_anchor_is_for_the_versions_that_come_after_it(happen, alignfed: AlignFed) -> None:
    versions = happen(alignfed, updates=12, schedule=LEVEL.model_copy(update={"server_speed": 0.4}))
    assert times(versions) == [0, 1, 1, 2, 2, 3, 3]
    anchors = [version.manifest.anchor for version in versions]
    assert [anchor and anchor.base_version for anchor in anchors] == [None, None, None, None, None, 0, None]


def test_what_was_measured_before_is_not_charged_again(decide) -> None:
    keeps = AlignFed(buffer_size=2, anchor=None)
    charged = [decision.report.seconds for decision in decide(keeps, updates=12)[1:]]
    assert charged == [1.0] + [0.5] * (len(charged) - 1)  # what is served is known
    assert len(charged) > 2


def test_updates_that_come_while_the_base_model_aligns_go_into_the_next_version(happen) -> None:
    aligning = AlignFed(buffer_size=2, align="semantic", anchor=None, release={"choose": "head"})
    versions = happen(aligning, nodes=6, schedule=LEVEL.model_copy(update={"server_speed": 0.4}), updates=12)
    # the second version is of stale updates, and takes the time of all that six nodes make meanwhile
    assert times(versions)[:3] == [0, 1, 2.25]
    assert [len(version.manifest.inputs) for version in versions] == [0, 2, 2, 8]
    assert versions[2].manifest.groups[0].seconds == versions[2].server_time["align"] == 1.25


def test_alignfed_serves_another_adapter_than_nodes_train_from(news, fedbuff: FedBuff) -> None:
    averaging = AlignFed(preset="unlabelled", buffer_size=2)
    for strategy, variant in ((averaging, "average"), (fedbuff, "head")):
        heard = news(strategy)
        heads = {one.manifest.version: one.head for one in heard if isinstance(one, Version)}
        decisions = [one for one in heard if isinstance(one, Released)]
        assert [decision.report.judged for decision in decisions] == [0, 1, 2, 3, 4]
        for decision in decisions[2:]:
            assert (decision.report.version, decision.report.variant) == (decision.report.judged, variant)
            assert (decision.served == heads[decision.report.version]) == (variant == "head")


def test_nodes_serve_on_what_the_gate_prefers(decide) -> None:
    strategy = AlignFed(buffer_size=2, step=8)  # steps so long that many an average is worse
    decisions = decide(strategy, updates=30, schedule=LEVEL.model_copy(update={"server_speed": 50}))
    taken = []
    for before, decision in pairwise(decisions):
        report = decision.report
        taken.append(report.is_taken)
        assert taken[-1] == (decision.served != before.served) == (report.candidate <= report.before)
        assert report.version == (report.judged if taken[-1] else before.report.version)
    assert True in taken
    assert False in taken


def test_versions_that_are_not_judged_in_time_are_passed_over_and_the_last_one_is_not(news) -> None:
    heard = news(AlignFed(buffer_size=1, anchor=None), updates=12)
    judged = [one.report.judged for one in heard if isinstance(one, Released)]
    *_, last = (one for one in heard if isinstance(one, Version))
    assert judged == sorted(set(judged))
    assert 2 < len(judged) < 13
    assert judged[-1] == last.manifest.version == 12


def test_nodes_that_wait_for_a_version_do_not_begin_anew_after_the_last_update(happen) -> None:
    aligning = AlignFed(preset="patient", buffer_size=2, align="semantic")
    versions = happen(aligning, schedule=LEVEL, updates=8)  # which the fixture looks after
    assert versions[-1].time > 3


def test_the_network_delays_and_counts_every_byte(simulate) -> None:
    slow = LEVEL.model_copy(update={"latency": 0.5, "bytes_per_job": 1e6})
    point = simulate(ONE_BY_ONE, nodes=1, updates=1, schedule=slow).points[-1]
    assert point.time == pytest.approx(2 + (point.fetched + point.bytes) / 1e6)


def test_a_head_is_fetched_once_by_each_node(simulate) -> None:
    run = simulate(FedBuff(buffer_size=4), nodes=2, updates=6, schedule=LEVEL)
    size = run.points[1].fetched / 2  # before the first version both nodes had fetched one head and sent two updates
    assert run.points[-1].fetched == 2 * size
    assert run.points[-1].updates == 4


def test_a_run_ends_at_its_time(simulate, fedbuff: FedBuff) -> None:
    run = simulate(fedbuff, updates=None, time=5.5, schedule=LEVEL)
    assert round(run.points[-1].time, 3) == 5
    assert sum(run.receipts.values()) == 20


def test_versions_from_which_nobody_trains_are_forgotten(news) -> None:
    heads: list[weakref.ref[Adapter]] = []
    alive: list[int] = []

    def hear(one: Version | Released) -> None:
        if isinstance(one, Version):
            heads.append(weakref.ref(one.head))
            alive.append(sum(head() is not None for head in heads))

    news(ONE_BY_ONE, updates=40, hear=hear)
    assert len(heads) == 41
    assert max(alive) <= 4 + 2  # one for each node, the newest, and the one before while its successor is made


def test_a_thousand_nodes_fit(simulate) -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    run = simulate(FedBuff(buffer_size=30), nodes=1000, updates=120, measuring=Measuring(held_out=4, own_tests=1))
    assert len(run.final.nodes) == 1000
    assert run.points[-1].version == 4
    assert process.memory_info().rss - before < 100 << 20


def test_in_fedsa_lora_nodes_keep_their_b_and_are_judged_with_it(simulate, happen) -> None:
    strategy = FedSALora(buffer_size=2)
    run = simulate(strategy, updates=24)
    assert run.final.loss < run.points[0].loss - 0.5
    head = happen(strategy)[-1].head
    assert head.only("B").norm == 0
    assert head.only("A") != happen(strategy)[0].head


def test_in_ffa_lora_a_stays_as_it_was_drawn(happen) -> None:
    versions = happen(FFALora(buffer_size=2))
    assert {version.head.only("A").digest for version in versions} == {versions[0].head.only("A").digest}
    assert versions[-1].head != versions[0].head


def test_nodes_of_several_ranks_share_one_adapter(happen, simulate) -> None:
    ranks = {"lora": LoraConfig(rank=4, alpha=8, last_layers=1), "node_ranks": (1, 2)}
    versions = happen(FedBuff(buffer_size=2), nodes=6, schedule=LEVEL, updates=12, **ranks)
    assert {version.head.layout.lora.rank for version in versions} == {4}
    assert len({node for node, _ in bases(versions)}) == 6
    run = simulate(FedBuff(buffer_size=2), nodes=6, schedule=LEVEL, updates=36, **ranks)
    assert run.receipts == {"accepted": 36}
    assert run.final.loss < run.points[0].loss - 0.5


def test_nodes_that_share_one_factor_need_one_rank() -> None:
    with pytest.raises(ValueError, match="ffa_lora shares one factor alone"):
        SimulationConfig(method="ffa", strategy=FFALora(), node_ranks=(4,))


def test_an_answer_for_a_version_that_was_taken_back_bothers_nobody(happen) -> None:
    nervous = ReleaseStage(choose="gated", guard=HeadGuard(rise=0, slack=0, probation=1))
    strategy = AlignFed(buffer_size=2, anchor=None, align="semantic", release=nervous)
    wild = TrainingConfig(steps=2, batch_size=2, learning_rate=0.3)
    slow = LEVEL.model_copy(update={"server_speed": 0.3})
    versions = happen(strategy, updates=24, schedule=slow, training=wild, seed=3)
    assert any(version.manifest.returned for version in versions)

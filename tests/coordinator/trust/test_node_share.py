"""A node that is faster than all others, and one that is alone when time is up: what `node_share` leaves them."""

from collections import Counter
from collections.abc import Callable

import pytest

from coordinator.core import found, step
from coordinator.state import Effect, FederationConfig, FederationState, PublishVersion, Received, Ticked
from coordinator.strategies import AlignFed, AlignFedLiteral, FedBuff, FedEx, FLoRA, Strategy
from coordinator.trust.robust import TrustStage
from schemas.adapter import Adapter
from schemas.messages import GlobalManifest

MakeAdapter = Callable[..., Adapter]
MakeConfig = Callable[..., FederationConfig]
MakeMessage = Callable[..., Received]

NS_PER_S = 10**9
PLAIN = {"buffer_size": 4, "timeout_s": 60.0}
BUFFERED: list[Strategy] = [
    FedBuff(**PLAIN),
    AlignFed(**PLAIN, trust=TrustStage(), preset="unlabelled"),
    AlignFedLiteral(**PLAIN),
    FedEx(**PLAIN),
    FLoRA(**PLAIN),
]


class Race:
    """A federation in which m may send as often as it likes."""

    def __init__(self, config: FederationConfig, adapter: MakeAdapter, message: MakeMessage) -> None:
        self.message, self.sent, self.at_ns = message, 0, 0
        self.state: FederationState
        self.effects: tuple[Effect, ...]
        self.state, self.effects = found(config, adapter(1, 0), 0)

    def send(self, node: str, delta: float) -> None:
        self.sent += 1
        head = self.state.head
        made = self.message(node, delta, head.version, head.digest, self.sent, at_ns=self.at_ns)
        self.state, self.effects = step(self.state, made)

    def wait(self, seconds: int) -> None:
        self.at_ns += seconds * NS_PER_S
        self.state, self.effects = step(self.state, Ticked(self.at_ns))

    def made(self) -> list[GlobalManifest]:
        return [effect.manifest for effect in self.effects if isinstance(effect, PublishVersion)]


@pytest.fixture
def race(config: MakeConfig, adapter: MakeAdapter, message: MakeMessage) -> Callable[..., Race]:
    def begin(strategy: Strategy, share: float | None) -> Race:
        return Race(config(strategy.model_copy(update={"node_share": share})), adapter, message)

    return begin


def weights(manifest: GlobalManifest) -> Counter[str]:
    """By node, all that its updates weigh in a version."""
    total = Counter[str]()
    for given in manifest.inputs:
        total[given.node] += given.weight  # type: ignore[assignment]
    return total


def test_without_the_setting_a_fast_node_makes_versions_alone(race: Callable[..., Race]) -> None:
    race_ = race(FedBuff(**PLAIN), None)
    for _ in range(4):
        race_.send("m", -1.0)
    [manifest] = race_.made()
    assert weights(manifest) == {"m": 1.0}


@pytest.mark.parametrize("strategy", BUFFERED, ids=lambda strategy: strategy.name)
def test_a_fast_node_waits_for_others_and_has_no_more_than_its_share(
    race: Callable[..., Race], strategy: Strategy
) -> None:
    race_ = race(strategy, 0.5)
    for version in range(1, 6):
        for _ in range(20):  # ten times as fast as the two others together
            race_.send("m", -0.01)
            assert race_.made() == []
        race_.send("a", 0.01)
        race_.send("b", 0.01)
        [manifest] = race_.made()
        assert manifest.version == version
        assert {given.node for given in manifest.inputs} == {"a", "b", "m"}
        step_ = getattr(strategy, "step", 1.0)
        assert 0 < weights(manifest)["m"] <= step_ * 0.5 + 1e-9


def test_a_fast_node_that_lies_cannot_outvote_two_that_do_not(race: Callable[..., Race]) -> None:
    race_ = race(AlignFed(**PLAIN, preset="unlabelled"), 0.5)
    for _ in range(5):
        for _ in range(20):
            race_.send("m", -1.0)
        race_.send("a", 0.1)
        race_.send("b", 0.1)
        [manifest] = race_.made()
        assert weights(manifest)["m"] <= weights(manifest)["a"] + weights(manifest)["b"] + 1e-9


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_a_node_that_is_alone_when_time_is_up_moves_the_head_by_its_share(
    race: Callable[..., Race], adapter: MakeAdapter, share: float
) -> None:
    race_ = race(FedBuff(**PLAIN), share)
    race_.send("m", 8.0)
    race_.wait(61)
    [manifest] = race_.made()
    assert weights(manifest) == {"m": share}
    assert race_.state.head.adapter == adapter(1 + 8 * share, 8 * share)


def test_a_share_that_is_less_than_one_update_leaves_one(race: Callable[..., Race]) -> None:
    race_ = race(FedBuff(buffer_size=3), 0.1)
    for node in ("a", "a", "b", "a", "b"):
        race_.send(node, 1.0)
        assert race_.made() == []
    race_.send("c", 1.0)
    assert weights(race_.made()[0]) == pytest.approx({"a": 0.1, "b": 0.1, "c": 0.1})


def test_what_is_not_set_is_not_written_so_that_journals_of_before_have_the_same_terms() -> None:
    assert "node_share" not in FedBuff().model_dump()
    assert AlignFed.model_validate(AlignFed().model_dump()) == AlignFed()
    assert FedBuff(node_share=0.5).model_dump()["node_share"] == 0.5

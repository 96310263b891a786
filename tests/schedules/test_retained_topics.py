"""What schedules have found about retained topics, each told once more as a story of its own."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from broker.events import Publication
from coordinator.operations import order_file
from coordinator.operations.orders import RollBack
from coordinator.publisher import WINDOW
from coordinator.state import FederationConfig
from coordinator.strategies import FedAsync
from schemas.adapter import Adapter, Layout, LoraConfig
from schemas.messages import GlobalPointer
from schemas.topics import GlobalHead, GlobalManifestOf, parse, route
from tests.crash_points.lives import message_of
from tests.schedules.actors import BASE_MODEL, FEDERATION, CoordinatorActor
from tests.schedules.clock import Clock
from tests.schedules.network import Network

LAYOUT = Layout(lora=LoraConfig(rank=1), tensors=(("x.lora_A.weight", (1, 4)), ("x.lora_B.weight", (4, 1))))
HEAD = route(FEDERATION, GlobalHead()).topic


@pytest.fixture
def network() -> Network:
    return Network(Clock(), random.Random(0), 1000, lambda *_: None, lambda *_: None)


@pytest.fixture
def start(tmp_path: Path, network: Network) -> Callable[[], CoordinatorActor]:
    """Start a coordinator on one folder; every update is a version, and one version stays on the broker."""
    config = FederationConfig(
        federation=FEDERATION, base_model=BASE_MODEL, base_model_name="tiny", layout=LAYOUT, strategy=FedAsync()
    )
    first = Adapter(LAYOUT, np.full(LAYOUT.size, 0.5, np.float32))

    def begin() -> CoordinatorActor:
        actor = CoordinatorActor(tmp_path / "coordinator", network, random.Random(0), config, first, 1, None)
        actor.start()
        return actor

    return begin


def let_it_talk(network: Network, actor: CoordinatorActor) -> None:
    """Move packets and take turns until nothing is left to say."""
    client = actor.client
    assert client is not None
    while actor.has_work or client.has_to_hand_over() or client.up or network.can_deliver(client):
        client.hand_over()
        while network.can_take(client):
            network.take(client)
        while network.can_deliver(client):
            network.deliver(client)
        actor.turn()


def versions_on(network: Network) -> list[int]:
    addresses = [parse(FEDERATION, topic) for topic in network.kept.retained]
    return sorted(address.version for address in addresses if isinstance(address, GlobalManifestOf))


def test_what_a_coordinator_left_on_the_broker_when_it_died_is_deleted_by_the_next_one(
    network: Network, start: Callable[[], CoordinatorActor]
) -> None:
    earlier = start()
    network.connect(earlier.client)
    let_it_talk(network, earlier)
    assert versions_on(network) == [0]
    network.cut(earlier.client)
    for sequence in range(1, 8):
        earlier.client.take(message_of(earlier, sequence))
        earlier.turn()
    earlier.end()
    later = start()
    network.connect(later.client)
    let_it_talk(network, later)
    assert versions_on(network) == [7]


def test_a_rollback_before_the_first_connection_sends_no_pointer_ahead_of_its_body(
    network: Network, start: Callable[[], CoordinatorActor]
) -> None:
    said: list[Publication] = []
    network.observe = lambda _, publication: said.append(publication)
    actor = start()
    order_file.give(actor.folder, RollBack(version=0))
    actor.turn()
    assert said == []
    network.connect(actor.client)
    let_it_talk(network, actor)
    topics = [publication.topic for publication in said]
    assert topics.index(f"alignfed/v1/{FEDERATION}/global/v/0/manifest") < topics.index(
        f"alignfed/v1/{FEDERATION}/global/release"
    )


@pytest.mark.parametrize("limit", ["broker.outgoing.MAX_QUEUED_BYTES", "coordinator.announcer.MOST_WAITING"])
def test_a_broker_that_takes_nothing_stops_nothing_and_has_the_newest_when_it_takes_again(
    network: Network, start: Callable[[], CoordinatorActor], monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(
        limit, {"broker.outgoing.MAX_QUEUED_BYTES": 8_000, "coordinator.announcer.MOST_WAITING": 20}[limit]
    )
    actor = start()
    network.connect(actor.client)
    for sequence in range(1, 61):  # two receipts and a version each
        actor.client.take(message_of(actor, sequence))
        actor.turn()
    assert actor.state.head.version == 60
    assert len(actor.client.outgoing) <= 20 + WINDOW
    let_it_talk(network, actor)
    assert versions_on(network) == [60]
    assert GlobalPointer.from_bytes(network.kept.retained[HEAD].payload).version == 60

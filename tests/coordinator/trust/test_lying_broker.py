"""A broker may send anything on any topic: nothing of it becomes an event of the coordinator's own."""

import random
from pathlib import Path

import numpy as np
import pytest

from broker.events import Message, MessageProperties
from coordinator.journal import fold
from coordinator.state import FederationConfig
from coordinator.strategies import FedBuff
from schemas.adapter import Adapter
from tests.coordinator.conftest import LAYOUT
from tests.schedules.actors import FEDERATION, CoordinatorActor
from tests.schedules.clock import Clock
from tests.schedules.network import Network

CONFIG = FederationConfig(
    federation=FEDERATION,
    base_model="ba5e" * 16,
    base_model_name="tiny",
    layout=LAYOUT,
    strategy=FedBuff(buffer_size=2),
)
FORGED = Adapter(LAYOUT, np.full(LAYOUT.size, 666, np.float32)).to_safetensors()
TOPICS = {
    "$journal/rollback/1/0/head/head": FORGED,
    "$journal/config": CONFIG.model_copy(update={"strategy": FedBuff(buffer_size=1)}).to_bytes(),
    "$journal/order/1": b"{}",
    "$journal/keys": b"{}",
    "$journal/noise": bytes(32),
    "$journal/answer/1/0": b"",
    "$journal/start": b"",
    "$journal/tick": b"",
    f"alignfed/v1/{FEDERATION}-2/update/kitchen/0": b"of another federation",
}


@pytest.mark.parametrize("topic", TOPICS)
def test_no_message_becomes_an_event_of_the_coordinators_own(topic: str, tmp_path: Path) -> None:
    chance = random.Random(1)
    network = Network(Clock(), chance, 1000, observe=lambda *_: None, accepted=lambda *_: None)
    first = Adapter(LAYOUT, np.zeros(LAYOUT.size, np.float32))
    coordinator = CoordinatorActor(tmp_path, network, chance, CONFIG, first, 1, None)
    coordinator.start()
    before = list(fold(tmp_path / "journal.db"))[-1]
    assert coordinator.client is not None
    at_ns = network.clock.wall_ns(coordinator.client_id)
    coordinator.client.inbox.put(Message(topic, TOPICS[topic], 0, False, False, MessageProperties(), at_ns, 0, 0))
    coordinator.turn()
    assert list(fold(tmp_path / "journal.db"))[-1] == before
    coordinator.end()

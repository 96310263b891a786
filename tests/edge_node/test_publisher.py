"""Updates over a link that is cut, on a real broker. The coordinator's side is a client that takes everything."""

import gc
import hashlib
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.client import Client
from broker.embedded import EmbeddedBroker, find_mosquitto
from broker.events import Disconnected, Message, Published, Subscribed
from edge_node.outbox import Outbox
from edge_node.publisher import Publisher
from edge_node.state import Update
from schemas.chunks import Assembly, describe, split
from schemas.messages import UpdateManifest, split_body, update_id
from schemas.topics import UpdateChunk, UpdateManifestOf, parse, topic_filter
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.mosquitto
CHUNK = 16 * 1024
BODY = b"".join(hashlib.sha256(bytes([number % 256, number // 256])).digest() for number in range(5 * CHUNK // 32))
OVERHEAD = 1000  # bytes of a packet that are no chunk, and of connecting again


@pytest.fixture(scope="module")
def mosquitto() -> Iterator[EmbeddedBroker]:
    if find_mosquitto() is None:
        pytest.skip("MOSQUITTO IS NOT INSTALLED (apt install mosquitto)")
    with EmbeddedBroker("mosquitto") as running:
        yield running


def update_of(body: bytes, sequence: int = 0, inline: int = 0) -> Update:
    manifest = UpdateManifest(
        node="home-1",
        boot_id="b0" * 16,
        sequence=sequence,
        base_version=3,
        base_digest="d" * 64,
        base_model="ba5e" * 16,
        layout="1a" * 32,
        examples=1,
        steps=1,
        participation=0,
        loss=1.0,
        seconds=1.0,
        body=describe(body, "fp32", CHUNK, inline),
    ).to_bytes()
    return Update(update_id(manifest), sequence, "d" * 64, 3, manifest, body, CHUNK)


class Link:
    """A node's publisher with an outbox of its own, and somebody on the broker who hears what arrives."""

    def __init__(self, broker: EmbeddedBroker, port: int, federation: str, folder: Path) -> None:
        self.outbox, self.handed_over = Outbox(folder / "outbox.db"), list[str]()
        filters = [topic_filter(federation, kind) for kind in (UpdateManifestOf, UpdateChunk)]
        self._hearer = Client(broker.settings, f"{federation}-hearer", subscriptions=filters)
        self._hearer.start()
        _wait_for(self._hearer, 2, Subscribed)
        self._client = Client(broker.settings.model_copy(update={"port": port}), f"{federation}-node")
        self._client.start()
        self.publisher = Publisher(self._client, federation, "home-1", self.outbox, self.handed_over.append, None)
        self._federation = federation
        self.lost = 0

    def put(self, update: Update) -> Update:
        self.outbox.put(update)
        return update

    def until_handed_over(self, times: int = 1) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while len(self.handed_over) < times:
            assert time.monotonic() < deadline, "the update does not arrive"
            event = self._client.next_event(0.1)
            if isinstance(event, Published):
                self.publisher.answered(event)
            self.lost += isinstance(event, Disconnected)

    def arrived(self, until: Callable[[list[Any]], bool]) -> list[tuple[Any, bytes]]:
        """What the hearer has heard up to now, and until that holds for the addresses."""
        heard: list[tuple[Any, bytes]] = []
        deadline = time.monotonic() + PATIENCE_S
        while not until([address for address, _ in heard]):
            assert time.monotonic() < deadline, f"only {[address for address, _ in heard]}"
            event = self._hearer.next_event(0.1)
            if isinstance(event, Message):
                heard.append((parse(self._federation, event.topic), event.payload))
                self._hearer.ack(event)
        return heard

    def close(self) -> None:
        self._client.stop(1)
        self._hearer.stop(1)
        self.outbox.__exit__()


def _wait_for(client: Client, count: int, kind: type) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while count:
        assert time.monotonic() < deadline
        count -= isinstance(client.next_event(0.1), kind)


@pytest.fixture
def link(mosquitto: EmbeddedBroker, tmp_path: Path) -> Iterator[Callable[[int], Link]]:
    links: list[Link] = []

    def link(port: int) -> Link:
        links.append(Link(mosquitto, port, f"test-{tmp_path.name}", tmp_path))
        return links[-1]

    yield link
    for one in links:
        one.close()


def has_manifest(addresses: list[Any]) -> bool:
    return any(isinstance(address, UpdateManifestOf) for address in addresses)


# counted from the beginning of each connection: in its first packet, in a chunk's header, in its middle, one byte
# before and behind its end, and in a later one
CUTS = (7, 200, CHUNK // 2, CHUNK + 180, CHUNK + 300, 2 * CHUNK)


@pytest.mark.parametrize("cuts", [CUTS[:3], CUTS[3:]], ids=["early", "late"])
def test_a_link_cut_at_any_byte_costs_at_most_one_chunk(
    mosquitto: EmbeddedBroker, link: Any, fault_proxy: Any, cuts: tuple[int, ...]
) -> None:
    proxy = fault_proxy(mosquitto.settings.port)
    proxy.cuts.extend(cuts)
    node = link(proxy.port)
    update = node.put(update_of(BODY))
    node.publisher.update(update.update_id)
    node.until_handed_over()
    heard = node.arrived(has_manifest)
    times = Counter(address.index for address, _ in heard if isinstance(address, UpdateChunk))
    chunks = {address.index: payload for address, payload in heard if isinstance(address, UpdateChunk)}
    assert proxy.connections == len(cuts) + 1
    assert b"".join(chunks[index] for index in sorted(chunks)) == BODY
    assert sum(times.values()) <= len(split(BODY, CHUNK)) + len(cuts)
    assert proxy.bytes_up <= len(BODY) + len(cuts) * CHUNK + (len(cuts) + 1 + len(times)) * OVERHEAD


def test_the_manifest_comes_last_and_is_handed_over_once(mosquitto: EmbeddedBroker, link: Any) -> None:
    node = link(mosquitto.settings.port)
    update = node.put(update_of(BODY))
    node.publisher.update(update.update_id)
    node.until_handed_over()
    addresses = [address for address, _ in node.arrived(has_manifest)]
    expected = [UpdateChunk("home-1", update.update_id, index) for index in range(5)]
    assert addresses == [*expected, UpdateManifestOf("home-1", update.update_id)]
    assert node.handed_over == [update.update_id]


def test_an_offer_is_the_manifest_alone_and_what_is_asked_for_follows(mosquitto: EmbeddedBroker, link: Any) -> None:
    node = link(mosquitto.settings.port)
    update = node.put(update_of(BODY))
    node.publisher.offer(update.update_id)
    node.until_handed_over()
    node.publisher.chunks(update.update_id, (1, 4, 99))
    node.until_handed_over(times=2)
    addresses = [address for address, _ in node.arrived(lambda addresses: len(addresses) == 3)]
    assert addresses[0] == UpdateManifestOf("home-1", update.update_id)
    assert [address.index for address in addresses[1:]] == [1, 4]


def test_an_update_that_was_dropped_on_its_way_is_not_sent_to_its_end(
    mosquitto: EmbeddedBroker, link: Any, fault_proxy: Any
) -> None:
    proxy = fault_proxy(mosquitto.settings.port)
    proxy.bytes_per_s = 10 * CHUNK
    node = link(proxy.port)
    first, second = node.put(update_of(BODY, 0)), node.put(update_of(BODY[:CHUNK], 1))
    node.publisher.update(first.update_id)
    node.publisher.forget(first.update_id)
    node.outbox.drop(first.update_id)
    node.publisher.update(second.update_id)
    node.until_handed_over(times=2)
    addresses = [address for address, _ in node.arrived(has_manifest)]
    assert [address.update_id for address in addresses] == [first.update_id, second.update_id, second.update_id]


def test_a_chunk_that_was_spoilt_on_the_link_is_noticed_and_sent_again(
    mosquitto: EmbeddedBroker, link: Any, fault_proxy: Any
) -> None:
    proxy = fault_proxy(mosquitto.settings.port)
    node = link(proxy.port)
    update = node.put(update_of(BODY))
    proxy.corrupt.add(2 * CHUNK)  # in the midst of the second chunk
    node.publisher.update(update.update_id)
    node.until_handed_over()
    heard = node.arrived(has_manifest)
    assembly = Assembly()
    for address, payload in heard[:-1]:
        assembly = assembly.with_chunk(address.index, payload)
    assembly = assembly.with_manifest(UpdateManifest.from_bytes(heard[-1][1]).body)
    assert assembly.missing == (1,)
    node.publisher.chunks(update.update_id, assembly.missing)
    ((_, payload),) = node.arrived(lambda addresses: len(addresses) == 1)
    assert assembly.with_chunk(1, payload).join() == BODY


def test_of_each_update_the_body_is_read_once_and_not_kept(
    mosquitto: EmbeddedBroker, link: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = link(mosquitto.settings.port)
    read, alive = list[str](), list[weakref.ref[Update]]()
    load = node.outbox.load

    def counted(id_: str) -> Update:
        gc.collect()
        assert all(one() is None for one in alive), "there are two bodies in memory"
        update: Update = load(id_)
        read.append(id_)
        alive.append(weakref.ref(update))
        return update

    monkeypatch.setattr(node.outbox, "load", counted)
    updates = [node.put(update_of(BODY, sequence)).update_id for sequence in range(2)]
    for one in updates:
        node.publisher.update(one)
    node.until_handed_over(times=2)
    node.publisher.offer(updates[0])
    node.until_handed_over(times=3)
    assert read == updates
    gc.collect()
    assert all(one() is None for one in alive)


def test_a_small_update_goes_out_in_one_message(mosquitto: EmbeddedBroker, link: Any) -> None:
    node = link(mosquitto.settings.port)
    update = node.put(update_of(BODY[:100], inline=100))
    node.publisher.update(update.update_id)
    node.until_handed_over()
    ((address, payload),) = node.arrived(has_manifest)
    assert address == UpdateManifestOf("home-1", update.update_id)
    assert split_body(payload) == (update.manifest, BODY[:100])

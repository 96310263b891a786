"""Versions piece by piece: what is asked for, and over real links that are slow, cut, or lead to a broker that forgets.

Over a real link the node's clock is what the link has carried, at so many bytes a second: no test waits for seconds.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.client import Client
from broker.embedded import EmbeddedBroker
from broker.events import Disconnected, Message, Publication, Published
from edge_node.effects import EndFetch, FetchPiece, Note, ServeAdapter
from edge_node.events import BrokerConnected, BrokerLost, Ticked
from edge_node.node import Equipment, Node, subscriptions
from edge_node.outbox import Outbox
from edge_node.settings import EdgeSettings
from edge_node.state import Identity
from schemas.adapter import Adapter, Layout, LoraConfig
from schemas.chunks import describe, split
from schemas.messages import CoordinatorState, GlobalManifest, GlobalPointer, ReleaseReport
from schemas.topics import (
    Address,
    CoordinatorStateOf,
    GlobalChunk,
    GlobalHead,
    GlobalManifestOf,
    GlobalRelease,
    parse,
    route,
)
from tests.patience import PATIENCE_S

CHUNK = 8 * 1024
LAYOUT = Layout(lora=LoraConfig(rank=1), tensors=(("x.lora_A.weight", (1, 40_000)), ("x.lora_B.weight", (40_000, 1))))
BASE_MODEL = "ba5e" * 16
OVERHEAD = 1000  # bytes of a packet that are no chunk, and of connecting again


def asked_for(effects: Any) -> list[Address]:
    return [effect.piece for effect in effects if isinstance(effect, FetchPiece)]


def given_up(effects: Any) -> list[Address]:
    return [effect.piece for effect in effects if isinstance(effect, EndFetch)]


def test_each_piece_is_asked_for_when_the_one_before_is_here(member: Any, coordinator: Any) -> None:
    version = coordinator.version(3, chunk_size=100)
    pieces = [GlobalManifestOf(3), *(GlobalChunk(3, index) for index in range(len(version.chunks)))]
    payloads = [version.manifest, *version.chunks]
    effects = member.hears(GlobalHead(), version.pointer)
    for piece, payload in zip(pieces, payloads, strict=True):
        assert asked_for(effects) == [piece]
        effects = member.hears(piece, payload)
        assert given_up(effects) == [piece]
    assert asked_for(effects) == []
    assert member.version_held() == 3


def test_a_slow_download_that_goes_on_is_not_asked_for_again(member: Any, coordinator: Any) -> None:
    version = coordinator.version(3, chunk_size=10)
    member.hears(GlobalHead(), version.pointer)
    member.hears(GlobalManifestOf(3), version.manifest)
    for index, chunk in enumerate(version.chunks):
        for _ in range(14):
            assert member.waits(1) == ()
        member.hears(GlobalChunk(3, index), chunk)
    assert member.now > 100
    assert member.version_held() == 3
    assert len(asked_for(member.asked)) == 1 + len(version.chunks)


def test_a_link_on_which_a_piece_takes_longer_than_our_patience_teaches_more_of_it(
    member: Any, coordinator: Any
) -> None:
    version = coordinator.version(3, chunk_size=100)
    member.hears(GlobalHead(), version.pointer)
    member.hears(GlobalManifestOf(3), version.manifest)
    for index, chunk in enumerate(version.chunks):
        for _ in range(50):
            member.waits(1)
        member.hears(GlobalChunk(3, index), chunk)
    assert member.version_held() == 3
    times = Counter(asked_for(member.asked))
    assert times[GlobalChunk(3, 0)] == 2
    assert all(times[GlobalChunk(3, index)] == 1 for index in range(1, len(version.chunks)))


def test_of_a_version_that_stays_away_in_its_midst_only_that_piece_is_asked_for_again(
    member: Any, coordinator: Any
) -> None:
    version = coordinator.version(3, chunk_size=100)
    member.hears(GlobalHead(), version.pointer)
    member.hears(GlobalManifestOf(3), version.manifest)
    member.hears(GlobalChunk(3, 0), version.chunks[0])
    effects = [effect for _ in range(30) for effect in member.waits(1)]
    assert given_up(effects) == asked_for(effects) == [GlobalChunk(3, 1)]
    assert any("version 3 is not complete" in effect.text for effect in effects if isinstance(effect, Note))
    for index in range(1, len(version.chunks)):
        member.hears(GlobalChunk(3, index), version.chunks[index])
    assert member.version_held() == 3


def test_on_a_new_connection_the_piece_on_its_way_has_all_its_time_again(member: Any, coordinator: Any) -> None:
    version = coordinator.version(3, chunk_size=100)
    member.hears(GlobalHead(), version.pointer)
    for _ in range(5):
        member.waits(14)
        member.tell(BrokerLost(member.now, "the link is down"))
        member.waits(1000)
        effects = member.tell(BrokerConnected(member.now, None))
        assert given_up(effects) == asked_for(effects) == []


def test_what_came_of_a_release_is_not_asked_for_again_when_the_head_names_it(
    start_node: Any, coordinator: Any
) -> None:
    node = start_node(serving={"http": "127.0.0.1:8000"})
    node.joins(coordinator.terms())
    version = coordinator.version(3, chunk_size=100)
    node.hears(GlobalRelease(), version.pointer)
    node.hears(GlobalManifestOf(3), version.manifest)
    node.hears(GlobalChunk(3, 0), version.chunks[0])
    node.hears(GlobalHead(), version.pointer)
    for index in range(1, len(version.chunks)):
        node.hears(GlobalChunk(3, index), version.chunks[index])
    assert node.version_held() == 3
    assert [effect.pointer.version for effect in node.asked if isinstance(effect, ServeAdapter)] == [3]
    assert max(Counter(asked_for(node.asked)).values()) == 1


class Version:
    """A global version in chunks, as a coordinator publishes it."""

    def __init__(self, number: int) -> None:
        values = np.random.default_rng(number).standard_normal(LAYOUT.size).astype(np.float32)
        self.adapter = Adapter(LAYOUT, values)
        body = self.adapter.to_safetensors()
        entry = describe(body, "safetensors", CHUNK, inline=0)
        manifest = GlobalManifest(
            epoch=1,
            version=number,
            parent=None,
            base_model=BASE_MODEL,
            lora=LAYOUT.lora,
            layout=LAYOUT.digest,
            strategy="fedbuff",
            inputs=(),
            release=ReleaseReport(version=number, variant="head", judged=number),
            created_at_ns=0,
            body=entry,
        )
        self.pointer = GlobalPointer(
            epoch=1, version=number, digest=entry.sha256, parent=None, size=len(body), chunks=len(entry.chunks)
        )
        self.pieces: dict[Address, bytes] = {
            **{GlobalChunk(number, index): chunk for index, chunk in enumerate(split(body, CHUNK))},
            GlobalManifestOf(number): manifest.to_bytes(),
        }


class NeverTrains:
    """What a node trains with in a federation that is finished."""

    def train(self, _job: object) -> None:
        raise AssertionError("the federation is finished")

    def abort(self) -> None: ...


class Link:
    """A node behind a link with faults, and somebody who publishes as the coordinator does."""

    def __init__(self, broker: EmbeddedBroker, proxy: Any, bytes_per_s: float, folder: Path) -> None:
        self.federation, self.proxy, self._bytes_per_s = f"test-{folder.name}", proxy, bytes_per_s
        self.idle_s, self._idle = 0.0, 0.0  # what time passes with each look in vain
        self.arrived, self.lost = Counter[Address](), 0
        self._coordinator = Client(broker.settings, f"{self.federation}-coordinator")
        self._coordinator.start()
        filters = subscriptions(self.federation, "home-1", is_signed=False)
        settings = broker.settings.model_copy(update={"port": proxy.port})
        self._client = Client(settings, f"{self.federation}-node", subscriptions=filters, clean_start=True)
        self._outbox = Outbox(folder / "outbox.db")
        equipment = Equipment(
            client=self._client,
            outbox=self._outbox,
            folder=folder,
            trainer=NeverTrains(),
            serving=None,
            layout_of=lambda _: LAYOUT,
            bundle=None,
            max_packet_size=settings.max_packet_size,
        )
        identity = Identity(self.federation, "b0" * 16, BASE_MODEL, EdgeSettings(node="home-1", data=folder))
        self.node = Node(identity, equipment, self.at)
        self.node.begin()
        self._client.start()

    @property
    def at(self) -> float:
        return float(self.proxy.bytes_down) / self._bytes_per_s + self._idle

    def publish(self, *said: tuple[Address, bytes]) -> None:
        """Publish all this, and wait until the broker has it."""
        waiting = {
            self._coordinator.publish(Publication(payload=payload, **route(self.federation, address)._asdict()))
            for address, payload in said
        }
        deadline = time.monotonic() + PATIENCE_S
        while waiting:
            assert time.monotonic() < deadline, "the broker takes nothing"
            event = self._coordinator.next_event(0.1)
            if isinstance(event, Published):
                waiting.discard(event.token)

    def announce(self, version: Version) -> None:
        terms = CoordinatorState(
            online=True,
            boot_id="c0" * 16,
            epoch=1,
            base_model=BASE_MODEL,
            base_model_name="tiny",
            lora=LAYOUT.lora,
            layout=LAYOUT.digest,
            strategy="fedbuff",
            one_update_per_version=False,
            codecs=("fp32",),
            finished=True,
        )
        head = (GlobalHead(), version.pointer.to_bytes())
        self.publish(*version.pieces.items(), (CoordinatorStateOf(), terms.to_bytes()), head)

    def works_until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not done():
            assert time.monotonic() < deadline, f"only {len(self.arrived)} pieces have come"
            event = self._client.next_event(0.05)
            if isinstance(event, Message):
                address = parse(self.federation, event.topic)
                if isinstance(address, GlobalManifestOf | GlobalChunk):
                    self.arrived[address] += 1
            self.lost += isinstance(event, Disconnected)
            self._idle += self.idle_s if event is None else 0
            self.node.take(event if event is not None else Ticked(self.at), self.at, time.time_ns())

    def works_until_held(self, version: Version) -> None:
        self.works_until(lambda: self.node.state.held is not None and self.node.state.held.adapter == version.adapter)

    def close(self) -> None:
        self._client.stop(1)
        self._coordinator.stop(1)
        self._outbox.__exit__()


@pytest.fixture
def link(each_broker: EmbeddedBroker, fault_proxy: Any, tmp_path: Path) -> Iterator[Callable[..., Link]]:
    links: list[Link] = []

    def link(bytes_per_s: float, cuts_down: tuple[int, ...] = ()) -> Link:
        proxy = fault_proxy(each_broker.settings.port)
        proxy.cuts_down.extend(cuts_down)
        links.append(Link(each_broker, proxy, bytes_per_s, tmp_path))
        return links[-1]

    yield link
    for one in links:
        one.close()


def test_a_download_that_takes_longer_than_our_patience_is_sent_once(link: Callable[..., Link]) -> None:
    version, later = Version(3), Version(4)  # with the later one comes whatever the broker still has of the first
    node = link(bytes_per_s=2000)
    node.proxy.bytes_per_s = 200_000  # so that the node sees each piece arrive
    node.announce(version)
    node.works_until_held(version)
    assert node.at > 100
    node.announce(later)
    node.works_until_held(later)
    assert node.arrived == Counter([*version.pieces, *later.pieces])


# counted from the beginning of each connection: in its first packet, in a chunk's header, in its middle, one byte
# before and behind its end, and in a later one
CUTS = (3, 200, CHUNK // 2, CHUNK + 180, CHUNK + 300, 2 * CHUNK)


@pytest.mark.parametrize("cuts", [CUTS[:3], CUTS[3:]], ids=["early", "late"])
def test_a_download_that_is_cut_at_any_byte_costs_at_most_one_chunk(
    each_broker: EmbeddedBroker, link: Callable[..., Link], cuts: tuple[int, ...]
) -> None:
    version = Version(3)
    node = link(bytes_per_s=2000, cuts_down=cuts)
    # mosquitto sends again what it has no answer for; iotcore does not if it was retained, and is asked in time
    node.idle_s = 0.5 if each_broker.kind == "iotcore" else 0
    node.announce(version)
    node.works_until_held(version)
    assert node.proxy.connections == len(cuts) + 1
    assert sum(node.arrived.values()) <= len(version.pieces) + len(cuts)
    carried = sum(map(len, version.pieces.values())) + len(cuts) * CHUNK
    assert node.proxy.bytes_down <= carried + (len(cuts) + 1 + len(version.pieces)) * OVERHEAD


def test_of_a_version_that_a_newer_one_supersedes_no_more_comes_than_what_was_on_its_way(
    link: Callable[..., Link],
) -> None:
    older, newer = Version(3), Version(4)
    node = link(bytes_per_s=2000)
    node.announce(older)
    node.works_until(lambda: sum(node.arrived.values()) == 5)
    node.announce(newer)
    before = node.arrived.total()
    node.works_until_held(newer)
    on_their_way = 2  # one that had come, and the one that was asked for before the newer head was looked at
    assert node.arrived.total() <= before + on_their_way + len(newer.pieces)


def test_a_broker_that_has_lost_everything_sends_only_what_is_still_missing(
    each_broker: EmbeddedBroker, link: Callable[..., Link]
) -> None:
    version = Version(3)
    node = link(bytes_per_s=2000)
    node.announce(version)
    node.works_until(lambda: sum(node.arrived.values()) == 10)
    each_broker.kill()
    node.works_until(lambda: node.lost > 0)
    each_broker.restart()
    node.announce(version)
    node.works_until_held(version)
    assert node.arrived.total() <= len(version.pieces) + 1

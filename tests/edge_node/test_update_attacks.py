"""The attacks that The Update Framework names, played against a node that believes its root alone: nothing is loaded.

Whoever plays them has the broker: every topic, every old message, any order, any time. What they lack is the key.
"""

import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from edge_node.core import initial_state, next_deadline, step
from edge_node.effects import (
    Effect,
    KeepVersion,
    RememberCertificate,
    RememberMark,
    RememberReleaseMark,
    ServeAdapter,
    Warn,
)
from edge_node.events import BrokerConnected, Heard, LayoutDescribed, Ticked
from edge_node.settings import EdgeSettings
from edge_node.state import EdgeState, Identity, Memory
from schemas.messages import KeyCertificate, Message, Receipt
from schemas.signing import SigningKey, sign
from schemas.topics import (
    Address,
    CoordinatorStateOf,
    GlobalChunk,
    GlobalHead,
    GlobalKeys,
    GlobalManifestOf,
    GlobalRelease,
    ReceiptFor,
    route,
)
from schemas.trust import Trust
from tests.edge_node.pieces import Pieces

ROOT, ONLINE, NEXT, STOLEN = (SigningKey.from_bytes(bytes([number]) * 32) for number in range(4))
NOW_NS, SECOND_NS = 1_800_000_000 * 10**9, 10**9
LIFETIME_NS = 3600 * SECOND_NS
TAMPERED = 10_000


def certificate(number: int = 1, key: SigningKey = ONLINE, lifetime_ns: int = 10 * LIFETIME_NS) -> KeyCertificate:
    return KeyCertificate(
        federation="home", number=number, key=key.public, issued_at_ns=NOW_NS, expires_at_ns=NOW_NS + lifetime_ns
    )


@dataclass
class Victim:
    """A node's core, its clocks, and all that it was made to do."""

    state: EdgeState
    now: float = 0.0
    done: list[Effect] = field(default_factory=list)
    pieces: Pieces = field(default_factory=Pieces)

    def tell(self, event: Any) -> tuple[Effect, ...]:
        self.state, effects = step(self.state, event)
        self.done += effects
        for answer in self.pieces.answers(effects, self.now):
            effects += self.tell(answer)
        return effects

    def hears_raw(self, address: Address, payload: bytes) -> tuple[Effect, ...]:
        wall_ns = NOW_NS + int(self.now * SECOND_NS)
        return self.tell(Heard(self.now, route("home", address).topic, payload, wall_ns))

    def hears(
        self, address: Address, message: bytes | Message, key: SigningKey = ONLINE, federation: str = "home"
    ) -> tuple[Effect, ...]:
        """A message signed with this key, for this federation."""
        raw = message if isinstance(message, bytes) else message.to_bytes()
        return self.hears_raw(address, sign(key, route(federation, address).topic, raw))

    def is_offered(self, version: Any, key: SigningKey = ONLINE, federation: str = "home") -> tuple[Effect, ...]:
        """The whole of a version: head, manifest, chunks."""
        number = version.pointer.version
        effects = self.hears(GlobalHead(), version.pointer, key, federation)
        effects += self.hears(GlobalManifestOf(number), version.manifest, key, federation)
        for index, chunk in enumerate(version.chunks):
            effects += self.hears_raw(GlobalChunk(number, index), chunk)
        return effects

    @property
    def loaded(self) -> list[int]:
        """The versions that were ever held or served."""
        return [e.pointer.version for e in self.done if isinstance(e, KeepVersion | ServeAdapter)]

    @property
    def warnings(self) -> str:
        return "\n".join(effect.text for effect in self.done if isinstance(effect, Warn))


def new_victim(layout: Any, certified: bool = True, memory: Memory | None = None, http: str | None = None) -> Victim:
    serving: Any = {"http": http}
    settings = EdgeSettings(node="home-1", data=Path("examples.jsonl"), serving=serving)
    identity = Identity("home", boot_id="b0" * 16, base_model="ba5e" * 16, settings=settings)
    trust = Trust("home", ROOT.public)
    state, _ = initial_state(identity, memory or Memory(), 0.0, trust=trust)
    victim = Victim(state)
    victim.tell(BrokerConnected(0.0, None))
    if certified:
        victim.hears(GlobalKeys(), certificate(), ROOT)
    return victim


@pytest.fixture
def victim(coordinator: Any) -> Victim:
    """A node that knows the coordinator's key and the terms."""
    victim = new_victim(coordinator)
    joins(victim, coordinator)
    return victim


def joins(victim: Victim, coordinator: Any) -> None:
    victim.hears(CoordinatorStateOf(), coordinator.terms())
    victim.tell(LayoutDescribed(victim.now, coordinator.adapter(0).layout))


def fresh(version: Any, until_s: float = 3600) -> Any:
    """The version with a pointer that expires."""
    expires_at_ns = NOW_NS + int(until_s * SECOND_NS)
    return replace(version, pointer=version.pointer.model_copy(update={"expires_at_ns": expires_at_ns}))


def test_what_the_coordinator_has_signed_is_loaded(victim: Victim, coordinator: Any) -> None:
    victim.is_offered(fresh(coordinator.version(3, chunk_size=16)))
    assert victim.loaded == [3]
    assert RememberMark((1, 3)) in victim.done


# --- arbitrary software ---


def test_arbitrary_adapter_of_somebody_without_a_key_is_not_loaded(victim: Victim, coordinator: Any) -> None:
    evil = fresh(coordinator.version(4))
    for address, payload in ((GlobalHead(), evil.pointer.to_bytes()), (GlobalManifestOf(4), evil.manifest)):
        victim.hears_raw(address, payload)
    assert victim.loaded == []


@pytest.mark.parametrize("key", [STOLEN, ROOT])
def test_wrong_key(victim: Victim, coordinator: Any, key: SigningKey) -> None:
    victim.is_offered(fresh(coordinator.version(4)), key)
    assert victim.loaded == [] and "coordinator's key" in victim.warnings


def test_other_federation_of_the_same_coordinator(victim: Victim, coordinator: Any) -> None:
    victim.is_offered(fresh(coordinator.version(4)), federation="neighbours")
    assert victim.loaded == [] and "signature" in victim.warnings


def test_arbitrary_bytes_behind_a_true_pointer_are_not_loaded(victim: Victim, coordinator: Any) -> None:
    true, evil = fresh(coordinator.version(3, 1.0)), coordinator.version(3, 9.0)
    victim.hears(GlobalHead(), true.pointer)
    victim.hears(GlobalManifestOf(3), evil.manifest, STOLEN)
    assert victim.loaded == []


# --- mix and match ---


def test_mix_and_match_of_pointer_and_manifest_of_two_versions(victim: Victim, coordinator: Any) -> None:
    true, other = fresh(coordinator.version(3, 1.0)), coordinator.version(3, 2.0)
    victim.hears(GlobalHead(), true.pointer)
    victim.hears(GlobalManifestOf(3), other.manifest)
    assert victim.loaded == [] and "digest" in victim.warnings


def test_mix_and_match_of_topics_a_release_is_no_head_and_a_manifest_of_one_version_none_of_another(
    victim: Victim, coordinator: Any
) -> None:
    true = fresh(coordinator.version(3))
    as_release = sign(ONLINE, route("home", GlobalRelease()).topic, true.pointer.to_bytes())
    victim.hears_raw(GlobalHead(), as_release)
    assert victim.state.head is None
    victim.hears(GlobalHead(), true.pointer)
    as_version_2 = sign(ONLINE, route("home", GlobalManifestOf(2)).topic, true.manifest)
    victim.hears_raw(GlobalManifestOf(3), as_version_2)
    assert victim.loaded == []


def test_mix_and_match_of_chunks_of_two_versions(victim: Victim, coordinator: Any) -> None:
    true, other = fresh(coordinator.version(3, 1.0, chunk_size=16)), coordinator.version(2, 2.0, chunk_size=16)
    victim.hears(GlobalHead(), true.pointer)
    victim.hears(GlobalManifestOf(3), true.manifest)
    for index in range(len(true.chunks)):
        victim.hears_raw(GlobalChunk(3, index), other.chunks[index])
    assert victim.loaded == []


# --- rollback ---


def test_rollback_to_an_older_signed_version(victim: Victim, coordinator: Any) -> None:
    victim.is_offered(fresh(coordinator.version(3, 1.0)))
    victim.is_offered(fresh(coordinator.version(2, 2.0)))
    assert victim.loaded == [3] and "version 3" in victim.warnings


def test_rollback_below_a_version_that_was_only_seen_is_refused_too(victim: Victim, coordinator: Any) -> None:
    victim.hears(GlobalHead(), fresh(coordinator.version(3)).pointer)  # its bytes are held back
    victim.is_offered(fresh(coordinator.version(2)))
    assert victim.loaded == []
    victim.is_offered(fresh(coordinator.version(3)))
    assert victim.loaded == [3]


def test_rollback_across_a_restart_of_the_node(coordinator: Any) -> None:
    victim = new_victim(coordinator, memory=Memory(mark=(1, 3), release_mark=(1, 3)), http="127.0.0.1:0")
    joins(victim, coordinator)
    victim.is_offered(fresh(coordinator.version(2)))
    victim.hears(GlobalRelease(), fresh(coordinator.version(2)).pointer)
    assert victim.loaded == [] and victim.state.release is None


def test_rollback_of_what_is_served(coordinator: Any) -> None:
    victim = new_victim(coordinator, http="127.0.0.1:0")
    joins(victim, coordinator)
    for number in (3, 2):
        offered = fresh(coordinator.version(number, float(number)))
        victim.hears(GlobalRelease(), offered.pointer)
        victim.hears(GlobalManifestOf(number), offered.manifest)
    assert victim.loaded == [3]
    assert RememberReleaseMark((1, 3)) in victim.done


def test_rollback_of_the_coordinators_key(victim: Victim, coordinator: Any) -> None:
    victim.hears(GlobalKeys(), certificate(2, NEXT), ROOT)
    victim.hears(GlobalKeys(), certificate(1, ONLINE), ROOT)
    victim.is_offered(fresh(coordinator.version(3)), ONLINE)
    assert victim.loaded == []
    victim.is_offered(fresh(coordinator.version(3)), NEXT)
    assert victim.loaded == [3]


def test_rollback_of_the_terms_to_those_of_an_earlier_coordinator(victim: Victim, coordinator: Any) -> None:
    newer = coordinator.terms(epoch=5, boot_id="c5" * 16, strategy="fedavg")
    victim.hears(CoordinatorStateOf(), newer)
    victim.hears(CoordinatorStateOf(), coordinator.terms(finished=True))
    assert victim.state.terms == newer


# --- freeze ---


def test_freeze_a_pointer_that_has_expired_is_not_taken_up(victim: Victim, coordinator: Any) -> None:
    victim.now = 3601
    victim.is_offered(fresh(coordinator.version(3), until_s=3600))
    assert victim.loaded == [] and "expired" in victim.warnings


def test_freeze_a_signed_pointer_without_an_expiry_counts_as_expired(victim: Victim, coordinator: Any) -> None:
    victim.is_offered(coordinator.version(3))
    assert victim.loaded == []


def test_freeze_is_noticed_when_no_pointer_is_renewed_in_its_time(victim: Victim, coordinator: Any) -> None:
    victim.is_offered(fresh(coordinator.version(3), until_s=3600))
    victim.now = 1800
    victim.hears(GlobalHead(), fresh(coordinator.version(3), until_s=5400).pointer)
    due = next_deadline(victim.state)
    assert due is not None and due <= 5400
    victim.tell(Ticked(3601.0))
    assert "held back" not in victim.warnings and "holds newer ones back" not in victim.warnings
    victim.tell(Ticked(5401.0))
    assert victim.warnings.count("holds newer ones back") == 1
    assert victim.loaded == [3]  # what is held goes on being used


def test_freeze_by_an_expired_key_vouches_for_nothing(coordinator: Any) -> None:
    victim = new_victim(coordinator, certified=False)
    victim.hears(GlobalKeys(), certificate(lifetime_ns=SECOND_NS), ROOT)
    joins(victim, coordinator)
    victim.now = 2
    victim.is_offered(fresh(coordinator.version(3)))
    assert victim.loaded == [] and "alignfed keys rotate" in victim.warnings


# --- replay ---


@pytest.mark.parametrize("status", ["accepted", "aggregated", "duplicate", "stale", "rejected", "incomplete"])
def test_replayed_receipt_of_an_update_long_gone_changes_nothing(victim: Victim, status: Any) -> None:
    before = victim.state
    for _ in range(5):
        assert victim.hears(ReceiptFor("home-1"), Receipt(update_id="a" * 32, status=status, reason="no")) == ()
    assert victim.state == before


def test_replayed_receipt_of_another_node_is_none_of_ours(victim: Victim) -> None:
    receipt = Receipt(update_id="a" * 32, status="accepted")
    before = victim.state
    victim.hears_raw(ReceiptFor("home-1"), sign(ONLINE, route("home", ReceiptFor("other")).topic, receipt.to_bytes()))
    assert victim.state == replace(before, ignored=before.ignored + 1)


def test_a_receipt_that_nobody_has_signed_settles_nothing(victim: Victim) -> None:
    before = victim.state
    victim.hears_raw(ReceiptFor("home-1"), Receipt(update_id="a" * 32, status="accepted").to_bytes())
    assert victim.state == replace(before, ignored=before.ignored + 1)


# --- order ---


def test_what_comes_before_its_certificate_waits_for_it(coordinator: Any) -> None:
    victim = new_victim(coordinator, certified=False)
    version = fresh(coordinator.version(3))
    victim.hears(CoordinatorStateOf(), coordinator.terms())
    victim.hears(GlobalHead(), version.pointer)
    assert victim.state.head is None and victim.state.terms is None and victim.warnings == ""
    effects = victim.hears(GlobalKeys(), certificate(), ROOT)
    assert any(isinstance(effect, RememberCertificate) for effect in effects)
    victim.tell(LayoutDescribed(victim.now, coordinator.adapter(0).layout))
    victim.hears(GlobalManifestOf(3), version.manifest)
    assert victim.loaded == [3]


def test_what_waits_for_a_certificate_is_bounded(coordinator: Any) -> None:
    victim = new_victim(coordinator, certified=False)
    for size in (100, 200, 1 << 17):
        for address in (GlobalHead(), GlobalRelease(), CoordinatorStateOf(), GlobalManifestOf(1), ReceiptFor("home-1")):
            victim.hears(address, b"x" * size, STOLEN)
    assert sorted(len(kept.payload) for kept in victim.state.unverified.values()) == [370, 370, 370]


def test_a_node_without_keys_is_told_what_it_lacks(member: Any, coordinator: Any) -> None:
    payload = sign(ONLINE, route("home", GlobalHead()).topic, coordinator.version(3).pointer.to_bytes())
    effects = member.hears(GlobalHead(), payload)
    assert ["set security.keys" in effect.text for effect in effects if isinstance(effect, Warn)] == [True]


# --- in bulk ---


def test_ten_thousand_tampered_pointers_and_manifests_are_all_refused(victim: Victim, coordinator: Any) -> None:
    draw = random.Random(5)
    versions = [fresh(coordinator.version(number, float(number), chunk_size=draw.choice((0, 16)))) for number in (3, 4)]
    topics: list[Address] = [GlobalHead(), GlobalRelease(), GlobalManifestOf(3), GlobalManifestOf(4)]
    true = [
        (address, sign(ONLINE, route("home", address).topic, message))
        for version in versions
        for address, message in (
            (GlobalHead(), version.pointer.to_bytes()),
            (GlobalManifestOf(version.pointer.version), version.manifest),
        )
    ]
    genuine = {(route("home", address).topic, payload) for address, payload in true}
    refused = 0
    while refused < TAMPERED:
        address, payload = draw.choice(true)
        address, payload = tampered(draw, address, payload, topics)
        if (route("home", address).topic, payload) not in genuine:
            before = victim.state
            victim.hears_raw(address, payload)
            after = victim.state
            assert (after.head, after.release, after.memory) == (before.head, before.release, before.memory)
            refused += 1
        if refused == TAMPERED // 2:  # from now on a manifest is waited for
            victim.hears(GlobalHead(), versions[0].pointer)
    assert victim.loaded == []
    victim.is_offered(versions[0])
    assert victim.loaded == [3]


def tampered(draw: random.Random, address: Address, payload: bytes, topics: list[Address]) -> tuple[Address, bytes]:
    """A true message, harmed in one of eight ways."""
    head, message = payload[:170], payload[170:]
    place = draw.randrange(len(payload))
    digit = draw.randrange(len(message))
    topic = route("home", address).topic
    match draw.randrange(8):
        case 0:
            return address, payload[:place] + bytes([payload[place] ^ 1 << draw.randrange(8)]) + payload[place + 1 :]
        case 1:
            return address, payload[:place]
        case 2:
            return address, payload + draw.randbytes(draw.randint(1, 9))
        case 3:
            return draw.choice(topics), payload
        case 4:
            return address, sign(STOLEN, topic, message)
        case 5:
            return address, head + message[:digit] + str(draw.randrange(10)).encode() + message[digit + 1 :]
        case 6:
            return address, sign(ONLINE, topic.replace("home", "homes"), message)
        case _:
            return address, message

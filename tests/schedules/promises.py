"""What must hold after every step of a schedule, and at its end: it watches what actors say, do and have on disk.

It keeps books of its own and believes nobody's: what was receipted comes from the wire, what became of it from the
journal on disk. A promise that does not hold is a `Broken`, in words.
"""

import hashlib
import sqlite3
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from broker.events import Publication
from coordinator.journal import fold
from coordinator.publisher import kept_versions
from coordinator.registry import Registry
from coordinator.state import FederationState
from edge_node.effects import DropUpdate, Effects, SettleUpdate, StoreUpdate, Warn
from schemas.messages import GlobalManifest, GlobalPointer, Receipt
from schemas.reading import message_on
from schemas.signing import is_signed
from schemas.topics import (
    Address,
    CoordinatorStateOf,
    GlobalAverageChunk,
    GlobalChunk,
    GlobalHead,
    GlobalKeys,
    GlobalManifestOf,
    GlobalRelease,
    NodeStateOf,
    ReceiptFor,
    parse,
    route,
)
from tests.schedules.actors import FEDERATION, CoordinatorActor, NodeActor
from tests.schedules.network import Network

FINAL = ("accepted", "aggregated", "duplicate", "stale", "rejected")
TAKEN = ("accepted", "aggregated", "duplicate")
OF_VERSIONS = (GlobalManifestOf, GlobalChunk, GlobalAverageChunk)


class Broken(AssertionError):
    """A promise does not hold."""


class Books:
    """What was seen of a federation so far."""

    def __init__(self, coordinator: CoordinatorActor, nodes: Iterable[NodeActor], network: Network) -> None:
        self.coordinator, self.nodes, self.network = coordinator, list(nodes), network
        self.manifests: dict[int, GlobalManifest] = {}
        self.pointers: dict[type[Address], tuple[int, int]] = {}  # (epoch, version), as last published
        self.said: dict[str, set[str]] = {}  # by update, every final status that a receipt was published with
        self.owner: dict[str, str] = {}  # the node of each update that was stored
        self.waiting: dict[str, set[str]] = {node.name: set() for node in self.nodes}  # stored, without an answer
        self.explained: dict[str, str] = {}  # updates that their nodes gave up, and why
        self.settled: set[str] = set()
        self.held: dict[str, int] = {}  # the highest version of each node
        self.marks: dict[str, tuple[int, int]] = {}
        self.last_held: dict[str, object] = {}
        self.served: dict[str, int] = {}  # how many of the adapters of this process were looked at
        self.mark_served: dict[str, tuple[int, int]] = {}

    # What goes over the network.

    def published(self, client_id: str, publication: Publication) -> None:
        """An actor hands this to its connection."""
        address = parse(FEDERATION, publication.topic)
        assert address is not None, publication.topic
        if self.coordinator.keys_folder is not None and publication.payload:
            must = address.spec.signer is not None
            if must != is_signed(publication.payload):
                raise Broken(f"{publication.topic} goes out {'un' * must}signed")
        if client_id != self.coordinator.client_id or not publication.payload:
            return
        if isinstance(address, ReceiptFor):
            self._on_receipt(message_on(address, publication.payload))
        elif isinstance(address, GlobalManifestOf):
            self._on_manifest(message_on(address, publication.payload))
        elif isinstance(address, CoordinatorStateOf):
            self.network.told_again = True  # it says all that is retained once more
        elif isinstance(address, GlobalHead | GlobalRelease):
            self._on_pointer(type(address), message_on(address, publication.payload))

    def _on_receipt(self, receipt: Receipt) -> None:
        journal = self.coordinator.journal
        if receipt.status not in FINAL:
            return
        if journal is None or journal.in_transaction:
            raise Broken(f"update {receipt.update_id[:8]} is told {receipt.status} before that is on disk")
        self.said.setdefault(receipt.update_id, set()).add(receipt.status)
        if receipt.status in TAKEN and self._fate_of(journal, receipt.update_id) is None:
            raise Broken(f"update {receipt.update_id[:8]} is told {receipt.status}, and the journal does not know it")

    def _on_manifest(self, manifest: GlobalManifest) -> None:
        known = self.manifests.get(manifest.version)
        if known is not None and known != manifest:
            raise Broken(f"there are two versions {manifest.version}: {known.digest[:8]} and {manifest.digest[:8]}")
        before = self.manifests.get(manifest.version - 1)
        if before is not None and manifest.parent != before.digest:
            raise Broken(f"version {manifest.version} is not of version {before.version}")
        self.manifests[manifest.version] = manifest

    def _on_pointer(self, kind: type[Address], pointer: GlobalPointer) -> None:
        mark = (pointer.epoch, pointer.version)
        if mark[0] < self.pointers.get(kind, mark)[0] or (kind is GlobalHead and mark < self.pointers.get(kind, mark)):
            raise Broken(f"{kind.__name__} falls from {self.pointers[kind]} to {mark}")
        self.pointers[kind] = mark

    def taken(self, _client_id: str, publication: Publication) -> None:
        """The broker has it now: a pointer names what is there, and nothing goes that a pointer names."""
        address = parse(FEDERATION, publication.topic)
        if not self.network.is_whole:
            return
        if isinstance(address, GlobalHead | GlobalRelease):
            self._all_is_there(message_on(address, publication.payload), publication.topic)
        elif isinstance(address, OF_VERSIONS) and not publication.payload:
            for kind in (GlobalHead(), GlobalRelease()):
                if (pointer := self.retained_pointer(kind)) is not None and pointer.version == address.version:
                    self._all_is_there(pointer, f"after {publication.topic} is deleted, {type(kind).__name__}")

    def _all_is_there(self, pointer: GlobalPointer, who: str) -> None:
        kind = GlobalAverageChunk if pointer.variant == "average" else GlobalChunk
        parts: list[Address] = [GlobalManifestOf(pointer.version)]
        parts += [kind(pointer.version, index) for index in range(pointer.chunks)]
        if lacking := [part for part in parts if route(FEDERATION, part).topic not in self.network.kept.retained]:
            raise Broken(f"{who} points to version {pointer.version}, and {lacking[0]} is not there")

    def retained_pointer(self, address: GlobalHead | GlobalRelease) -> GlobalPointer | None:
        kept = self.network.kept.retained.get(route(FEDERATION, address).topic)
        return None if kept is None else message_on(address, kept.payload)

    # What a node has done.

    def node_did(self, node: NodeActor, effects: Effects) -> None:
        """A node's turn is over, and all of this is done."""
        waiting = self.waiting[node.name]
        for effect in effects:
            match effect:
                case StoreUpdate(update):
                    self.owner[update.update_id] = node.name
                    waiting.add(update.update_id)
                case SettleUpdate(id_):
                    if not self.said.get(id_, set()) & {*TAKEN}:
                        raise Broken(f"{node.name} forgets update {id_[:8]}, which has no receipt")
                    waiting.discard(id_)
                    self.settled.add(id_)
                case DropUpdate(id_):
                    why = next((e.text for e in effects if isinstance(e, Warn) and e.update == id_), None)
                    if why is None:
                        raise Broken(f"{node.name} drops update {id_[:8]} and does not say why")
                    waiting.discard(id_)
                    self.explained[id_] = why
        self._look_at(node)

    def _look_at(self, node: NodeActor) -> None:
        """What it holds, and serves."""
        held = node.state.held
        if held is not None and self.last_held.get(node.name) is not held:
            version = held.pointer.version
            if version < self.held.get(node.name, version):
                raise Broken(f"{node.name} holds version {version}, and held {self.held[node.name]} before")
            self._is_on_the_chain(node.name, held.pointer, held.adapter.digest)
            self.last_held[node.name], self.held[node.name] = held, version
        if (mark := node.state.memory.mark) < self.marks.get(node.name, mark):
            raise Broken(f"the mark of {node.name} falls from {self.marks[node.name]} to {mark}")
        self.marks[node.name] = mark
        if node.served is not None:
            for pointer, adapter in node.served.adapters[self.served.get(node.name, 0) :]:
                mark = (pointer.epoch, pointer.version)
                if mark < self.mark_served.get(node.name, mark):
                    raise Broken(f"{node.name} serves {mark} after {self.mark_served[node.name]}")
                self._is_on_the_chain(node.name, pointer, adapter.digest)
                self.mark_served[node.name] = mark
            self.served[node.name] = len(node.served.adapters)

    def _is_on_the_chain(self, who: str, pointer: GlobalPointer, digest: str) -> None:
        manifest = self.manifests.get(pointer.version)
        body = None if manifest is None else manifest.average if pointer.variant == "average" else manifest.body
        if body is None or body.sha256 != digest:
            raise Broken(f"{who} loads a version {pointer.version} that is not on the chain")

    def node_ended(self, node: NodeActor) -> None:
        """Its process has ended in the midst of a turn, or between two."""
        # what the core had decided by then may be on disk or not, and nobody was told
        known = {update.update_id for update in node.state.outbox} if node.node is not None else set()
        for id_ in self.waiting[node.name] - known:
            self.explained.setdefault(id_, "its node ended while it dealt with it")
        self.last_held.pop(node.name, None)
        self.served.pop(node.name, None)
        self.mark_served.pop(node.name, None)

    def node_began(self, node: NodeActor) -> None:
        """It has read its disk: nothing that it promised to keep is missing."""
        there = {update.update_id for update in node.outbox.waiting()} if node.outbox is not None else set()
        gone = self.waiting[node.name] - there
        self.waiting[node.name] &= there
        for id_ in sorted(gone):
            if id_ not in self.explained and not self.said.get(id_):
                raise Broken(f"update {id_[:8]} is not on {node.name}'s disk after its start, and nobody has it")
        for id_ in there - self.waiting[node.name]:  # stored, or not forgotten, by a turn that was cut off
            self.owner[id_] = node.name
            self.waiting[node.name].add(id_)
            self.explained.pop(id_, None)

    # What the coordinator has on disk.

    def coordinator_began(self) -> None:
        """It has read its disk: it knows all that it ever told anybody."""
        journal, head = self.coordinator.journal, self.coordinator.state.head
        assert journal is not None
        for id_, statuses in self.said.items():
            if statuses & {*TAKEN} and self._fate_of(journal, id_) is None:
                raise Broken(f"update {id_[:8]} has a receipt, and the coordinator does not know it after its start")
        if self.manifests and max(self.manifests) > head.version:
            raise Broken(f"version {max(self.manifests)} was published, and the coordinator knows {head.version}")

    def _fate_of(self, journal: sqlite3.Connection, id_: str) -> str | None:
        row = journal.execute("SELECT status FROM updates WHERE update_id = ?", (id_,)).fetchone()
        return None if row is None else str(row[0])

    # At the end.

    def all_is_well(self) -> None:
        """The network is whole again and nobody trains: everything has come to rest where it should."""
        state = self.coordinator.state
        self._journal_says(state)
        for node in self.nodes:
            head = node.state.held
            if head is None or (head.pointer.version, head.adapter.digest) != (state.head.version, state.head.digest):
                raise Broken(f"{node.name} does not hold the head, version {state.head.version}, at the end")
            if node.served is not None and node.state.served is not None:
                served = node.state.served
                if (served.version, served.variant) != (state.release.version, state.release.variant):
                    raise Broken(f"{node.name} does not serve the release at the end")
        self._retained(state)

    def _journal_says(self, state: FederationState) -> None:
        """Every update has one fate, every version follows the one before, and a second fold agrees."""
        journal = self.coordinator.journal
        assert journal is not None
        path = self.coordinator.folder / "journal.db"
        *_, (folded, _) = fold(path)
        if folded != state:
            raise Broken("the journal, folded, is another state than the coordinator's")
        rows = journal.execute("SELECT manifest FROM versions ORDER BY version").fetchall()
        manifests = [GlobalManifest.from_bytes(row[0]) for row in rows]
        if [manifest.version for manifest in manifests] != list(range(state.head.version + 1)):
            raise Broken(f"the versions on disk are {[manifest.version for manifest in manifests]}")
        for before, after in pairwise(manifests):
            if after.parent != before.digest:
                raise Broken(f"version {after.version} is not of version {before.version}")
        for manifest in manifests:
            if self.manifests.get(manifest.version, manifest) != manifest:
                raise Broken(f"version {manifest.version} on disk is not the one that was published")
        used = [one.update_id for manifest in manifests for one in manifest.inputs]
        if twice := {id_ for id_ in used if used.count(id_) > 1}:
            raise Broken(f"updates {[id_[:8] for id_ in sorted(twice)]} are in two versions")
        self._every_update_has_a_fate({*used}, state)
        self._registry_has(manifests)

    def _every_update_has_a_fate(self, used: set[str], state: FederationState) -> None:
        journal = self.coordinator.journal
        assert journal is not None
        making = state.pending.flush.buffer.updates if state.pending is not None else ()
        buffered = {update.update_id for update in (*making, *state.buffer.updates)}
        if both := used & buffered:
            raise Broken(f"updates {[id_[:8] for id_ in sorted(both)]} are in a version, and wait for one")
        for id_, owner in self.owner.items():
            statuses = self.said.get(id_, set())
            if id_ in used | buffered or statuses & {"stale", "rejected"}:
                continue
            fate = self._fate_of(journal, id_)
            if statuses & {*TAKEN} or id_ in self.settled:
                if fate not in ("stale", "rejected"):
                    raise Broken(f"update {id_[:8]} of {owner} has a receipt and is lost; the journal says {fate}")
            elif id_ not in self.explained:
                raise Broken(f"update {id_[:8]} of {owner} is gone without a word")

    def _registry_has(self, manifests: list[GlobalManifest]) -> None:
        registry = Registry(self.coordinator.folder / "adapters")
        for manifest in manifests:
            if not registry.has(manifest):
                raise Broken(f"the registry does not have version {manifest.version}")
            if hashlib.sha256(registry.body(manifest.version)).hexdigest() != manifest.digest:
                raise Broken(f"the registry's version {manifest.version} is damaged")
        for path in Path(registry.folder).rglob("*.unfinished"):
            if path.name.count(".") > 2:
                raise Broken(f"{path} was left behind")

    def _retained(self, state: FederationState) -> None:
        """On the broker lies what readers need and, where it lost nothing, nothing else."""
        for kind in (GlobalHead(), GlobalRelease()):
            if (pointer := self.retained_pointer(kind)) is None:
                raise Broken(f"there is no {type(kind).__name__} at the end")
            self._all_is_there(pointer, type(kind).__name__)
        head = self.retained_pointer(GlobalHead())
        assert head is not None
        if (head.version, head.digest) != (state.head.version, state.head.digest):
            raise Broken(f"the head on the broker is version {head.version}, the coordinator's {state.head.version}")
        if self.network.has_lost:
            return
        kept = kept_versions(state.head.version, state.release.version, self.coordinator.keep_versions)
        for topic in self.network.kept.retained:
            address = parse(FEDERATION, topic)
            usual = isinstance(address, CoordinatorStateOf | GlobalHead | GlobalKeys | GlobalRelease | NodeStateOf)
            if not usual and not (isinstance(address, OF_VERSIONS) and address.version in kept):
                raise Broken(f"{topic} is left on the broker at the end")

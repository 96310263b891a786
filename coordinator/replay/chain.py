"""Check the published versions of a recording of topics against the updates in it, one version at a time.

It needs no settings: every version names its parent, its inputs and their weights. What is checked: each body is the
one its manifest names, each parent the version before, each input was sent and is the one that is named, and where the
strategy adds deltas up, head = parent + sum of weight times delta, up to the rounding of float32. What the base model
added is on no topic and cannot be checked; that is said, not passed over.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from broker.recording import Row, read_rows
from coordinator.replay.source import NotReplayable, layout_of_body
from schemas.adapter import Adapter, InvalidAdapter, weighted_sum
from schemas.chunks import Assembly, CorruptChunk, verify
from schemas.codec import CodecError, decode
from schemas.messages import (
    GlobalManifest,
    GlobalPointer,
    InvalidMessage,
    UpdateManifest,
    VersionInput,
    split_body,
    update_id,
)
from schemas.reading import address_of, message_on
from schemas.signing import unsigned
from schemas.topics import Address, GlobalChunk, GlobalHead, GlobalManifestOf, UpdateChunk, UpdateManifestOf

ADDITIVE = ("fedavg", "fedbuff")  # head = parent + sum of weight * delta, whatever their settings
ROUNDINGS = 8  # between a sum in float64 and a head: mean, step, anchor and sum are each rounded to float32

Verdict = Literal["agrees", "differs", "unchecked"]
UpdateKey = tuple[str, str]  # node and update id


@dataclass(frozen=True)
class CheckedVersion:
    """What a check of one published version found; `row` is that of the pointer that made it the head."""

    version: int
    digest: str
    row: int
    verdict: Verdict
    reason: str


@dataclass
class _Seen:
    """What the recording has shown so far and may still be needed."""

    manifests: dict[int, GlobalManifest] = field(default_factory=dict)
    chunks: dict[int, dict[int, bytes]] = field(default_factory=dict)
    updates: dict[UpdateKey, UpdateManifest] = field(default_factory=dict)
    bodies: dict[UpdateKey, Assembly] = field(default_factory=dict)
    inline: dict[UpdateKey, bytes] = field(default_factory=dict)
    heads: dict[int, tuple[str, Adapter | None]] = field(default_factory=dict)


class _Fault(Exception):
    """What speaks against a version, or why nothing can be said of it."""

    def __init__(self, verdict: Verdict, reason: str) -> None:
        super().__init__(reason)
        self.verdict, self.reason = verdict, reason


def check_chain(path: Path) -> Iterator[CheckedVersion]:
    """Check each version when the head moves to it. Raises RecordingError."""
    seen = _Seen()
    for row in read_rows(path):
        if (found := address_of(row.topic)) is None:
            continue
        pointer = _take(seen, row, found[1])
        if pointer is not None and pointer.version not in seen.heads:
            yield _check(seen, pointer, row)
            _forget(seen, pointer.version)


def _take(seen: _Seen, row: Row, address: Address) -> GlobalPointer | None:
    try:
        match address:
            case GlobalHead():
                return message_on(address, row.payload)
            case GlobalManifestOf(version) if row.payload:
                seen.manifests[version] = message_on(address, row.payload)
            case GlobalChunk(version, index) if row.payload:
                seen.chunks.setdefault(version, {})[index] = row.payload
            case UpdateManifestOf(node, id_):
                _take_update(seen, (node, id_), unsigned(row.payload))
            case UpdateChunk(node, id_, index):
                key = (node, id_)
                seen.bodies[key] = seen.bodies.get(key, Assembly()).with_chunk(index, row.payload)
    except (InvalidMessage, CorruptChunk):
        pass  # the coordinator has refused it; what it has not refused is looked for among what remains
    return None


def _take_update(seen: _Seen, key: UpdateKey, payload: bytes) -> None:
    text, body = split_body(payload)
    if update_id(text) != key[1]:
        return
    manifest = seen.updates[key] = UpdateManifest.from_bytes(text)
    if manifest.body.chunks:
        seen.bodies[key] = seen.bodies.get(key, Assembly()).with_manifest(manifest.body)
    else:
        seen.inline[key] = body


def _check(seen: _Seen, pointer: GlobalPointer, row: Row) -> CheckedVersion:
    head: Adapter | None = None
    try:
        manifest, head = _published(seen, pointer)
        verdict, reason = _made_of_its_inputs(seen, manifest, head)
    except _Fault as fault:
        verdict, reason = fault.verdict, fault.reason
    seen.heads[pointer.version] = (pointer.digest, head)
    return CheckedVersion(pointer.version, pointer.digest, row.seq, verdict, reason)


def _published(seen: _Seen, pointer: GlobalPointer) -> tuple[GlobalManifest, Adapter]:
    """The manifest and the adapter of a version, verified against its pointer."""
    version = pointer.version
    manifest, parts = seen.manifests.get(version), seen.chunks.get(version, {})
    if manifest is None or len(parts) < len(manifest.body.chunks):
        raise _Fault("unchecked", "its manifest or some of its chunks are not in the recording")
    try:
        body = verify(b"".join(parts[index] for index in range(len(manifest.body.chunks))), manifest.body)
        adapter = Adapter.from_safetensors(layout_of_body(manifest.lora, manifest.layout, body), body)
    except (CorruptChunk, NotReplayable, InvalidAdapter, KeyError) as error:
        raise _Fault("differs", f"its body is not what its manifest names: {error}") from None
    if manifest.version != version or manifest.digest != pointer.digest:
        raise _Fault("differs", "the pointer names another adapter than the manifest")
    return manifest, adapter


def _made_of_its_inputs(seen: _Seen, manifest: GlobalManifest, head: Adapter) -> tuple[Verdict, str]:
    if manifest.version == 0:
        return "agrees", "the first version: its bytes are those that its manifest names"
    digest, parent = seen.heads.get(manifest.version - 1, (None, None))
    if digest is not None and manifest.parent != digest:
        return "differs", "its parent is not the version before"
    if (earlier := manifest.rolled_back_to) is not None:
        return _rolled_back(seen, manifest, earlier)
    if manifest.returned is not None:
        return "unchecked", f"it goes back to the {manifest.returned.variant} of version {manifest.returned.version}"
    deltas = [_delta(seen, manifest, head, given) for given in manifest.inputs]
    if digest is None or parent is None:
        return "unchecked", "the version before it is not in the recording"
    if manifest.anchor is not None:
        share = f"{manifest.anchor.weight:.3g}"
        return "unchecked", f"the base model's own delta is in it with weight {share}, and on no topic"
    if _adds_up(parent, deltas, [given.weight for given in manifest.inputs], head):
        return "agrees", f"its parent and {len(deltas)} deltas in the recording, by the published weights"
    if manifest.strategy in ADDITIVE:
        return "differs", "its parent plus its inputs by the published weights is another adapter"
    return "unchecked", f"{manifest.strategy} does not simply add deltas up; replay it with --journal"


def _rolled_back(seen: _Seen, manifest: GlobalManifest, earlier: int) -> tuple[Verdict, str]:
    """A version that the operator has ordered is an earlier one over again."""
    if earlier not in seen.heads:
        return "unchecked", f"version {earlier}, to which it goes back, is not in the recording"
    if seen.heads[earlier][0] != manifest.digest:
        return "differs", f"it says that it is version {earlier} over again, and is another adapter"
    return "agrees", f"version {earlier} over again, by the operator's word"


def _delta(seen: _Seen, manifest: GlobalManifest, head: Adapter, given: VersionInput) -> Adapter:
    """The delta of one input, as its node sent it."""
    key, name = (given.node, given.update_id), f"update {given.update_id[:8]} of {given.node}"
    update = seen.updates.get(key)
    if update is None:
        raise _Fault("unchecked", f"{name} is not in the recording")
    if (update.base_version, update.examples) != (given.base_version, given.examples):
        raise _Fault("differs", f"{name} is not what the version says of it")
    if update.layout != manifest.layout:
        raise _Fault("unchecked", f"{name} is of another rank")
    try:
        body = verify(seen.inline[key], update.body) if key in seen.inline else seen.bodies[key].join()
        return decode(body, head.layout, update.body.codec)
    except (CorruptChunk, CodecError) as error:
        raise _Fault("differs", f"{name} cannot be what went in: {error}") from None
    except (KeyError, ValueError):
        raise _Fault("unchecked", f"{name} is not whole in the recording") from None


def _adds_up(parent: Adapter, deltas: list[Adapter], weights: list[float], head: Adapter) -> bool:
    expected = weighted_sum([parent, *deltas], [1.0, *weights])
    size = np.abs(parent.values).astype(np.float64)
    for delta, weight in zip(deltas, weights, strict=True):
        size += abs(weight) * np.abs(delta.values)
    bound = ROUNDINGS * float(np.finfo(np.float32).eps) * size
    return bool(np.all(np.abs(head.values.astype(np.float64) - expected.values) <= bound))


def _forget(seen: _Seen, version: int) -> None:
    """Let go of what no later version is made of."""
    used: Mapping[int, GlobalManifest] = {v: m for v, m in seen.manifests.items() if v <= version}
    for number, manifest in used.items():
        for given in manifest.inputs:
            key = (given.node, given.update_id)
            for held in (seen.updates, seen.bodies, seen.inline):
                held.pop(key, None)
        del seen.manifests[number]
        seen.chunks.pop(number, None)
    for number in [v for v in seen.heads if v < version]:
        seen.heads[number] = (seen.heads[number][0], None)

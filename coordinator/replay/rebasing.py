"""Recorded updates in a course of events that is another than the recorded one.

A node has trained from a recorded version. Where the replay makes other versions, its update counts as started from the
version that is the head there when the recorded one was published: the manifest is rewritten so, and with it the
update's id and the topics of its chunks. Where the replay makes the same versions, nothing changes.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from broker.recording import Row
from coordinator.replay.source import Source
from coordinator.state import FederationState
from schemas.messages import InvalidMessage, UpdateManifest, join_body, split_body, update_id
from schemas.reading import address_of
from schemas.topics import UpdateChunk, UpdateManifestOf, route

Announced = Mapping[tuple[str, str], UpdateManifest]  # by node and update id
Heads = Mapping[int, tuple[int, str]]  # by recorded version, version and digest of what stands for it


def rebased(source: Source, current: Callable[[], FederationState]) -> Iterator[Row]:
    """The rows of a source, each update moved when its turn comes; `current` tells the state after the row before."""
    announced = _announced(source)
    # in a journal the row that made a version, in a recording of topics that of its pointer, which is none of `rows`
    published = deque(sorted((seq, version) for version, (_, seq) in source.recorded.items()))
    heads = {0: (0, source.adapter.digest)}
    for row in source.rows():
        while published and published[0][0] < row.seq:
            head = current().head
            heads[published.popleft()[1]] = (head.version, head.digest)
        yield _moved(row, announced, heads)


def _announced(source: Source) -> Announced:
    """Every manifest in the source, because chunks come before it."""
    manifests: dict[tuple[str, str], UpdateManifest] = {}
    for row in source.rows():
        match address_of(row.topic):
            case (_, UpdateManifestOf(node, id_)):
                text, _ = split_body(row.payload)
                if update_id(text) == id_:
                    try:
                        manifests[node, id_] = UpdateManifest.from_bytes(text)
                    except InvalidMessage:
                        continue  # the core refuses it, as it is
    return manifests


def _moved(row: Row, announced: Announced, heads: Heads) -> Row:
    if (found := address_of(row.topic)) is None:
        return row
    federation, address = found
    if not isinstance(address, UpdateManifestOf | UpdateChunk):
        return row
    manifest = announced.get((address.node, address.update_id))
    if manifest is None or manifest.base_version not in heads:
        return row
    version, digest = heads[manifest.base_version]
    if (version, digest) == (manifest.base_version, manifest.base_digest):
        return row
    text = manifest.model_copy(update={"base_version": version, "base_digest": digest}).to_bytes()
    topic = route(federation, replace(address, update_id=update_id(text))).topic
    if isinstance(address, UpdateChunk):
        return replace(row, topic=topic)
    _, body = split_body(row.payload)
    return replace(row, topic=topic, payload=text if manifest.body.chunks else join_body(text, body))

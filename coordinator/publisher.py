"""The order in which retained topics are published, so that a reader never sees a pointer to what is not there.

Work is a queue of phases. A phase begins when the broker has acknowledged all of the phase before it: first the bodies
and manifests, then the pointers (the atomic switch), then the deletion of versions that are no longer kept. Starting
over is always safe: every publication may be repeated.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple, Protocol

from broker.events import Publication, Published, QueueFull
from coordinator.registry import Registry
from schemas import chunks
from schemas.messages import GlobalManifest, GlobalPointer, ReleaseReport, Variant
from schemas.topics import Address, GlobalAverageChunk, GlobalChunk, GlobalHead, GlobalManifestOf, GlobalRelease, route

WINDOW = 32  # publications handed over and not yet acknowledged: bounds memory at 4 MB, whatever a body's size


class PublishRefused(RuntimeError):
    """The broker will not take what the coordinator must publish."""


class Publishes(Protocol):
    """What a phase is handed to: a broker client."""

    def publish(self, publication: Publication) -> int:
        """Queue a publication; its token comes back in `Published`."""


class Stamp(NamedTuple):
    """What ties a pointer to its time: the coordinator's epoch and, where pointers are signed, when it expires."""

    epoch: int
    expires_at_ns: int | None = None


class PhasedPublisher:
    """Publishes phase after phase, each only when the one before is acknowledged.

    At first, and from `pause` until `start_over`, nothing new goes out: a pointer must not overtake what it points to
    on the way to a broker that has forgotten it.
    """

    def __init__(self, client: Publishes) -> None:
        self._client, self._is_paused = client, True
        self._phases: deque[Iterator[Publication]] = deque()
        self._unacknowledged: dict[int, str] = {}

    def add(self, *phases: Iterable[Publication]) -> None:
        """Append phases to the queue; what is added in a pause is left out, for starting over says all."""
        if not self._is_paused:
            self._phases.extend(map(iter, phases))
            self._pump()

    def pause(self) -> None:
        """Forget what is queued, and wait for a start over."""
        self._phases.clear()
        self._is_paused = True

    @property
    def is_done(self) -> bool:
        """Whether the broker has acknowledged all of it."""
        return not self._phases and not self._unacknowledged

    def start_over(self, *phases: Iterable[Publication]) -> None:
        """Forget what is queued and begin with these phases instead."""
        self._phases.clear()
        self._is_paused = False
        self.add(*phases)

    def on_published(self, event: Published) -> None:
        """Take note of an acknowledgement; one for a publication of somebody else is ignored."""
        topic = self._unacknowledged.pop(event.token, None)
        if topic is not None and event.reason is not None:
            raise PublishRefused(f"the broker refused {topic}: {event.reason}; check the coordinator's access rights")
        self._pump()

    def _pump(self) -> None:
        while self._phases and len(self._unacknowledged) < WINDOW:
            publication = next(self._phases[0], None)
            if publication is not None:
                try:
                    self._unacknowledged[self._client.publish(publication)] = publication.topic
                except QueueFull:  # the broker takes others' first: again when it has, as `on_published` hears
                    self._phases[0] = chain((publication,), self._phases[0])
                    return
            elif self._unacknowledged:
                return
            else:
                self._phases.popleft()


def bodies(federation: str, registry: Registry, manifests: Iterable[GlobalManifest]) -> Iterator[Publication]:
    """Chunks, then the manifest, of each version; a body is read from disk when its turn comes."""
    for manifest in manifests:
        for index, chunk in enumerate(chunks.split(registry.body(manifest.version))):
            yield publication(federation, GlobalChunk(manifest.version, index), chunk)
        yield publication(federation, GlobalManifestOf(manifest.version), manifest.to_bytes())


def average_of(federation: str, registry: Registry, release: ReleaseReport) -> Iterator[Publication]:
    """The chunks of a running average, if that is what nodes serve; its manifest is out with the head."""
    if release.variant == "average":
        for index, chunk in enumerate(chunks.split(registry.body(release.version, "average"))):
            yield publication(federation, GlobalAverageChunk(release.version, index), chunk)


def head_pointer(federation: str, manifest: GlobalManifest, stamp: Stamp) -> Publication:
    """Train from this version."""
    return publication(federation, GlobalHead(), _pointer(manifest, "head", stamp).to_bytes())


def release_pointer(federation: str, served: GlobalManifest, release: ReleaseReport, stamp: Stamp) -> Publication:
    """Serve this version's head or average, as the report says."""
    pointer = _pointer(served, release.variant, stamp).model_copy(update={"judged": release.judged})
    return publication(federation, GlobalRelease(), pointer.to_bytes())


def _pointer(manifest: GlobalManifest, variant: Variant, stamp: Stamp) -> GlobalPointer:
    body = manifest.average if variant == "average" and manifest.average else manifest.body
    return GlobalPointer(
        epoch=stamp.epoch,
        expires_at_ns=stamp.expires_at_ns,
        version=manifest.version,
        digest=body.sha256,
        parent=manifest.parent,
        size=body.size,
        chunks=len(body.chunks),
        variant=variant,
    )


def deletions(federation: str, manifests: Iterable[GlobalManifest]) -> Iterator[Publication]:
    """Empty retained payloads, which delete; the manifest goes last, so that a crash leaves a name for what is left."""
    for manifest in manifests:
        for index in range(len(manifest.body.chunks)):
            yield publication(federation, GlobalChunk(manifest.version, index), b"")
        for index in range(len(manifest.average.chunks) if manifest.average else 0):
            yield publication(federation, GlobalAverageChunk(manifest.version, index), b"")
        yield publication(federation, GlobalManifestOf(manifest.version), b"")


def kept_versions(head: int, served: int, keep: int) -> set[int]:
    """The versions whose bodies are on the broker: the newest `keep`, and the one that is served."""
    return {*range(max(0, head - keep + 1), head + 1), served}


def publication(federation: str, address: Address, payload: bytes) -> Publication:
    """A payload with the topic, QoS, retain flag and expiry of its address."""
    return Publication(payload=payload, **route(federation, address)._asdict())

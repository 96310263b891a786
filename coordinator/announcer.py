"""What the coordinator has the broker hold, and what it tells nodes: said in order, and all of it again when need be.

Retained topics go out in the phases of `publisher.py`. What is retained can always be said again from the state and the
registry, so nothing here is on disk; an announcer remembers only which versions the broker may still have.
"""

import logging
from collections.abc import Callable, Iterator
from itertools import chain

from broker.client import MAX_IN_FLIGHT
from broker.connection import Connection
from broker.events import Publication, Published, QueueFull
from coordinator import publisher
from coordinator.intake import seconds
from coordinator.publisher import PhasedPublisher, Stamp, kept_versions
from coordinator.registry import Registry
from coordinator.settings import CoordinatorSettings
from coordinator.state import FederationState
from coordinator.trust.voice import CoordinatorKeys, Voice
from schemas.messages import CoordinatorState, GlobalManifest, Receipt, ReleaseReport
from schemas.topics import CoordinatorStateOf, GlobalKeys, ReceiptFor

log = logging.getLogger("coordinator")

MOST_WAITING = 10_000  # publications before receipts are let go: a node that hears nothing offers its update again

LogDrop = Callable[[str, str], None]  # what was left out, and of which


class Announcer:
    """Speaks for one coordinator process on one connection. `state` is the federation's, as it is by then."""

    def __init__(
        self,
        client: Connection,
        voice: Voice,
        registry: Registry,
        keys: CoordinatorKeys | None,
        settings: CoordinatorSettings,
        state: FederationState,
        boot_id: str,
        now_ns: Callable[[], int],
        log_drop: LogDrop,
    ) -> None:
        self._client, self._voice, self._registry, self._keys = client, voice, registry, keys
        self._federation, self._boot_id = state.config.federation, boot_id
        self._keep, self._lifetime_ns = settings.keep_versions, seconds(settings.pointer_lifetime_s)
        self._now_ns, self._log_drop = now_ns, log_drop
        self._publisher = PhasedPublisher(voice)
        self._renew_at_ns = 0
        self._head, self._released = state.head.version, state.release.version  # as last handed to the broker
        self._deleting = {*self._recent(state), self._head}  # versions that the broker may still have and should not

    @property
    def is_done(self) -> bool:
        """Whether the broker has acknowledged all that is retained."""
        return self._publisher.is_done

    @property
    def renewal_ns(self) -> int | None:
        """When the pointers have to be said again before they expire, in ns since 1970; None while they need not be."""
        return self._renew_at_ns if self._keys is not None and self._renew_at_ns > 0 else None

    def answer(self, node: str, receipt: Receipt) -> None:
        """Tell a node, unless the broker takes nothing any more: then what is queued must not grow for ever."""
        if self._client.traffic.waiting >= MOST_WAITING:
            self._log_drop("receipt that the broker has no room for", f"{receipt.update_id[:8]} of {node}")
        else:
            self._say(publisher.publication(self._federation, ReceiptFor(node), receipt.to_bytes()))

    def version(self, state: FederationState, manifest: GlobalManifest) -> None:
        """Nodes train from a new version, which the registry has."""
        self._publisher.add(
            publisher.bodies(self._federation, self._registry, [manifest]),
            [publisher.head_pointer(self._federation, manifest, self._stamp(state))],
        )
        self._delete_what_is_not_kept(manifest.version, self._released)
        if manifest.version == state.config.final_version:
            self._publisher.add(self._say(self._own_state(state, online=True)))

    def release(self, state: FederationState, report: ReleaseReport) -> None:
        """Nodes serve what was decided, which the registry has."""
        bodies: list[Iterator[Publication]] = []
        if report.is_taken or report.version != self._released:
            bodies.append(publisher.average_of(self._federation, self._registry, report))
        if report.version not in kept_versions(self._head, self._released, self._keep):  # it was judged for long
            manifest = self._registry.manifest(report.version)
            bodies.append(publisher.bodies(self._federation, self._registry, [manifest]))
        self._publisher.add(*bodies, [self._release_pointer(state, report)])
        self._delete_what_is_not_kept(self._head, report.version)

    def everything(self, state: FederationState) -> None:
        """Publish everything that is retained again: the broker may have lost any of it."""
        newest, release = state.head.version, state.release
        kept = kept_versions(newest, release.version, self._keep)
        recent = self._recent(state)
        served = (self._registry.manifest(version).release.version for version in recent)
        gone = self._deleting = {*recent, *served, *self._deleting} - kept
        unsaid = self._say(*self._certificate(), self._own_state(state, online=True))
        bodies = publisher.bodies(self._federation, self._registry, map(self._registry.manifest, sorted(kept)))
        self._publisher.start_over(
            chain(unsaid, bodies),
            publisher.average_of(self._federation, self._registry, release),
            self._pointers(state),
            publisher.deletions(self._federation, map(self._registry.manifest, sorted(gone))),
        )

    def renew(self, state: FederationState) -> None:
        """Say the pointers again if it is time to."""
        if self.renewal_ns is not None and self._now_ns() >= self.renewal_ns:
            self._publisher.add(self._pointers(state))

    def farewell(self, state: FederationState) -> None:
        """This coordinator is away from now on."""
        self._say(self._own_state(state, online=False))

    def pause(self) -> None:
        """The broker is away: what was under way has to be said again, with everything else."""
        self._publisher.pause()

    def on_published(self, event: Published) -> None:
        """Go on when the broker has acknowledged something. Raises PublishRefused."""
        self._publisher.on_published(event)
        if self._publisher.is_done:
            self._deleting.clear()

    def on_clock_set_back(self) -> None:
        """Renew the pointers now: the time for it may be far ahead of a clock that was wrong."""
        self._renew_at_ns = min(self._renew_at_ns, self._now_ns())

    def _release_pointer(self, state: FederationState, report: ReleaseReport) -> Publication:
        served = self._registry.manifest(report.version)
        return publisher.release_pointer(self._federation, served, report, self._stamp(state))

    def _pointers(self, state: FederationState) -> list[Publication]:
        """Both pointers as they are now, with the whole of their lifetime before them."""
        self._renew_at_ns = self._now_ns() + self._lifetime_ns // 2
        newest = self._registry.manifest(state.head.version)
        head = publisher.head_pointer(self._federation, newest, self._stamp(state))
        return [head, self._release_pointer(state, state.release)]

    def _stamp(self, state: FederationState) -> Stamp:
        expires_at_ns = self._now_ns() + self._lifetime_ns if self._keys is not None else None
        return Stamp(state.epoch, expires_at_ns)

    def _delete_what_is_not_kept(self, head: int, released: int) -> None:
        """Take from the broker what was kept until now and no longer is."""
        before = kept_versions(self._head, self._released, self._keep)
        self._head, self._released = head, released
        gone = sorted(before - kept_versions(head, released, self._keep))
        self._deleting.update(gone)
        self._publisher.add(publisher.deletions(self._federation, map(self._registry.manifest, gone)))

    def _recent(self, state: FederationState) -> range:
        """The versions before the head whose deletion a crash may have cut short; a turn can make a window of them."""
        newest = state.head.version
        return range(max(0, newest - 3 * self._keep - MAX_IN_FLIGHT), newest)

    def _say(self, *publications: Publication) -> list[Publication]:
        """Publish, and give back what found no room: what must be said goes to the publisher, which waits for it."""
        for number, publication in enumerate(publications):
            try:
                self._voice.publish(publication)
            except QueueFull as fault:
                self._log_drop("publication that the broker has no room for", str(fault))
                return list(publications[number:])
        return []

    def _certificate(self) -> list[Publication]:
        if self._keys is None:
            return []
        return [publisher.publication(self._federation, GlobalKeys(), self._keys.online.payload)]

    def _own_state(self, state: FederationState, *, online: bool) -> Publication:
        return own_state(state, self._boot_id, online=online)


def own_state(state: FederationState, boot_id: str, *, online: bool) -> Publication:
    """Whether a coordinator is there, and the terms on which nodes take part; unsigned."""
    config = state.config
    said = CoordinatorState(
        online=online,
        boot_id=boot_id,
        epoch=state.epoch,
        base_model=config.base_model,
        base_model_name=config.base_model_name,
        lora=config.layout.lora,
        layout=config.layout.digest,
        strategy=config.strategy.name,
        one_update_per_version=config.strategy.one_update_per_version,
        trained_factors=config.strategy.trained_factors,
        codecs=config.codecs,
        node_ranks=config.node_ranks,
        max_staleness=config.strategy.max_staleness,
        clip_norm=config.privacy.clip_norm if config.privacy else None,
        finished=state.finished,
    )
    return publisher.publication(config.federation, CoordinatorStateOf(), said.to_bytes())

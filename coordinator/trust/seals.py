"""What lies in the registry, sealed: the coordinator's signatures beside it, to be checked without a broker.

A manifest is sealed as it is published, a decision under a name of its own, for decisions are not. Without keys nothing
is sealed.
"""

import logging

from coordinator.registry import Registry
from coordinator.state import FederationState
from coordinator.trust.voice import CoordinatorKeys
from schemas.messages import GlobalManifest, ReleaseReport
from schemas.topics import GlobalManifestOf, decision_name, route

log = logging.getLogger("coordinator")


class Seals:
    """Seals manifests and decisions as they are kept."""

    def __init__(self, registry: Registry, keys: CoordinatorKeys | None, federation: str) -> None:
        self._registry, self._keys, self._federation = registry, keys, federation

    def seal(self, manifest: GlobalManifest) -> None:
        """Keep the signature of a version's manifest."""
        if self._keys is not None:
            topic = route(self._federation, GlobalManifestOf(manifest.version)).topic
            self._registry.seal(manifest.version, self._keys.sealed(topic, manifest.to_bytes()))

    def seal_decision(self, report: ReleaseReport) -> None:
        """Keep the signature of a decision."""
        if self._keys is not None:
            name = decision_name(self._federation, report.judged)
            self._registry.seal_decision(report.judged, self._keys.sealed(name, report.to_bytes()))

    def seal_what_is_open(self, state: FederationState) -> None:
        """Seal what a crash has left unsealed, and what is from before the federation had keys.

        Both are newer than all that was sealed. What lies behind that without its signature, or with another, is not
        believed: it stays as it is, and is found by whoever verifies. But the newest of each may be written anew, and a
        crash come before its seal.
        """
        if self._keys is None:
            return
        newest, newest_decision = self._registry.newest_sealed()
        for manifest in self._registry.unsealed():
            if manifest.version > newest or manifest.version == state.head.version:
                self.seal(manifest)
            else:
                log.error("the manifest of version %d is not what was signed", manifest.version)
        for report in self._registry.unsealed_decisions():
            if report.judged > newest_decision or report == state.release:
                self.seal_decision(report)
            else:
                log.error("the decision on version %d is not what was signed", report.judged)

"""What the coordinator says, signed, and the keys that it says it with: nothing else in this package publishes.

Without a bundle it speaks unsigned, as federations without keys do. The folder of keys is looked at again and again, so
that an enrolment, a revocation or a new key takes effect while the coordinator runs.
"""

import logging
import time
from pathlib import Path

from broker.bundle import (
    Bundle,
    Online,
    load_coordinator_bundle,
    load_online,
    load_ring,
    newest_certificate,
    read_membership,
)
from broker.connection import Connection
from broker.events import Publication
from broker.key_files import KeyFileError
from broker.settings import BrokerSettings
from coordinator.lease import Lease
from schemas.messages import PublicKey
from schemas.signing import sign
from schemas.trust import KeyRing

log = logging.getLogger("coordinator")

LOOK_EVERY_S = 0.5
WARN_DAYS = 30
DAY_NS = 24 * 3600 * 10**9


class CoordinatorKeys:
    """The coordinator's bundle. `ring` is as it was last read."""

    def __init__(self, folder: Path, federation: str) -> None:
        self._bundle, self.online = load_coordinator_bundle(folder, federation)
        self.ring = load_ring(folder)
        self._warn_before_the_end()
        self._look_at = 0.0
        self._said: str | None = None

    @property
    def root(self) -> PublicKey:
        """The key that nodes have pinned."""
        return self._bundle.root

    def reaches(self, broker: BrokerSettings) -> BrokerSettings:
        """How to reach the broker with the coordinator's certificate."""
        return self._bundle.reaches(broker)

    def signed(self, publication: Publication) -> Publication:
        """The publication with the coordinator's signature, if its topic asks for one."""
        return self._bundle.signed(publication)

    def sealed(self, name: str, message: bytes) -> bytes:
        """A message with the coordinator's signature for this name, a topic or that of something kept."""
        return sign(self.online.key, name, message)

    def reread_ring(self) -> KeyRing:
        """The ring of now: a standby may have waited for long."""
        self.ring = load_ring(self._bundle.folder)
        return self.ring

    def reload(self) -> tuple[KeyRing | None, Online | None]:
        """The ring and the key, each if it is another than before; a file that cannot be read changes nothing."""
        if time.monotonic() < self._look_at:
            return None, None
        self._look_at = time.monotonic() + LOOK_EVERY_S
        try:
            ring, online = self._read()
        except KeyFileError as fault:
            if str(fault) != self._said:
                log.error("%s; going on with the keys as they were", fault)
            self._said = str(fault)
            return None, None
        self._said = None
        newer = ring if ring != self.ring else None
        rotated = online if online != self.online else None
        self.ring, self.online = ring, online
        return newer, rotated

    def _warn_before_the_end(self) -> None:
        """Nodes believe nothing of a key whose certificate has expired: say so while there is time."""
        days = (self.online.certificate.expires_at_ns - time.time_ns()) // DAY_NS
        if days < WARN_DAYS:
            log.warning("nodes believe the coordinator's key for %d more days: run `alignfed keys rotate`", days)

    def _read(self) -> tuple[KeyRing, Online]:
        folder, online = self._bundle.folder, self.online
        if newest_certificate(folder) != online.certificate.number:
            online = load_online(folder, read_membership(folder))
            self._bundle = Bundle(folder, self._bundle.federation, self._bundle.name, self._bundle.root, online.key)
        return load_ring(folder), online


class Voice:
    """Publishes for the coordinator that holds the lease, with its signature where there are keys."""

    def __init__(self, client: Connection, keys: CoordinatorKeys | None, lease: Lease) -> None:
        self._client, self._keys, self._lease = client, keys, lease

    def publish(self, publication: Publication) -> int:
        """Queue a publication; its token comes back in `Published`. Raises LeaseLost."""
        self._lease.confirm()
        return self._client.publish(self._keys.signed(publication) if self._keys else publication)

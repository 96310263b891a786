"""A journal's rows with the signatures checked and taken off, for who changes updates before playing them again.

A changed update has another id, and nobody can sign it. So what its node's key has not signed goes here, as it went
when it was recorded, and what is left plays in a federation that asks for no signatures.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from broker.recording import Row, read_rows
from coordinator.journal import CONFIG, KEYS
from coordinator.state import FederationConfig
from schemas.messages import PublicKey
from schemas.reading import address_of
from schemas.topics import UpdateChunk, UpdateManifestOf
from schemas.trust import Distrusted, KeyRing, Revoked, open_update

FOUNDING_ROWS = 2


def opened_rows(path: Path) -> Iterator[Row]:
    """Every row after the founding, in order; those of updates that were not believed are left out."""
    root: PublicKey | None = None
    ring = KeyRing()
    for row in read_rows(path):
        if row.topic == CONFIG:
            config = FederationConfig.from_bytes(row.payload)
            root = config.root
            plain = config.model_copy(update={"root": None})
            row = replace(row, payload=plain.to_bytes())
        elif row.topic == KEYS:
            ring = KeyRing.from_bytes(row.payload)
            continue
        opened = row if root is None else _opened(row, ring)
        if opened is not None and row.seq > FOUNDING_ROWS:
            yield opened


def _opened(row: Row, ring: KeyRing) -> Row | None:
    match address_of(row.topic):
        case (_, UpdateManifestOf(node)):
            try:
                return replace(row, payload=open_update(ring, node, row.topic, row.payload))
            except (Distrusted, Revoked):
                return None
        case (_, UpdateChunk(node)) if node not in ring.enrolled:
            return None
    return row

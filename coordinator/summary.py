"""A coordinator's state in a few figures, for people who look into a replay."""

from collections import Counter
from typing import Any

from coordinator.state import FederationState


def summary(state: FederationState) -> dict[str, Any]:
    """Head, what is served, what waits, what the coordinator has counted of each node: plain values, for JSON."""
    pending = state.pending
    return {
        "federation": state.config.federation,
        "strategy": state.config.strategy.name,
        "epoch": state.epoch,
        "head": {"version": state.head.version, "digest": state.head.digest},
        "served": {"version": state.served.version, "variant": state.served.variant},
        "waiting": [
            {"node": u.node, "update_id": u.update_id, "base_version": u.base_version, "examples": u.examples}
            for u in state.buffer.updates
        ],
        "in_the_making": None if pending is None else len(pending.flush.buffer.updates),
        "nodes": {
            node: {
                "participation": ledger.participation,
                "in_versions": dict(Counter(a.version for a in ledger.accepted.values() if a.version is not None)),
                "incomplete": sorted(ledger.partial),
                "refused": list(ledger.refused),
            }
            for node, ledger in sorted(state.nodes.items())
        },
        "partial_bytes": state.partial_bytes,
        "dropped": dict(state.dropped),
    }

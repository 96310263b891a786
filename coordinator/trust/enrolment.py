"""What a change of the key ring does to the state: whose updates count from now on, and what of a revoked node goes.

Pure. How a key is made, and where the ring lies, is not known here.
"""

from dataclasses import replace

from coordinator.aggregation import discard, take_back
from coordinator.intake import Objection, Step, drop, with_ledger
from coordinator.state import FederationState
from coordinator.updates import Buffer
from schemas.trust import KeyRing

REVOKED = Objection("rejected", "revoked", "the key of this node was revoked: ask the operator to enrol it again")


def change_keys(state: FederationState, ring: KeyRing) -> Step:
    """Take a newer ring; what waits of a node without a key in force goes into no version."""
    if ring.number < state.ring.number:
        return drop(state, "older key ring", f"number {ring.number}, after {state.ring.number}")
    state = replace(state, ring=ring)
    if state.config.root is None:
        return state, ()
    for node, ledger in list(state.nodes.items()):
        if node not in ring.enrolled:
            state = with_ledger(state, node, replace(ledger, partial={}))
    return _discard_what_waits(state, ring)


def _discard_what_waits(state: FederationState, ring: KeyRing) -> Step:
    in_the_making = state.pending.flush.buffer.updates if state.pending else ()
    if any(update.node not in ring.enrolled for update in in_the_making):
        state = take_back(state)  # the version is begun again without them
    gone = tuple(update for update in state.buffer.updates if update.node not in ring.enrolled)
    kept = Buffer.of(*(update for update in state.buffer.updates if update.node in ring.enrolled))
    return discard(replace(state, buffer=kept), gone, REVOKED)

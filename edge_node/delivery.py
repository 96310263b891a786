"""From the outbox to the receipt: which updates to send, when to send them again, and what a receipt means. Pure."""

from dataclasses import replace

from edge_node.backoff import wait_s
from edge_node.state import (
    DropUpdate,
    EdgeState,
    Effect,
    Effects,
    Note,
    SendChunks,
    SendUpdate,
    SettleUpdate,
    StoreUpdate,
    Update,
    WaitingUpdate,
    Warn,
)
from schemas.messages import Receipt

MAX_IN_FLIGHT = 4  # updates without a receipt that the network and the coordinator may hold at once
REJECTED_REST_S = 10.0
PROMPT_REPAIRS = 3  # missing chunks are sent at once so often; then the update waits its turn


def store(state: EdgeState, update: Update) -> tuple[EdgeState, Effects]:
    """Put an update into the outbox; when that is over its limits, the ones with the oldest base go."""
    waiting = WaitingUpdate(update.update_id, update.sequence, size=len(update.body))
    memory = replace(state.memory, last_base=update.base_digest)
    state, drops = trim(replace(state, memory=memory, outbox=(*state.outbox, waiting)))
    return state, (StoreUpdate(update), *drops)


def trim(state: EdgeState) -> tuple[EdgeState, Effects]:
    """Drop the oldest updates while the outbox is over its limits; the newest always stays."""
    settings, outbox, effects = state.identity.settings, state.outbox, list[Effect]()
    while len(outbox) > 1 and (
        len(outbox) > settings.outbox_updates or sum(update.size for update in outbox) > settings.outbox_bytes
    ):
        oldest, outbox = outbox[0], outbox[1:]
        effects += [
            DropUpdate(oldest.update_id),
            Warn(f"update {_short(oldest.update_id)} dropped: the outbox is full"),
        ]
    return replace(state, outbox=outbox), tuple(effects)


def send_due(state: EdgeState, at: float) -> tuple[EdgeState, Effects]:
    """Send what was never sent while the window has room, and again what has no receipt for too long."""
    if not state.connected:
        return state, ()
    room = MAX_IN_FLIGHT - sum(update.attempts > 0 for update in state.outbox)
    outbox, effects, first_sends = list[WaitingUpdate](), list[Effect](), 0
    for update in state.outbox:
        if update.attempts == 0 and first_sends < room:
            first_sends += 1
        elif update.attempts == 0 or at < update.again_at:
            outbox.append(update)
            continue
        outbox.append(_sent(update, at, state.identity.settings.resend_after_s))
        effects.append(SendUpdate(update.update_id))
    return replace(state, outbox=tuple(outbox), updates_sent=state.updates_sent + first_sends), tuple(effects)


def on_receipt(state: EdgeState, at: float, payload: bytes) -> tuple[EdgeState, Effects]:
    """Forget an update that has its answer; send again what the coordinator misses of one."""
    receipt = Receipt.from_bytes(payload)
    name = f"update {_short(receipt.update_id)}"
    update = next((update for update in state.outbox if update.update_id == receipt.update_id), None)
    if update is None:
        return _on_late_answer(state, at, receipt, name)
    if receipt.status == "incomplete":
        return _repair(state, at, update, receipt)
    rest = replace(state, outbox=tuple(other for other in state.outbox if other is not update))
    if receipt.status in ("stale", "rejected"):
        why = f"{name} {receipt.status}: {receipt.reason or 'no reason given'}"
        return _refused(rest, at, receipt), (DropUpdate(update.update_id), Warn(why))
    memory = replace(rest.memory, participation=rest.memory.participation + 1)
    rest = replace(rest, memory=memory, updates_accepted=rest.updates_accepted + 1)
    return rest, (SettleUpdate(update.update_id), Note(f"{name} accepted"))


def _on_late_answer(state: EdgeState, at: float, receipt: Receipt, name: str) -> tuple[EdgeState, Effects]:
    """What became of an update that was accepted before, and forgotten then."""
    if receipt.status == "aggregated" and receipt.version is not None:
        return state, (Note(f"{name} went into version {receipt.version}"),)
    if receipt.status in ("stale", "rejected"):
        why = f"{name} was accepted, and now is {receipt.status}: {receipt.reason or 'no reason given'}"
        return _refused(state, at, receipt), (Warn(why),)
    return state, ()


def _refused(state: EdgeState, at: float, receipt: Receipt) -> EdgeState:
    """Count it. The version a rejected update came from may be trained on again, but not at once."""
    state = replace(state, updates_rejected=state.updates_rejected + 1)
    if receipt.status == "stale":  # a newer version is there, or on its way
        return state
    pause_s = wait_s(receipt.update_id, 1, REJECTED_REST_S)
    memory = replace(state.memory, last_base=None)
    return replace(state, memory=memory, rest_until=max(state.rest_until, at + pause_s))


def coordinator_returned(state: EdgeState, at: float) -> EdgeState:
    """Start the patience with every receipt afresh: nobody was there to answer."""
    patience = state.identity.settings.resend_after_s
    outbox = (_sent(replace(u, attempts=0), at, patience) if u.attempts else u for u in state.outbox)
    return replace(state, outbox=tuple(outbox))


def next_due(state: EdgeState) -> float | None:
    """When the first update without a receipt is to be sent again."""
    due = [update.again_at for update in state.outbox if update.attempts > 0] if state.connected else []
    return min(due, default=None)


def _repair(state: EdgeState, at: float, update: WaitingUpdate, receipt: Receipt) -> tuple[EdgeState, Effects]:
    if not receipt.missing or not 0 < update.attempts <= PROMPT_REPAIRS:
        return state, ()  # all of it is sent again when it is due
    again = _sent(update, at, state.identity.settings.resend_after_s)
    outbox = tuple(again if other is update else other for other in state.outbox)
    return replace(state, outbox=outbox), (SendChunks(update.update_id, receipt.missing),)


def _sent(update: WaitingUpdate, at: float, resend_after_s: float) -> WaitingUpdate:
    attempts = update.attempts + 1
    return replace(update, attempts=attempts, again_at=at + wait_s(update.update_id, attempts, resend_after_s))


def _short(update_id: str) -> str:
    return update_id[:8]

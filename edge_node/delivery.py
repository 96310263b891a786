"""From the outbox to the receipt: which updates to send, when to send them again, and what a receipt means. Pure."""

from dataclasses import replace

from edge_node.backoff import wait_s
from edge_node.effects import (
    DropUpdate,
    Effect,
    Effects,
    Note,
    OfferUpdate,
    SendChunks,
    SendUpdate,
    SettleUpdate,
    StoreUpdate,
    Warn,
)
from edge_node.events import HandedOver
from edge_node.state import EdgeState, Update, WaitingUpdate, named_base
from schemas.messages import Receipt

MAX_IN_FLIGHT = 4  # updates without a receipt that the network and the coordinator may hold at once
REJECTED_REST_S = 10.0  # the first of them; each rejection since one went into a version doubles it
PUT_OFF_REST_S = 10.0  # on top of what the coordinator asks for; doubles until it takes one
REMEMBERED_SETTLED = 64  # accepted updates whose next answer is still believed
PROMPT_REPAIRS = 3  # missing chunks are sent at once so often; then the update waits its turn
HEAD_PATIENCE_S = 5.0  # with a broker that keeps the head to itself


def store(state: EdgeState, update: Update) -> tuple[EdgeState, Effects]:
    """Put an update into the outbox; when that is over its limits, the ones with the oldest base go first."""
    waiting = WaitingUpdate(update.update_id, update.sequence, len(update.body), update.base_version)
    memory = replace(state.memory, last_base=named_base(update.base_version, update.base_digest))
    state, drops = trim(replace(state, memory=memory, outbox=(*state.outbox, waiting)))
    return state, (*drops, StoreUpdate(update))


def trim(state: EdgeState) -> tuple[EdgeState, Effects]:
    """Drop the updates with the oldest base while the outbox is over its limits; the newest always stays."""
    settings, outbox, effects = state.identity.settings, state.outbox, list[Effect]()
    while len(outbox) > 1 and (
        len(outbox) > settings.outbox_updates or sum(update.size for update in outbox) > settings.outbox_bytes
    ):
        oldest = min(outbox, key=_age)
        outbox = tuple(update for update in outbox if update is not oldest)
        effects += [
            DropUpdate(oldest.update_id),
            Warn(f"update {_short(oldest.update_id)} dropped: the outbox is full", oldest.update_id),
        ]
    return replace(state, outbox=outbox), tuple(effects)


def connected(state: EdgeState, at: float) -> EdgeState:
    """Wait a moment with sending: the head, which comes first, says what is still worth it."""
    return replace(state, connected=True, sends_from=at + HEAD_PATIENCE_S)


def head_heard(state: EdgeState, at: float) -> EdgeState:
    """Nothing more to wait for."""
    return replace(state, sends_from=min(state.sends_from, at))


def send_due(state: EdgeState, at: float) -> tuple[EdgeState, Effects]:
    """Send what was never sent while the window has room, newest base first, and offer again what has no receipt."""
    if not state.connected or at < max(state.sends_from, state.quiet_until):
        return state, ()
    state, effects = _drop_stale(state, at)
    room = MAX_IN_FLIGHT - sum(update.attempts > 0 for update in state.outbox)
    first = sorted((update for update in state.outbox if not update.attempts), key=_worth)[: max(0, room)]
    again = [update for update in state.outbox if update.attempts and _is_due(update, at)]
    sends = {update.update_id: replace(update, attempts=update.attempts + 1, repairs=0) for update in (*first, *again)}
    for update in (*first, *again):
        # what was never offered is sent whole; of anything else the coordinator may have a part
        whole = update.is_new and not update.attempts
        effects += (SendUpdate(update.update_id) if whole else OfferUpdate(update.update_id),)
    outbox = tuple(replace(sends[u.update_id], under_way=True) if u.update_id in sends else u for u in state.outbox)
    sent = state.updates_sent + sum(not update.was_put_off for update in first)
    return replace(state, outbox=outbox, updates_sent=sent), effects


def on_handed_over(state: EdgeState, event: HandedOver) -> EdgeState:
    """Begin to wait for the receipt: however long the link took, the coordinator has its time from now."""
    outbox = (_waits(u, state, event.at) if u.update_id == event.update_id else u for u in state.outbox)
    return replace(state, outbox=tuple(outbox))


def _drop_stale(state: EdgeState, at: float) -> tuple[EdgeState, Effects]:
    """Drop what the federation has said that it would refuse, unless a receipt may be on its way."""
    newest, most = state.head, state.terms.max_staleness if state.terms is not None else None
    if newest is None or most is None:
        return state, ()
    stale = {
        update.update_id: update.base_version
        for update in state.outbox
        if newest.version - update.base_version > most
        and (not update.attempts or update.under_way or _is_due(update, at))
    }
    effects = list[Effect]()
    for id_, base in stale.items():
        why = f"it is from version {base}, the newest is {newest.version}, and {most} versions are the most"
        effects += [DropUpdate(id_), Warn(f"update {_short(id_)} dropped, too old to be taken: {why}", id_)]
    outbox = tuple(update for update in state.outbox if update.update_id not in stale)
    return replace(state, outbox=outbox), tuple(effects)


def on_receipt(state: EdgeState, at: float, payload: bytes) -> tuple[EdgeState, Effects]:
    """Forget an update that has its answer; send again what the coordinator misses of one."""
    receipt = Receipt.from_bytes(payload)
    name = f"update {_short(receipt.update_id)}"
    update = next((update for update in state.outbox if update.update_id == receipt.update_id), None)
    if update is None:
        return _on_late_answer(state, at, receipt, name)
    if receipt.status == "incomplete":
        return _repair(state, update, receipt)
    if receipt.status == "overloaded":
        return _put_off(state, at, update, receipt)
    rest = replace(state, outbox=tuple(other for other in state.outbox if other is not update))
    if receipt.status in ("stale", "rejected"):
        why = f"{name} {receipt.status}: {receipt.reason or 'no reason given'}"
        return _refused(rest, at, receipt), (DropUpdate(update.update_id), Warn(why, update.update_id))
    memory = replace(rest.memory, participation=rest.memory.participation + 1)
    settled = state.settled if receipt.status == "aggregated" else (*state.settled, update.update_id)
    rest = replace(
        rest,
        memory=memory,
        updates_accepted=rest.updates_accepted + 1,
        rejections=0 if receipt.version is not None else rest.rejections,
        times_put_off=0,
        settled=settled[-REMEMBERED_SETTLED:],
    )
    return rest, (SettleUpdate(update.update_id), Note(f"{name} accepted", update.update_id))


def _on_late_answer(state: EdgeState, at: float, receipt: Receipt, name: str) -> tuple[EdgeState, Effects]:
    """What became of an update that was accepted before, and forgotten then; said once, or a replay could say it."""
    if receipt.update_id not in state.settled:
        return state, ()
    if receipt.status in ("aggregated", "stale", "rejected"):
        settled = tuple(other for other in state.settled if other != receipt.update_id)
        state = replace(state, settled=settled)
    if receipt.status == "aggregated" and receipt.version is not None:
        return replace(state, rejections=0), (
            Note(f"{name} went into version {receipt.version}", receipt.update_id, receipt.version),
        )
    if receipt.status in ("stale", "rejected"):
        why = f"{name} was accepted, and now is {receipt.status}: {receipt.reason or 'no reason given'}"
        return _refused(state, at, receipt), (Warn(why, receipt.update_id),)
    return state, ()


def _refused(state: EdgeState, at: float, receipt: Receipt) -> EdgeState:
    """Count it. The version a rejected update came from may be trained on again, each time after a longer pause."""
    state = replace(state, updates_rejected=state.updates_rejected + 1)
    if receipt.status == "stale":  # a newer version is there, or on its way
        return state
    rejections = state.rejections + 1
    pause_s = wait_s(receipt.update_id, rejections, REJECTED_REST_S)
    memory = replace(state.memory, last_base=None)
    return replace(state, memory=memory, rejections=rejections, rest_until=max(state.rest_until, at + pause_s))


def _put_off(state: EdgeState, at: float, update: WaitingUpdate, receipt: Receipt) -> tuple[EdgeState, Effects]:
    """Keep the update, and neither send nor train for a while; then the newest goes first, which may be another."""
    kept = replace(update, is_new=False, was_put_off=True, attempts=0, under_way=False)
    outbox = tuple(kept if other is update else other for other in state.outbox)
    state = replace(state, outbox=outbox)
    if at < state.quiet_until:  # an answer to another one that was on its way: the pause is the same
        return state, ()
    times = state.times_put_off + 1
    pause_s = (receipt.retry_after_s or 0.0) + wait_s(state.identity.settings.node, times, PUT_OFF_REST_S)
    until = at + pause_s
    state = replace(state, times_put_off=times, quiet_until=until, rest_until=max(state.rest_until, until))
    why = (
        f"update {_short(update.update_id)} put off: {receipt.reason or 'no reason given'}. Next try in {pause_s:.0f} s"
    )
    return state, (Warn(why, update.update_id),)


def coordinator_returned(state: EdgeState, at: float) -> EdgeState:
    """Start the patience with every receipt afresh: nobody was there to answer."""
    outbox = (_waits(replace(u, attempts=1), state, at) if u.attempts and not u.under_way else u for u in state.outbox)
    return replace(state, outbox=tuple(outbox))


def next_due(state: EdgeState) -> float | None:
    """When something is to be sent, again or for the first time on this connection."""
    if not state.connected:
        return None
    sends_from = max(state.sends_from, state.quiet_until)
    due = [max(update.again_at, sends_from) for update in state.outbox if update.attempts and not update.under_way]
    if any(not update.attempts for update in state.outbox) and _has_room(state):
        due.append(sends_from)
    return min(due, default=None)


def _has_room(state: EdgeState) -> bool:
    return sum(update.attempts > 0 for update in state.outbox) < MAX_IN_FLIGHT


def _repair(state: EdgeState, update: WaitingUpdate, receipt: Receipt) -> tuple[EdgeState, Effects]:
    if not receipt.missing or update.under_way or not update.attempts or update.repairs >= PROMPT_REPAIRS:
        return state, ()  # it is on its way, or is offered again when it is due
    again = replace(update, under_way=True, repairs=update.repairs + 1)
    outbox = tuple(again if other is update else other for other in state.outbox)
    return replace(state, outbox=outbox), (SendChunks(update.update_id, receipt.missing),)


def _waits(update: WaitingUpdate, state: EdgeState, at: float) -> WaitingUpdate:
    patience_s = wait_s(update.update_id, update.attempts, state.identity.settings.resend_after_s)
    return replace(update, under_way=False, again_at=at + patience_s)


def _may_be_answered(update: WaitingUpdate, at: float) -> bool:
    """Whether the coordinator may have it, and its receipt may be on its way."""
    return update.attempts > 0 and not update.under_way and at < update.again_at


def _is_due(update: WaitingUpdate, at: float) -> bool:
    return not update.under_way and at >= update.again_at


def _age(update: WaitingUpdate) -> tuple[int, int]:
    """The smaller, the older."""
    return (update.base_version, update.sequence)


def _worth(update: WaitingUpdate) -> tuple[int, int]:
    """The smaller, the more it is worth: by base, and the earlier of two from one base."""
    return (-update.base_version, update.sequence)


def _short(update_id: str) -> str:
    return update_id[:8]

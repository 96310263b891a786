"""When to train, from which version, and what becomes of the result: an update for the outbox. Pure."""

import hashlib
import math
from dataclasses import replace

from edge_node import delivery
from edge_node.backoff import wait_s
from edge_node.effects import AbortTraining, Effects, Measure, Note, Train, Warn
from edge_node.events import HeldOutMeasured, MeasuringEnded, StepTrained, TrainingFailed, TrainingFinished
from edge_node.policy import is_too_far_behind, reason_against
from edge_node.state import EdgeState, GlobalAdapter, HeldOutLoss, Identity, Training, TrainingJob, Update, named_base
from schemas.adapter import Adapter, Layout
from schemas.chunks import describe
from schemas.codec import UPDATE_CODECS, encode
from schemas.messages import MAX_CHUNK_SIZE, CodecId, CoordinatorState, IdleReason, UpdateManifest, update_id
from schemas.products import truncate

REST_S = 30.0  # after a training that came to nothing; doubles each time
HEADROOM = 1536  # bytes of a packet that are not body: topic, properties, signature and an inline body's manifest
SMALLEST_CHUNK = 16 * 1024
# reasons not to train that do not speak against measuring: no harm comes to the machine, and no better version comes
STILL_MEASURED: frozenset[IdleReason | None] = frozenset(
    ("finished", "outbox_full", "version_used", "few_new_examples", "not_at_this_hour")
)


def train_if_due(state: EdgeState, at: float) -> tuple[EdgeState, Effects]:
    """Begin a job when there is a version to learn from, room for the update, and nothing better to wait for."""
    held, terms = state.held, state.terms
    if held is None or terms is None or state.training is not None or reason_to_wait(state, at) is not None:
        return state, ()
    sequence = state.memory.sequence
    seed, measured = _seed(state.identity, held, sequence), _to_measure(state, held)
    job = TrainingJob(_own(state, held), sequence, seed, terms.trained_factors, measured)
    memory = replace(state.memory, sequence=sequence + 1)
    state, ended = abort(state)  # what is measured aside; the training does so first
    state = replace(state, memory=memory, training=Training(job), examples_before=state.conditions.examples)
    return state, (*ended, Train(job))


def measure_if_due(state: EdgeState, at: float) -> tuple[EdgeState, Effects]:
    """Measure a version that is not trained on now, where the owner wants that."""
    held = state.held
    if held is None or not _is_to_be_measured(state) or _reason_in_time(state, at) is not None:
        return state, ()
    sequence, name = state.memory.sequence, named_base(held.pointer.version, held.pointer.digest)
    job = TrainingJob(_own(state, held), sequence, seed=0, measured=_to_measure(state, held))
    memory = replace(state.memory, sequence=sequence + 1)
    return replace(state, memory=memory, measuring=job, measured=name), (Measure(job),)


def reason_to_wait(state: EdgeState, at: float) -> IdleReason | None:
    """Why no job is under way or begins now; None when one is, or may."""
    if state.training is not None:
        return None
    return _reason_beside_time(state) or _reason_in_time(state, at)


def drop_stale(state: EdgeState, _at: float) -> tuple[EdgeState, Effects]:
    """End a job that began too many versions ago, if the owner's policy says so: its update would count for little."""
    if state.training is None or state.held is None:
        return state, ()
    base, held = state.training.job.start.pointer.version, state.held.pointer.version
    if not is_too_far_behind(state.identity.settings.policy, base, held):
        return state, ()
    state, aborted = abort(state)
    return state, (*aborted, Note(f"training on version {base} dropped: version {held} is there"))


def own_layout(state: EdgeState, federation: Layout) -> Layout:
    """The layout that this node trains: the federation's, or the same at the rank of its own settings."""
    rank = state.identity.settings.rank
    return federation if rank is None else federation.with_rank(rank)


def _own(state: EdgeState, held: GlobalAdapter) -> GlobalAdapter:
    """A version as this node trains from it: at its own rank."""
    return replace(held, adapter=truncate(held.adapter, own_layout(state, held.adapter.layout)))


def is_taken(rank: int | None, terms: CoordinatorState) -> bool:
    """Whether updates of a node's rank are taken, as far as the coordinator has announced that; None is its own."""
    return rank is None or terms.node_ranks is None or rank in (terms.lora.rank, *terms.node_ranks)


def next_due(state: EdgeState) -> float | None:
    """When a job may begin that only has to wait."""
    waiting = state.training is None and _reason_beside_time(state) is None
    return max(state.newer_until, state.rest_until) if waiting or _is_to_be_measured(state) else None


def abort(state: EdgeState) -> tuple[EdgeState, Effects]:
    """End the job under way, if there is one."""
    if state.training is None and state.measuring is None:
        return state, ()
    return replace(state, training=None, measuring=None), (AbortTraining(),)


def on_held_out(state: EdgeState, event: HeldOutMeasured) -> EdgeState:
    """Note how well a version answers what this node never trains on."""
    job = state.training.job if state.training is not None else state.measuring
    if job is None or job.sequence != event.sequence or _sayable(event.loss) is None:
        return state
    return replace(state, held_out=HeldOutLoss(job.start.pointer.version, event.loss, event.examples))


def on_measuring_ended(state: EdgeState, event: MeasuringEnded) -> EdgeState:
    """The trainer is free again."""
    if state.measuring is None or state.measuring.sequence != event.sequence:
        return state
    return replace(state, measuring=None)


def on_step(state: EdgeState, event: StepTrained) -> tuple[EdgeState, Effects]:
    """Note how far the training is."""
    if state.training is None or state.training.job.sequence != event.sequence:
        return state, ()
    training = replace(state.training, step=event.step)
    return replace(state, training=training, last_loss=_sayable(event.loss)), ()


def on_finished(state: EdgeState, event: TrainingFinished) -> tuple[EdgeState, Effects]:
    """Make an update of what was learnt, if it is made of numbers."""
    if state.training is None or state.training.job.sequence != event.sequence:
        return state, ()
    start = state.training.job.start
    name = f"training on version {start.pointer.version}"
    delta = event.adapter - start.adapter
    if state.terms is not None and state.terms.clip_norm is not None and delta.is_finite:
        delta = delta.clipped(state.terms.clip_norm)
    if not delta.is_finite or _sayable(event.loss) is None:
        return _rest(state, event.at, f"{name} diverged and was dropped; try a smaller learning_rate")
    update = _update(state, start, delta, event)
    text = f"{name}: {event.steps} steps, loss {event.loss:.3g}, {event.seconds:.1f} s"
    done = Note(text, update.update_id, start.pointer.version)
    state, effects = delivery.store(replace(state, training=None, failures=0, last_loss=event.loss), update)
    return state, (done, *effects)


def on_failed(state: EdgeState, event: TrainingFailed) -> tuple[EdgeState, Effects]:
    """Say what is wrong, and try again later: the owner may have mended it."""
    if state.measuring is not None and state.measuring.sequence == event.sequence:
        state = replace(state, measuring=None, measured=None)
        return _rest(state, event.at, f"cannot measure a version: {event.reason}")
    if state.training is None or state.training.job.sequence != event.sequence:
        return state, ()
    return _rest(state, event.at, f"cannot train: {event.reason}")


def _reason_beside_time(state: EdgeState) -> IdleReason | None:
    """What stands in the way of a job, but time."""
    terms, held, settings = state.terms, state.held, state.identity.settings
    if terms is None:
        return "no_terms"
    if terms.finished:
        return "finished"
    if not is_taken(settings.rank, terms):
        return "rank_not_taken"
    if held is None:
        return "no_version"
    if terms.one_update_per_version and named_base(held.pointer.version, held.pointer.digest) == state.memory.last_base:
        return "version_used"
    if len(state.outbox) >= settings.outbox_updates:
        return "outbox_full"
    if settings.policy.newest_version and state.connected and state.fetch is not None:
        return "newer_version_coming"
    return reason_against(settings.policy, state.conditions, state.examples_before)


def _reason_in_time(state: EdgeState, at: float) -> IdleReason | None:
    if at < state.rest_until:
        return "resting"
    return "newer_version_coming" if at < state.newer_until else None


def _rest(state: EdgeState, at: float, why: str) -> tuple[EdgeState, Effects]:
    failures = state.failures + 1
    pause_s = wait_s(state.identity.settings.node, failures, REST_S)
    state = replace(state, training=None, failures=failures, rest_until=at + pause_s)
    return state, (Warn(f"{why}. Next try in {pause_s:.0f} s"),)


def _update(state: EdgeState, start: GlobalAdapter, delta: Adapter, event: TrainingFinished) -> Update:
    settings = state.identity.settings
    codec = _codec(state.terms, settings.codec)
    body = encode(delta, codec, end=start.adapter + delta, step=settings.kltp_step)
    room = (state.max_packet_size or 2 * MAX_CHUNK_SIZE) - HEADROOM
    chunk_size = max(SMALLEST_CHUNK, min(MAX_CHUNK_SIZE, room))
    manifest = UpdateManifest(
        node=settings.node,
        boot_id=state.identity.boot_id,
        sequence=event.sequence,
        base_version=start.pointer.version,
        base_digest=start.pointer.digest,
        base_model=state.identity.base_model,
        layout=delta.layout.digest,
        examples=event.examples,
        steps=event.steps,
        participation=state.memory.participation,
        loss=event.loss,
        seconds=event.seconds,
        held_out_loss=_reported(state, start),
        body=describe(body, codec, chunk_size, inline=min(MAX_CHUNK_SIZE, room)),
    ).to_bytes()
    base = start.pointer
    return Update(update_id(manifest), event.sequence, base.digest, base.version, manifest, body, chunk_size)


def _reported(state: EdgeState, start: GlobalAdapter) -> float | None:
    """What the update says of its base version; nothing where privacy is promised, whose accounts it is not in."""
    measured, terms = state.held_out, state.terms
    if measured is None or measured.version != start.pointer.version or (terms and terms.clip_norm is not None):
        return None
    return measured.loss


def _codec(terms: CoordinatorState | None, preferred: CodecId) -> CodecId:
    """The owner's choice if the coordinator takes it, else the first of the coordinator's that is for updates."""
    taken = terms.codecs if terms is not None else ()
    if preferred in taken:
        return preferred
    return next((codec for codec in taken if codec in UPDATE_CODECS), preferred)


def _to_measure(state: EdgeState, held: GlobalAdapter) -> int:
    """How many held-out examples this version is measured on: none when that is done."""
    done = state.held_out is not None and state.held_out.version == held.pointer.version
    return 0 if done else state.identity.settings.local_data.measured


def _is_to_be_measured(state: EdgeState) -> bool:
    """Whether the version held should be measured without a training, time aside."""
    held, is_wanted = state.held, state.identity.settings.local_data.measured_idle
    if held is None or not is_wanted or state.training is not None or state.measuring is not None:
        return False
    is_done = state.measured == named_base(held.pointer.version, held.pointer.digest) or not _to_measure(state, held)
    return not is_done and _reason_beside_time(state) in STILL_MEASURED


def _seed(identity: Identity, base: GlobalAdapter, sequence: int) -> int:
    """The same settings, node, version and sequence number give the same order of examples."""
    settings = identity.settings
    text = f"{settings.training.seed} {settings.node} {base.pointer.version} {sequence}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def _sayable(loss: float) -> float | None:
    return loss if math.isfinite(loss) and loss >= 0 else None

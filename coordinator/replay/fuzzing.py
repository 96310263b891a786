"""The same input as an unkind network would bring it: does the core ever raise, or break what it promises?

From a seed, messages are duplicated, dropped, reordered, cut short, and manifests come late. Everything else a journal
holds (terms, answers, starts) stays where it is. The versions become others, and updates count as started from what
stands in for theirs (rebasing.py), else all would be refused. The promises are checked after every event.
"""

import random
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from broker.recording import Row
from coordinator.journal import ANSWER, CONFIG, NOISE, START, TICK, event_of_row
from coordinator.replay.rebasing import rebased
from coordinator.replay.source import Source
from coordinator.replay.virtual_time import begin, turns
from coordinator.state import Answered, FederationState, PublishVersion, QuestionId, SendReceipt
from schemas.messages import GlobalManifest
from schemas.reading import address_of
from schemas.topics import UpdateManifestOf

DUPLICATED, DROPPED, REORDERED, TRUNCATED, LATE = "duplicated", "dropped", "reordered", "truncated", "late manifest"
CHANCES: Mapping[str, float] = {DUPLICATED: 0.05, DROPPED: 0.03, REORDERED: 0.1, TRUNCATED: 0.03, LATE: 0.1}
REORDER_BY, LATE_BY = 8, 40  # rows, at most
MOST_VIOLATIONS = 20  # one is one too many; these are enough to see a pattern


@dataclass(frozen=True)
class Violation:
    """A promise that was broken with one row, or what the core raised."""

    row: int
    promise: str


@dataclass(frozen=True)
class Fuzzed:
    """What fuzzed input came to."""

    seed: int
    rows: int
    harm: Mapping[str, int]
    versions: int
    receipts: Mapping[str, int]
    dropped: Mapping[str, int]  # by the core, by reason
    violations: tuple[Violation, ...]


@dataclass
class _Promises:
    """What must hold from the beginning to the end, and what has been seen of it."""

    head: GlobalManifest
    used: set[tuple[str, str]] = field(default_factory=set)
    broken: list[str] = field(default_factory=list)

    def check(self, state: FederationState, effects: tuple[object, ...]) -> list[str]:
        """What this step has broken."""
        self.broken = []
        for effect in effects:
            if isinstance(effect, PublishVersion):
                self._check_version(effect)
        self._check_state(state)
        return self.broken

    def _must(self, holds: bool, promise: str) -> None:
        if not holds:
            self.broken.append(promise)

    def _check_version(self, made: PublishVersion) -> None:
        manifest = made.manifest
        inputs = [(given.node, given.update_id) for given in manifest.inputs]
        self._must(manifest.version == self.head.version + 1, "versions follow one another")
        self._must(manifest.parent == self.head.digest, "a version's parent is the one before")
        self._must(manifest.digest == made.adapter.digest, "a digest is that of the adapter")
        self._must(made.adapter.is_finite, "an adapter is finite")
        self._must(len(set(inputs)) == len(inputs) and not self.used & set(inputs), "an update counts once")
        self.head = manifest
        self.used |= set(inputs)

    def _check_state(self, state: FederationState) -> None:
        limits = state.config.limits
        held = sum(ledger.partial_bytes for ledger in state.nodes.values())
        self._must(state.head.version == self.head.version, "the head is the newest version")
        self._must(state.partial_bytes == held, "what incomplete updates take is counted")
        self._must(held <= limits.partial_bytes, "incomplete updates stay within their limit")
        self._must(len(state.nodes) <= limits.nodes, "no more nodes than the limit are remembered")
        for update in state.buffer.updates:
            known = state.nodes[update.node].accepted.get(update.update_id) if update.node in state.nodes else None
            self._must(known is not None and known.version is None, "what waits was accepted, and is in no version")
        for node, ledger in state.nodes.items():
            self._must(
                len(ledger.partial) <= limits.partial_updates_per_node,
                f"{node} has no more incomplete updates than the limit",
            )


def fuzz(source: Source, seed: int, until: int | None = None) -> Fuzzed:
    """Play a source through an unkind network. Raises RecordingError for the file, never for what is in it."""
    source = source.opened()
    harm: Counter[str] = Counter()
    receipts: Counter[str] = Counter()
    violations: list[Violation] = []
    _, state, effects = begin(source)
    [first] = [effect.manifest for effect in effects if isinstance(effect, PublishVersion)]
    promises = _Promises(first)
    answers = _answers(source)
    rows = 0
    for row in unkind(rebased(source, lambda: state), seed, harm):  # noqa: B023 - the newest state is meant
        rows += 1
        try:
            for turn in turns(state, row, answers):
                state = turn.state
                receipts.update(e.receipt.status for e in turn.effects if isinstance(e, SendReceipt))
                violations += [Violation(row.seq, promise) for promise in promises.check(state, turn.effects)]
        except Exception as error:  # the one thing that a bad message must never cause
            where = traceback.extract_tb(error.__traceback__)[-1]
            raised = f"raised {type(error).__name__} in {where.name}: {error}"
            violations.append(Violation(row.seq, raised))
        if (until is not None and state.head.version >= until) or len(violations) >= MOST_VIOLATIONS:
            break
    return Fuzzed(seed, rows, dict(harm), state.head.version, dict(receipts), dict(state.dropped), tuple(violations))


def unkind(rows: Iterator[Row], seed: int, harm: Counter[str]) -> Iterator[Row]:
    """The rows as an unkind network would bring them; the same for the same seed. `harm` counts what was done."""
    draw = random.Random(seed)
    held: list[tuple[int, Row]] = []  # with how many rows more they wait for
    for row in rows:
        if row.topic in (CONFIG, NOISE, START):
            yield row
            continue
        if row.topic == TICK or row.topic.startswith(ANSWER):
            continue  # the clock ticks by itself, and answers come when they are asked for
        done = [kind for kind, chance in CHANCES.items() if draw.random() < chance]
        copies = [row] * (2 if DUPLICATED in done else 1)
        if DROPPED in done:
            copies.pop()
        if TRUNCATED in done and row.payload:
            copies = [replace(copy, payload=copy.payload[: draw.randrange(len(row.payload))]) for copy in copies]
        late = LATE in done and _is_manifest(row)
        harm.update(kind for kind in done if kind != LATE or late)
        wait = draw.randint(1, LATE_BY) if late else draw.randint(1, REORDER_BY) if REORDERED in done else 0
        held = [(left - 1, waiting) for left, waiting in held]
        held += [(wait, copy) for copy in copies]
        due = [waiting for left, waiting in held if left <= 0]
        held = [(left, waiting) for left, waiting in held if left > 0]
        yield from (replace(waiting, received_at_ns=row.received_at_ns) for waiting in due)
    yield from (waiting for _, waiting in held)


def _is_manifest(row: Row) -> bool:
    found = address_of(row.topic)
    return found is not None and isinstance(found[1], UpdateManifestOf)


def _answers(source: Source) -> dict[QuestionId, bytes]:
    """What the base model has answered, by question: here the questions are others, but answers must still not harm."""
    events = (event_of_row(row) for row in source.rows() if row.topic.startswith(ANSWER))
    return {event.question_id: event.payload for event in events if isinstance(event, Answered)}

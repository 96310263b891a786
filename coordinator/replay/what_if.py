"""What if: the same input without some nodes, or under another strategy. For finding causes, not for results.

Nodes have trained from the versions that were recorded; here their updates count as started from what stands in for
those (rebasing.py), and the core decides as ever. The base model is not asked: there is no anchor and no gate.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from broker.recording import Row
from coordinator.journal import ANSWER, CONFIG, POISON, ROLLBACK, START, TICK
from coordinator.replay.rebasing import rebased
from coordinator.replay.source import NotReplayable, Source
from coordinator.replay.virtual_time import Turn, begin, turns
from coordinator.state import FederationConfig, FederationState, PublishVersion, SendReceipt
from coordinator.strategies import Strategy
from schemas.adapter import Adapter
from schemas.messages import GlobalManifest
from schemas.reading import address_of

PACE = (
    "buffer_size",
    "nodes_per_round",
    "timeout_s",
    "max_staleness",
    "node_share",
)  # settings that another strategy takes over
ASKING = ("calibration_only",)  # strategies that are nothing without the base model


@dataclass(frozen=True)
class Change:
    """What is to be otherwise: nodes that were never there, another strategy."""

    without: tuple[str, ...] = ()
    strategy: Strategy | None = None


@dataclass(frozen=True)
class WhatIfVersion:
    """One version of a what-if; `step` is the Euclidean distance from its parent, `row` the one that made it."""

    version: int
    digest: str
    row: int
    created_at_ns: int
    updates: int
    nodes: tuple[str, ...]
    mean_staleness: float
    step: float
    manifest: GlobalManifest


@dataclass(frozen=True)
class WhatIf:
    """The versions of a what-if, how many receipts of each status it gave, and the state at its end."""

    versions: tuple[WhatIfVersion, ...]
    receipts: Mapping[str, int]
    state: FederationState


def strategy_named(name: str, recorded: FederationConfig) -> Strategy:
    """A strategy with its defaults, at the pace of the recorded one where it has such settings.

    Raises NotReplayable for a name that is none, and for a strategy that is nothing without the base model.
    """
    if name in ASKING:
        raise NotReplayable(f"{name} asks the base model for every version: it cannot be a what-if")
    adapter: TypeAdapter[Any] = TypeAdapter(Strategy)
    before = recorded.strategy
    try:
        plain = adapter.validate_python({"name": name})
    except ValidationError:
        raise NotReplayable(f"there is no strategy {name}") from None
    taken = {
        field: getattr(before, field)
        for field in PACE
        if field in type(plain).model_fields and field in type(before).model_fields
    }
    if name == before.name:
        return before
    try:
        strategy: Strategy = adapter.validate_python({"name": name} | taken)
    except ValidationError:  # what one takes may be out of the other's bounds
        strategy = plain
    return strategy


def what_if(source: Source, change: Change, until: int | None = None) -> WhatIf:
    """Play a source with a change, up to version `until`. Raises RecordingError."""
    versions: list[WhatIfVersion] = []
    receipts: Counter[str] = Counter()
    parent: Adapter | None = None
    state = None
    for turn in _turns(source, change):
        state = turn.state
        for effect in turn.effects:
            if isinstance(effect, SendReceipt):
                receipts[effect.receipt.status] += 1
            elif isinstance(effect, PublishVersion):
                versions.append(_version(turn.row, effect, parent))
                parent = effect.adapter
        if until is not None and state.head.version >= until:
            break
    assert state is not None
    return WhatIf(tuple(versions), dict(sorted(receipts.items())), state)


def _turns(source: Source, change: Change) -> Iterator[Turn]:
    source = source.opened()
    changed = replace(source, config=_changed(source.config, change))
    turn = begin(changed)
    yield turn
    state = turn.state
    for row in rebased(changed, lambda: state):  # noqa: B023 - the newest state is meant
        event = _event_row(row, change)
        if event is not None:
            for turn in turns(state, event, {}):
                state = turn.state
                yield turn


def _changed(config: FederationConfig, change: Change) -> FederationConfig:
    strategy = change.strategy or config.strategy
    privacy = None if change.strategy else config.privacy  # another strategy may have no place for noise
    update = {"strategy": strategy, "calibration": None, "final_version": None, "privacy": privacy}
    return config.model_copy(update=update)


def _event_row(row: Row, change: Change) -> Row | None:
    """The row as it comes in here; None for what does not."""
    if row.topic in (TICK, START) or row.topic.startswith((ANSWER, ROLLBACK)):
        return None  # time is this clock's own, nobody asks the base model, and there is no such version here
    if row.topic == CONFIG:
        config = _changed(FederationConfig.from_bytes(row.payload), change)
        return replace(row, payload=config.to_bytes())
    found = address_of(row.topic.removeprefix(POISON))
    return None if found is not None and getattr(found[1], "node", None) in change.without else row


def _version(row: Row, made: PublishVersion, parent: Adapter | None) -> WhatIfVersion:
    manifest = made.manifest
    ages = [manifest.version - 1 - given.base_version for given in manifest.inputs]
    return WhatIfVersion(
        version=manifest.version,
        digest=manifest.digest,
        row=row.seq,
        created_at_ns=manifest.created_at_ns,
        updates=len(manifest.inputs),
        nodes=tuple(sorted({given.node for given in manifest.inputs})),
        mean_staleness=sum(ages) / len(ages) if ages else 0.0,
        step=0.0 if parent is None else (made.adapter - parent).norm,
        manifest=manifest,
    )

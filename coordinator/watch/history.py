"""What has happened so far, in the figures that an operator asks for: a fold over effects, beside that of the state.

The state keeps only what decisions need. This keeps what people want to know: who was refused and why, what the last
versions were made of, how stale updates were, how long the base model worked. The same journal gives the same history.
Pure; it knows neither who is online nor who looks.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TypeVar

from coordinator.questions import Kind, work_of
from coordinator.state import Answered, Effect, Event, PublishRelease, PublishVersion, SendReceipt
from coordinator.trust.ledger import Refusal
from schemas.messages import GlobalManifest, InvalidMessage, ReceiptStatus, ReleaseReport, UpdateManifest

K = TypeVar("K")

KEPT_VERSIONS = 100
MOST_STRANGERS = 100  # nodes of whom nothing was ever accepted: anybody can invent names


@dataclass(frozen=True)
class LastUpdate:
    """The newest update of one node that could be read, and what has become of it."""

    update_id: str
    at_ns: int
    status: ReceiptStatus
    base_version: int
    loss: float
    version: int | None = None
    reason: str | None = None


@dataclass(frozen=True)
class NodeHistory:
    """What one node has sent."""

    last: LastUpdate | None = None
    refusals: Mapping[Refusal, int] = field(default_factory=dict)
    refused_in_a_row: int = 0
    first_version: int | None = None  # the head when its first update was accepted


@dataclass(frozen=True)
class VersionMade:
    """A version, and the mean of its nodes' own training losses; None where there were none."""

    manifest: GlobalManifest
    node_loss: float | None


@dataclass(frozen=True)
class History:
    """All of it: by node, by version, and counted since the federation began."""

    nodes: Mapping[str, NodeHistory] = field(default_factory=dict)
    versions: tuple[VersionMade, ...] = ()  # the newest KEPT_VERSIONS, oldest first
    decisions: Mapping[int, ReleaseReport] = field(default_factory=dict)  # on those, by the version that was judged
    losses: Mapping[str, float] = field(default_factory=dict)  # of updates that wait for their version, by id
    staleness: Mapping[int, int] = field(default_factory=dict)  # aggregated updates by their staleness
    group_sizes: Mapping[int, int] = field(default_factory=dict)  # updates of one base version in one version
    refusals: Mapping[Refusal, int] = field(default_factory=dict)
    gate: Mapping[bool, int] = field(default_factory=dict)  # measured decisions by whether the version was taken
    seconds: Mapping[Kind, float] = field(default_factory=dict)  # processor time of the base model

    @property
    def head(self) -> int:
        """The newest version."""
        return self.versions[-1].manifest.version if self.versions else 0


def observe(history: History, event: Event | None, effects: tuple[Effect, ...], at_ns: int) -> History:
    """The history after one event and what came of it; None is the founding."""
    if isinstance(event, Answered):
        history = _worked(history, event.payload)
    for effect in effects:
        match effect:
            case SendReceipt():
                history = _answered(history, effect, at_ns)
            case PublishVersion(manifest):
                history = _made(history, manifest)
            case PublishRelease(report):
                history = _decided(history, report)
    return history


def is_measured(report: ReleaseReport) -> bool:
    """Whether the base model was asked before this was decided."""
    return report.candidate is not None or report.before is not None


def _worked(history: History, payload: bytes) -> History:
    try:
        kind, seconds = work_of(payload)
    except InvalidMessage:  # the core drops it, and counts it
        return history
    return replace(history, seconds={**history.seconds, kind: history.seconds.get(kind, 0.0) + seconds})


def _answered(history: History, effect: SendReceipt, at_ns: int) -> History:
    receipt, node = effect.receipt, history.nodes.get(effect.node, NodeHistory())
    match receipt.status:
        case "accepted" if effect.manifest is not None:
            first = history.head if node.first_version is None else node.first_version
            node = replace(node, last=_last(effect, effect.manifest, at_ns), refused_in_a_row=0, first_version=first)
            history = replace(history, losses={**history.losses, receipt.update_id: effect.manifest.loss})
        case "aggregated":
            node = replace(node, last=_became(node.last, effect))
        case "rejected" | "stale" if (cause := effect.cause) is not None:
            last = _became(node.last, effect)
            if effect.manifest is not None:
                last = _last(effect, effect.manifest, at_ns)
            node = replace(
                node, last=last, refusals=_plus(node.refusals, cause), refused_in_a_row=node.refused_in_a_row + 1
            )
            losses = {id_: loss for id_, loss in history.losses.items() if id_ != receipt.update_id}
            history = replace(history, losses=losses, refusals=_plus(history.refusals, cause))
        case _:
            return history
    return _with_node(history, effect.node, node)


def _last(effect: SendReceipt, manifest: UpdateManifest, at_ns: int) -> LastUpdate:
    receipt = effect.receipt
    return LastUpdate(
        receipt.update_id, at_ns, receipt.status, manifest.base_version, manifest.loss, reason=receipt.reason
    )


def _became(last: LastUpdate | None, effect: SendReceipt) -> LastUpdate | None:
    """The last update with its new status, if it is the one that the receipt is about."""
    receipt = effect.receipt
    if last is None or last.update_id != receipt.update_id:
        return last
    return replace(last, status=receipt.status, version=receipt.version, reason=receipt.reason)


def _with_node(history: History, name: str, node: NodeHistory) -> History:
    nodes = {**history.nodes, name: node}
    if name not in history.nodes and node.first_version is None:
        strangers = [other for other, known in nodes.items() if known.first_version is None]
        if len(strangers) > MOST_STRANGERS:
            del nodes[strangers[0]]  # in order of appearance
    return replace(history, nodes=nodes)


def _made(history: History, manifest: GlobalManifest) -> History:
    ids = {update.update_id for update in manifest.inputs}
    known = [history.losses[id_] for id_ in sorted(ids) if id_ in history.losses]
    made = VersionMade(manifest, fmean(known) if known else None)
    versions = (*history.versions, made)[-KEPT_VERSIONS:]
    oldest = versions[0].manifest.version
    groups = Counter(update.base_version for update in manifest.inputs)
    stalenesses, sizes = Counter(history.staleness), Counter(history.group_sizes)
    stalenesses.update({manifest.version - 1 - base: count for base, count in groups.items()})
    sizes.update(groups.values())
    return replace(
        history,
        versions=versions,
        decisions={version: report for version, report in history.decisions.items() if version >= oldest},
        losses={id_: loss for id_, loss in history.losses.items() if id_ not in ids},
        staleness=dict(stalenesses),
        group_sizes=dict(sizes),
    )


def _decided(history: History, report: ReleaseReport) -> History:
    decided = replace(history, decisions={**history.decisions, report.judged: report})
    return replace(decided, gate=_plus(history.gate, report.is_taken)) if is_measured(report) else decided


def _plus(counts: Mapping[K, int], key: K) -> dict[K, int]:
    return {**counts, key: counts.get(key, 0) + 1}

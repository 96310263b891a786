"""Stories of a federation: what nodes send, and what the coordinator decides.

A line that begins with `>` is played against the real core; what follows is what it answered. `make golden` writes the
answers anew: review them as a diff. Adapters have two parameters that move together, so one number says what they are.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.core import found, next_deadline, step
from coordinator.operations.orders import Forgive, Quarantine
from coordinator.questions import (
    AlignDeltas,
    AlignedDeltas,
    MeasuredLosses,
    MeasureLosses,
    Question,
    TrainAnchor,
    TrainedAnchor,
    answer_to_bytes,
)
from coordinator.state import (
    Answered,
    AskModel,
    Drop,
    Effect,
    Event,
    FederationConfig,
    FederationState,
    Ordered,
    PublishRelease,
    PublishVersion,
    RaiseAlarm,
    Received,
    SendReceipt,
    Started,
    Ticked,
)
from schemas.adapter import Adapter, Layout, LoraConfig
from schemas.chunks import describe, split
from schemas.codec import encode
from schemas.messages import ReleaseReport, UpdateManifest, join_body, update_id
from schemas.topics import UpdateChunk, UpdateManifestOf, route

STORIES = sorted(Path(__file__).parent.glob("*.txt"))
LAYOUT = Layout(lora=LoraConfig(rank=1), tensors=(("x.lora_A.weight", (1, 1)), ("x.lora_B.weight", (1, 1))))
FEDERATION = "golden"
BASE_MODEL = "ba5e" * 16
SECOND = 1_000_000_000


@pytest.mark.parametrize("story", STORIES, ids=lambda path: path.stem)
def test_the_coordinator_decides_as_in_the_story(story: Path, rewrite: bool) -> None:
    told = story.read_text()
    played = "\n".join(play(told)) + "\n"
    if rewrite:
        story.write_text(played)
    else:
        assert played == told


def play(told: str) -> list[str]:
    """The story again, with the answers that the core gives now."""
    lines, teller = [], Teller()
    for line in told.splitlines():
        if line.startswith(">"):
            lines += [line, *teller.tell(shlex.split(line[1:]))]
        elif line.startswith("#") or not line:
            lines.append(line)
    return lines


@dataclass
class Teller:
    """Carries out the commands of one story."""

    now_s: float = 0
    state: FederationState | None = None
    config: FederationConfig | None = None
    events: list[Event] = field(default_factory=list)
    questions: dict[tuple[int, int], Question[Any]] = field(default_factory=dict)  # by id; the last one asked last
    names: dict[str, str] = field(default_factory=dict)  # update id -> its name in the story
    packets: dict[str, list[tuple[str, bytes]]] = field(default_factory=dict)  # name -> manifest, then chunks

    def tell(self, words: list[str]) -> list[str]:
        command, *rest = words
        options = dict(word.split("=", 1) for word in rest if "=" in word)
        names = [word for word in rest if "=" not in word]
        return list(getattr(self, f"_{command}")(*names, **options))

    def _federation(self, strategy: str, **options: str) -> list[str]:
        folds = {fold: options.pop(fold) for fold in ("anchor", "gate") if fold in options}
        config = {
            "federation": FEDERATION,
            "base_model": BASE_MODEL,
            "base_model_name": "tiny",
            "layout": LAYOUT,
            "final_version": options.pop("final_version", None),
            "calibration": {"digest": "ca11" * 16, "folds": folds, "training": {}} if folds else None,
            "limits": {"nodes": 3},
            "strategy": {"name": strategy} | _nested(options),
        }
        self.config = FederationConfig.model_validate(config)
        self.state, effects = found(self.config, Adapter.zeros(LAYOUT), self._now())
        return self._report(effects)

    def _train(self, name: str, node: str, base: str, delta: str, codec: str = "fp32", **options: str) -> list[str]:
        """A node makes an update; nothing is sent yet."""
        assert self.state is not None
        value = Adapter(LAYOUT, np.full(2, float(delta), dtype=np.float32))
        body = encode(value, codec) if value.is_finite else value.values.tobytes()
        chunk_size = int(options.get("chunk_size", 0))
        manifest = UpdateManifest(
            node=node,
            boot_id="b" * 32,
            sequence=len(self.packets),
            base_version=int(base),
            base_digest=self.state.digests.get(int(base), "f" * 64),
            base_model=BASE_MODEL if options.get("model", "tiny") == "tiny" else "f00d" * 16,
            layout=LAYOUT.digest if options.get("layout", "same") == "same" else "d" * 64,
            examples=int(options.get("examples", 4)),
            steps=8,
            participation=int(options.get("participation", 0)),
            loss=1.0,
            seconds=1.0,
            body=describe(body, codec, chunk_size or len(body), inline=0 if chunk_size else len(body)),
        )
        text = manifest.to_bytes()
        id_ = update_id(text)
        self.names[id_] = name
        chunks = split(body, chunk_size) if chunk_size else ()
        payload = text if chunk_size else join_body(text, body)
        self.packets[name] = [(route(FEDERATION, UpdateManifestOf(node, id_)).topic, payload)] + [
            (route(FEDERATION, UpdateChunk(node, id_, index)).topic, chunk) for index, chunk in enumerate(chunks)
        ]
        return []

    def _send(self, name: str, *parts: str) -> list[str]:
        """Deliver the manifest and chunks named (`manifest`, `0`, `1`, ...), or all of them, manifest last."""
        packets = self.packets[name]
        wanted = parts or (*map(str, range(len(packets) - 1)), "manifest")
        return [line for part in wanted for line in self._receive(*packets[0 if part == "manifest" else int(part) + 1])]

    def _corrupt(self, name: str, part: str) -> list[str]:
        """Deliver one chunk with its last bit turned over."""
        topic, payload = self.packets[name][int(part) + 1]
        return self._receive(topic, payload[:-1] + bytes([payload[-1] ^ 1]))

    def _truncate(self, name: str) -> list[str]:
        """Deliver the manifest's message with its last byte cut off."""
        topic, payload = self.packets[name][0]
        return self._receive(topic, payload[:-1])

    def _answer(self, delta: str = "0", loss: str = "", id: str = "") -> list[str]:
        """The base model answers what was asked last, or as if it had this id: a delta, or losses with commas."""
        figures = tuple(map(float, loss.split(",")))
        value = Adapter(LAYOUT, np.full(2, float(delta), dtype=np.float32))
        asked, question = list(self.questions.items())[-1]
        match question:
            case TrainAnchor():
                payload = answer_to_bytes(TrainedAnchor(value, *figures, seconds=1.0))
            case MeasureLosses():
                payload = answer_to_bytes(MeasuredLosses(figures, seconds=1.0))
            case AlignDeltas(deltas=deltas):
                payload = answer_to_bytes(AlignedDeltas((value,) * len(deltas), *figures, seconds=1.0))
        version, index = map(int, id.split(".")) if id else asked
        return self._step(Answered(self._now(), (version, index), payload))

    def _order(self, kind: str, node: str, reason: str = "") -> list[str]:
        """The operator orders something about a node."""
        order = Quarantine(node=node, reason=reason) if kind == "quarantine" else Forgive(node=node)
        assert self.state is not None
        return self._step(Ordered(self._now(), self.state.orders + 1, order.to_bytes()))

    def _garbage(self, topic: str, payload: str = "") -> list[str]:
        return self._receive(topic, payload.encode())

    def _wait(self, seconds: str) -> list[str]:
        """Time passes; the core is ticked when it asked for it."""
        assert self.state is not None
        until, lines = self.now_s + float(seconds), []
        while (due := next_deadline(self.state)) is not None and due <= until * SECOND:
            self.now_s = max(self.now_s, due / SECOND)
            lines += self._step(Ticked(self._now()))
        self.now_s = until
        return lines

    def _restart(self) -> list[str]:
        """The coordinator is killed: all that is left is what it has recorded."""
        assert self.config is not None
        before, (self.state, _) = self.state, found(self.config, Adapter.zeros(LAYOUT), 0)
        for event in self.events:
            self.state, _ = step(self.state, event)
        assert self.state == before
        return [*self._step(Started(self._now())), f"epoch {self.state.epoch}, version {self.state.head.version}"]

    def _receive(self, topic: str, payload: bytes) -> list[str]:
        return self._step(Received(self._now(), topic, payload))

    def _step(self, event: Event) -> list[str]:
        assert self.state is not None
        self.events.append(event)
        self.state, effects = step(self.state, event)
        return self._report(effects)

    def _now(self) -> int:
        return int(self.now_s * SECOND)

    def _report(self, effects: tuple[Effect, ...]) -> list[str]:
        self.questions |= {effect.question_id: effect.question for effect in effects if isinstance(effect, AskModel)}
        return [line for effect in effects if (line := self._line(effect))]

    def _line(self, effect: Effect) -> str:
        match effect:
            case SendReceipt(_, receipt):
                parts = [f"{self.names.get(receipt.update_id, receipt.update_id)}: {receipt.status}"]
                parts += [f"in version {receipt.version}"] if receipt.version is not None else []
                parts += [f"missing {', '.join(map(str, receipt.missing))}"] if receipt.missing else []
                return " ".join(parts) + (f", {receipt.reason}" if receipt.reason else "")
            case PublishVersion(manifest, adapter):
                made_of = [
                    f"{self.names[i.update_id]} of {i.node}@{i.base_version} x {_fraction(i.weight)}"
                    for i in manifest.inputs
                ]
                made_of += [f"the anchor x {_fraction(manifest.anchor.weight)}"] if manifest.anchor else []
                value = f"version {manifest.version} is {_value(adapter)}"
                if manifest.returned:
                    return f"{value}: back to version {manifest.returned.version}'s {manifest.returned.variant}"
                return f"{value} = {' + '.join(made_of)}" if made_of else value
            case PublishRelease(report, adapter):
                return _served(report, adapter)
            case AskModel((version, index), question):
                return f"asks {version}.{index}: {_asked(question)}"
            case Drop(reason, _):
                return f"dropped: {reason}"
            case RaiseAlarm(node, ledger):
                return f"alarm: {ledger.refused_share:.0%} of {node}'s updates are refused"


def _served(report: ReleaseReport, adapter: Adapter) -> str:
    """What is served, if that is not simply the new head."""
    if report.variant == "head" and report.candidate is None and report.is_taken:
        return ""
    goes_on = "" if report.is_taken else f" goes on being served: version {report.judged} is turned down"
    return f"version {report.version}'s {report.variant}, {_value(adapter)},{goes_on or ' is served'}"


def _nested(options: Mapping[str, str]) -> dict[str, Any]:
    """`release.choose=gated` as a setting in a table."""
    nested: dict[str, Any] = {}
    for key, value in options.items():
        table, _, name = key.rpartition(".")
        (nested.setdefault(table, {}) if table else nested)[name] = value
    return nested


def _asked(question: Question[Any]) -> str:
    match question:
        case TrainAnchor(start):
            return f"train the anchor from {_value(start)}"
        case MeasureLosses(fold, adapters):
            return f"losses on the {fold} fold of {', '.join(map(_value, adapters))}"
        case AlignDeltas(method, base, head, deltas):
            carried = ", ".join(map(_value, deltas))
            return f"align {carried} from {_value(base)} to {_value(head)}, {method}"
    raise AssertionError(f"no words for {question}")


def _value(adapter: Adapter) -> str:
    return _fraction(float(adapter.values[0]))


def _fraction(value: float) -> str:
    exact = Fraction(value).limit_denominator(64)
    return str(exact) if abs(float(exact) - value) < 1e-6 else f"{value:.4f}"

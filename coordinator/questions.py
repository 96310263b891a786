"""What a strategy may ask of the base model while it makes a version, and the answers. Pure: the model is elsewhere.

An answer travels as bytes, is journalled raw, and is read again from those bytes: a replay needs no model.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, TypeVar

from pydantic import Field

from schemas.adapter import Adapter, Layout
from schemas.codec import decode, encode
from schemas.messages import CodecId, InvalidMessage, Loss, Message, join_body, split_body

Fold = Literal["anchor", "gate"]
Kind = Literal["anchor", "losses", "aligned"]
DELTA_CODEC: CodecId = "int8"  # as nodes send theirs; what the core sees is what was journalled


@dataclass(frozen=True)
class TrainedAnchor:
    """What the anchor's steps learnt, and the loss of the first and of the last of them."""

    delta: Adapter
    loss_before: float
    loss_after: float
    seconds: float

    @property
    def parts(self) -> int:
        """One delta."""
        return 1


@dataclass(frozen=True)
class MeasuredLosses:
    """Mean loss over a fold's answer tokens, nats, in the order of the adapters."""

    losses: tuple[float, ...]
    seconds: float

    @property
    def parts(self) -> int:
        """How many losses."""
        return len(self.losses)


@dataclass(frozen=True)
class AlignedDeltas:
    """The deltas for the head, and how far the group is from its aim, before and after."""

    deltas: tuple[Adapter, ...]
    residual_before: float
    residual_after: float
    seconds: float

    @property
    def parts(self) -> int:
        """How many deltas."""
        return len(self.deltas)


Answer = TrainedAnchor | MeasuredLosses | AlignedDeltas
A = TypeVar("A", bound=Answer)
A_co = TypeVar("A_co", bound=Answer, covariant=True)


class Question(Protocol[A_co]):
    """Something the base model can answer."""

    def type_of_answer(self) -> type[A_co]:
        """What a true answer is."""

    @property
    def parts(self) -> int:
        """How many losses or deltas an answer has."""


@dataclass(frozen=True)
class TrainAnchor:
    """A node's own few steps, done by the coordinator on the anchor fold, from `start`."""

    start: Adapter
    seed: int

    def type_of_answer(self) -> type[TrainedAnchor]:
        """See Question."""
        return TrainedAnchor

    @property
    def parts(self) -> int:
        """See Question."""
        return 1


@dataclass(frozen=True)
class MeasureLosses:
    """The loss of each adapter on one fold."""

    fold: Fold
    adapters: tuple[Adapter, ...]

    def type_of_answer(self) -> type[MeasuredLosses]:
        """See Question."""
        return MeasuredLosses

    @property
    def parts(self) -> int:
        """See Question."""
        return len(self.adapters)


@dataclass(frozen=True)
class AlignDeltas:
    """Carry deltas that were made at `base` over to `head`, measured on the anchor fold's prompts."""

    method: Literal["semantic", "literal"]
    base: Adapter
    head: Adapter
    deltas: tuple[Adapter, ...]

    def type_of_answer(self) -> type[AlignedDeltas]:
        """See Question."""
        return AlignedDeltas

    @property
    def parts(self) -> int:
        """See Question."""
        return len(self.deltas)


class Ask(Protocol):
    """How a strategy asks. The call does not return before there is an answer."""

    def __call__(self, question: Question[A]) -> A:
        """The answer to this question."""


class Unanswered(Exception):
    """The model has to answer this question before the strategy can go on."""

    def __init__(self, question: Question[Any]) -> None:
        super().__init__(type(question).__name__)
        self.question = question


class Recall:
    """Answers a strategy's questions from those it got before, in the order of asking; the first new one is raised.

    The core calls a strategy again from the start after every answer. That keeps a half-made version a value, and a
    strategy a plain function; what is done twice is a few sums.
    """

    def __init__(self, answers: tuple[Answer, ...]) -> None:
        self._waiting = list(answers)

    def __call__(self, question: Question[A]) -> A:
        """The answer to this question; raises Unanswered when it is not there yet."""
        if not self._waiting:
            raise Unanswered(question)
        answer, expected = self._waiting.pop(0), question.type_of_answer()
        if not isinstance(answer, expected) or not fits(answer, question):
            raise ValueError(f"{type(question).__name__} was answered by {type(answer).__name__}")
        return answer


def fits(answer: Answer, question: Question[Any]) -> bool:
    """Whether this can be the answer to that question."""
    return isinstance(answer, question.type_of_answer()) and answer.parts == question.parts


class _Head(Message):
    """The JSON part of an answer; the deltas follow as bytes, in order."""

    kind: Kind
    figures: tuple[Loss | None, ...] = Field(max_length=64, description="losses or residuals; none is infinite")
    sizes: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(), max_length=1000, description="of each delta")
    seconds: float


def answer_to_bytes(answer: Answer) -> bytes:
    """An answer as one payload; what is read from it again is the answer that counts."""
    match answer:
        case TrainedAnchor():
            return _payload("anchor", (answer.loss_before, answer.loss_after), (answer.delta,), answer.seconds)
        case MeasuredLosses():
            return _payload("losses", answer.losses, (), answer.seconds)
        case AlignedDeltas():
            residuals = (answer.residual_before, answer.residual_after)
            return _payload("aligned", residuals, answer.deltas, answer.seconds)


def answer_from_bytes(layout: Layout, payload: bytes) -> Answer:
    """Read what `answer_to_bytes` made; InvalidMessage or CodecError for anything else."""
    text, bodies = split_body(payload)
    head = _Head.from_bytes(text)
    figures = tuple(math.inf if figure is None else figure for figure in head.figures)
    deltas, start = [], 0
    for size in head.sizes:
        deltas.append(decode(bodies[start : start + size], layout, DELTA_CODEC))
        start += size
    if start != len(bodies):
        raise InvalidMessage(f"an answer with {len(bodies) - start} bytes too many")
    match head.kind:
        case "losses" if not deltas:
            return MeasuredLosses(figures, head.seconds)
        case "anchor" if len(figures) == 2 and len(deltas) == 1:
            return TrainedAnchor(deltas[0], *figures, seconds=head.seconds)
        case "aligned" if len(figures) == 2:
            return AlignedDeltas(tuple(deltas), *figures, seconds=head.seconds)
    raise InvalidMessage(f"an answer of kind {head.kind} with {len(figures)} figures and {len(deltas)} deltas")


def work_of(payload: bytes) -> tuple[Kind, float]:
    """What kind of answer a payload is, and the processor time that it took, without its deltas; or InvalidMessage."""
    head = _Head.from_bytes(split_body(payload)[0])
    return head.kind, head.seconds


def _payload(
    kind: Literal["anchor", "losses", "aligned"],
    figures: tuple[float, ...],
    deltas: tuple[Adapter, ...],
    seconds: float,
) -> bytes:
    bodies = [encode(delta, DELTA_CODEC) for delta in deltas]
    head = _Head(
        kind=kind,
        figures=tuple(figure if math.isfinite(figure) else None for figure in figures),
        sizes=tuple(len(body) for body in bodies),
        seconds=seconds,
    )
    return join_body(head.to_bytes(), b"".join(bodies))

"""Questions to the base model: the answers as bytes, and as what a strategy is told."""

import math
from collections.abc import Callable
from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from coordinator.questions import (
    AlignDeltas,
    AlignedDeltas,
    Answer,
    MeasuredLosses,
    MeasureLosses,
    Recall,
    TrainAnchor,
    TrainedAnchor,
    Unanswered,
    answer_from_bytes,
    answer_to_bytes,
)
from schemas.adapter import Adapter, Layout, LoraConfig
from schemas.codec import CodecError, decode, encode
from schemas.messages import InvalidMessage

MakeAdapter = Callable[..., Adapter]

WIDE = Layout(lora=LoraConfig(rank=2), tensors=(("x.lora_A.weight", (2, 3)), ("x.lora_B.weight", (4, 2))))
FLOATS = st.floats(-1e6, 1e6, width=32)
DELTAS = st.lists(FLOATS, min_size=WIDE.size, max_size=WIDE.size).map(
    lambda values: Adapter(WIDE, np.array(values, dtype=np.float32))
)
LOSSES = st.floats(0, allow_nan=False)
SECONDS = st.floats(0, 1e9)
ANSWERS = st.one_of(
    st.builds(TrainedAnchor, DELTAS, LOSSES, LOSSES, SECONDS),
    st.builds(MeasuredLosses, st.lists(LOSSES, max_size=5).map(tuple), SECONDS),
    st.builds(AlignedDeltas, st.lists(DELTAS, max_size=3).map(tuple), LOSSES, LOSSES, SECONDS),
)


def deltas_of(answer: Answer) -> tuple[Adapter, ...]:
    match answer:
        case TrainedAnchor(delta):
            return (delta,)
        case AlignedDeltas(deltas):
            return deltas
    return ()


def figures_of(answer: Answer) -> dict[str, object]:
    return {name: value for name, value in vars(answer).items() if name not in ("delta", "deltas")}


def as_sent(delta: Adapter) -> Adapter:
    """What a node's delta would be, after the codec that nodes use."""
    return decode(encode(delta, "int8"), delta.layout, "int8")


# --- bytes ---


@given(ANSWERS)
def test_an_answer_survives_the_bytes_with_its_deltas_as_nodes_would_send_them(answer: Answer) -> None:
    read = answer_from_bytes(WIDE, answer_to_bytes(answer))
    assert type(read) is type(answer)
    assert figures_of(read) == figures_of(answer)
    assert deltas_of(read) == tuple(map(as_sent, deltas_of(answer)))


@given(ANSWERS)
def test_the_same_bytes_are_the_same_answer_to_the_last_bit(answer: Answer) -> None:
    payload = answer_to_bytes(answer)
    assert answer_from_bytes(WIDE, payload) == answer_from_bytes(WIDE, payload)
    assert answer_to_bytes(answer) == payload


@given(DELTAS)
def test_an_anchor_s_delta_is_rounded_by_half_a_step_at_most(delta: Adapter) -> None:
    read = answer_from_bytes(WIDE, answer_to_bytes(TrainedAnchor(delta, 1.0, 1.0, 0.0)))
    assert isinstance(read, TrainedAnchor)
    step = float(np.abs(delta.values).max()) / 127
    assert np.abs(read.delta.values - delta.values).max() <= step / 2 * (1 + 1e-5)


def test_a_loss_that_is_no_number_is_read_as_infinite(adapter: MakeAdapter, layout: Layout) -> None:
    losses = MeasuredLosses((math.nan, math.inf, 1.5), seconds=2.5)
    assert answer_from_bytes(layout, answer_to_bytes(losses)) == MeasuredLosses((math.inf, math.inf, 1.5), 2.5)
    anchor = TrainedAnchor(adapter(1), math.nan, math.inf, 0.5)
    assert answer_from_bytes(layout, answer_to_bytes(anchor)) == TrainedAnchor(adapter(1), math.inf, math.inf, 0.5)


def test_no_delta_at_all_is_an_alignment_of_nothing(layout: Layout) -> None:
    nothing = AlignedDeltas((), 0.0, 0.0, 0.0)
    assert answer_from_bytes(layout, answer_to_bytes(nothing)) == nothing


@pytest.fixture
def answers(adapter: MakeAdapter) -> tuple[Answer, ...]:
    """One of each kind."""
    return (
        TrainedAnchor(adapter(1, 2), 2.5, 1.5, 0.5),
        MeasuredLosses((3.5, 2.5, 1.5), 0.5),
        AlignedDeltas((adapter(1), adapter(2)), 2.5, 1.5, 0.5),
    )


def read_or_refused(layout: Layout, payload: bytes) -> None:
    """Either an answer, or one of the two errors that are said of it."""
    try:
        answer_from_bytes(layout, payload)
    except (InvalidMessage, CodecError) as error:
        assert str(error)


def test_every_truncated_answer_is_refused(answers: tuple[Answer, ...], layout: Layout) -> None:
    for answer in answers:
        payload = answer_to_bytes(answer)
        text = payload.index(b"\n")
        for length in range(len(payload)):
            if deltas_of(answer) or length < text:
                with pytest.raises((InvalidMessage, CodecError)):
                    answer_from_bytes(layout, payload[:length])


def test_every_flipped_bit_is_refused_or_read_as_some_answer(answers: tuple[Answer, ...], layout: Layout) -> None:
    for answer in answers:
        payload = answer_to_bytes(answer)
        for position in range(8 * len(payload)):
            flipped = bytearray(payload)
            flipped[position // 8] ^= 1 << position % 8
            read_or_refused(layout, bytes(flipped))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_no_bytes_at_all_raise_anything_but_a_refusal(layout: Layout, payload: bytes) -> None:
    with pytest.raises((InvalidMessage, CodecError)):
        answer_from_bytes(layout, payload)


@pytest.mark.parametrize(
    ("kind", "figures", "sizes"),
    [
        ("anchor", 1, 1),
        ("anchor", 3, 1),
        ("anchor", 2, 0),
        ("anchor", 2, 2),
        ("aligned", 1, 1),
        ("aligned", 0, 0),
        ("losses", 3, 1),
        ("guess", 2, 1),
    ],
)
def test_an_answer_with_too_little_or_too_much_in_it_is_refused(
    adapter: MakeAdapter, layout: Layout, kind: str, figures: int, sizes: int
) -> None:
    body = encode(adapter(1), "int8")
    text = f'{{"kind":"{kind}","figures":{[1.5] * figures},"sizes":{[len(body)] * sizes},"seconds":1.0}}'
    with pytest.raises(InvalidMessage, match=kind if kind != "guess" else "kind"):
        answer_from_bytes(layout, text.encode() + b"\n" + body * sizes)


@pytest.mark.parametrize("figure", ["-1.0", "-1e-300", "NaN", "1e400", '"1"', "true"])
def test_a_loss_that_is_none_is_refused(layout: Layout, figure: str) -> None:
    text = f'{{"kind":"losses","figures":[1.5,{figure}],"sizes":[],"seconds":1.0}}'
    with pytest.raises(InvalidMessage, match=r"figures\.1"):
        answer_from_bytes(layout, text.encode() + b"\n")


def test_an_answer_with_bytes_behind_it_is_refused(answers: tuple[Answer, ...], layout: Layout) -> None:
    for answer in answers:
        with pytest.raises((InvalidMessage, CodecError)):
            answer_from_bytes(layout, answer_to_bytes(answer) + b"\0")


def test_an_answer_about_another_layout_is_refused(adapter: MakeAdapter) -> None:
    with pytest.raises(CodecError):
        answer_from_bytes(WIDE, answer_to_bytes(TrainedAnchor(adapter(1), 1.0, 1.0, 0.0)))


# --- what a strategy is told ---


def test_a_question_that_was_not_asked_before_is_raised(adapter: MakeAdapter) -> None:
    question = TrainAnchor(adapter(1), seed=7)
    with pytest.raises(Unanswered, match="TrainAnchor") as caught:
        Recall(())(question)
    assert caught.value.question == question


def test_answers_are_recalled_in_the_order_of_asking(adapter: MakeAdapter, answers: tuple[Answer, ...]) -> None:
    anchor, losses, aligned = answers
    ask = Recall((anchor, losses, aligned))
    assert ask(TrainAnchor(adapter(0), 0)) is anchor
    assert ask(MeasureLosses("gate", (adapter(0),) * 3)) is losses
    assert ask(AlignDeltas("semantic", adapter(0), adapter(1), (adapter(0),) * 2)) is aligned
    with pytest.raises(Unanswered):
        ask(MeasureLosses("gate", ()))


def test_to_recall_an_answer_takes_it_from_nobody_else(adapter: MakeAdapter, answers: tuple[Answer, ...]) -> None:
    for _ in range(2):  # the core calls a strategy from the start after every answer
        assert Recall(answers)(TrainAnchor(adapter(0), 0)) == answers[0]


def test_an_answer_of_another_kind_than_was_asked_is_a_bad_call(
    adapter: MakeAdapter, answers: tuple[Answer, ...]
) -> None:
    with pytest.raises(ValueError, match="MeasureLosses was answered by TrainedAnchor"):
        Recall(answers)(MeasureLosses("gate", ()))


def test_an_answer_about_fewer_than_were_asked_about_is_a_bad_call(
    adapter: MakeAdapter, answers: tuple[Answer, ...]
) -> None:
    _, losses, aligned = answers
    with pytest.raises(ValueError, match="MeasureLosses was answered by MeasuredLosses"):
        Recall((losses,))(MeasureLosses("gate", (adapter(0),) * 4))
    with pytest.raises(ValueError, match="AlignDeltas was answered by AlignedDeltas"):
        Recall((aligned,))(AlignDeltas("semantic", adapter(0), adapter(1), (adapter(0),)))


def test_equal_questions_are_equal_and_others_are_not(adapter: MakeAdapter) -> None:
    question = AlignDeltas("semantic", adapter(0), adapter(1), (adapter(2),))
    assert question == AlignDeltas("semantic", adapter(0), adapter(1), (adapter(2),))
    assert question != replace(question, deltas=(adapter(3),))
    assert question != replace(question, method="literal")

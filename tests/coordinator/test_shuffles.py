"""The same buffer in a hundred orders of arrival makes the same versions, bit for bit, with all that `alignfed` has.

Floats do not add up the same in every order, so an order of arrival that leaked into a sum, a median or a standing
would show here.
"""

import random
from collections.abc import Callable

import numpy as np
import pytest

from coordinator.core import found, step
from coordinator.questions import MeasuredLosses, MeasureLosses, TrainedAnchor, answer_to_bytes
from coordinator.state import Answered, CalibrationTerms, FederationConfig, FederationState, Received
from coordinator.strategies import AlignFed
from schemas.adapter import Adapter

MakeConfig = Callable[..., FederationConfig]
MakeMessage = Callable[..., Received]

NODES = "abcdefgh"
SHUFFLES = 100
BUFFER = 12


def drawn(layout: object, seed: int, length: float = 1.0) -> Adapter:
    values = length * np.random.default_rng(seed).standard_normal(2)
    return Adapter(layout, values.astype(np.float32))  # type: ignore[arg-type]


def answered(state: FederationState, seed: int) -> FederationState:
    """The state when the base model has answered all it was asked; the second judgement takes the head back."""
    while state.open_questions:
        asked = state.open_questions[0]
        if isinstance(asked.question, MeasureLosses):
            said: MeasuredLosses | TrainedAnchor = MeasuredLosses((1.0, 2.0 if asked.id[0] == 2 else 0.9), 0.0)
        else:
            said = TrainedAnchor(drawn(state.config.layout, 1000 + seed), 2.0, 1.0, 0.0)
        state, _ = step(state, Answered(0, asked.id, answer_to_bytes(said)))
        seed += 1
    return state


@pytest.mark.parametrize("align", ["none", "transplant"])
def test_a_hundred_orders_of_arrival_make_the_same_versions(
    config: MakeConfig, calibration: CalibrationTerms, message: MakeMessage, layout: object, align: str
) -> None:
    strategy = AlignFed(buffer_size=BUFFER, align=align)  # type: ignore[arg-type]

    def digests(order: random.Random) -> tuple[str, ...]:
        state, _ = found(config(strategy, calibration=calibration), drawn(layout, 0), 0)
        state = answered(state, 0)
        made = [state.head.digest]
        for version in range(5):
            bases = sorted(state.digests)[-3:]
            sent = [
                message(
                    NODES[number % len(NODES)],
                    drawn(layout, 100 * version + number, length=10 if number == 5 else 1),
                    bases[number % len(bases)],
                    state.digests[bases[number % len(bases)]],
                    100 * version + number,
                )
                for number in range(BUFFER)
            ]
            order.shuffle(sent)
            for event in sent:
                state, _ = step(state, event)
            state = answered(state, 10 * version)
            made.append(state.head.digest)
        assert state.returns, "the head should have gone back"
        assert any(ledger.refusals.get("distrusted") for ledger in state.nodes.values()), "nobody was left out"
        return tuple(made)

    assert len({digests(random.Random(shuffle)) for shuffle in range(SHUFFLES)}) == 1

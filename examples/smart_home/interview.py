"""A bystander who asks a home one held-out command after the other over MQTT, while the home learns.

It is a device like any other: it knows the broker and the home's name, and nothing of learning.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from base_model.examples import Example
from broker.events import NetworkThreadDied
from broker.settings import BrokerSettings
from edge_node.serving.asking import Device, Unanswered, device_for
from schemas.messages import ChatTurn, InferenceRequest

MOST_TOKENS = 96
RETRY_S = 1.0
LOOK_EVERY_S = 0.1


@dataclass(frozen=True)
class Heard:
    """One answer: when it was asked for (nanoseconds since 1970), how long it took, and which version made it."""

    example: Example
    asked_at_ns: int
    waited_s: float
    version: int | None
    text: str


class Interviewer:
    """Asks from the moment that its `with` block is entered until it is left, and pauses `every_s` after each answer.

    On a busy machine it pauses as long as the answer took: questions must not take the time that learning needs.
    """

    def __init__(
        self, broker: BrokerSettings, federation: str, node: str, examples: Sequence[Example], every_s: float
    ) -> None:
        self._where, self._examples, self._every_s = (broker, federation, node), examples, every_s
        self._heard, self._unanswered = list[Heard](), 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="interview", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(2 * RETRY_S)  # an answer may be under way; nobody waits for it

    def until_version(self, version: int, patience_s: float) -> None:
        """Go on until this version or a later one has answered, for so many more seconds at most."""
        give_up_at = time.monotonic() + patience_s
        while all((heard.version or 0) < version for heard in self._heard) and time.monotonic() < give_up_at:
            self._ended.wait(LOOK_EVERY_S)

    def result(self) -> tuple[tuple[Heard, ...], int]:
        """What was heard so far, and how many questions had no answer since the first that had one."""
        return tuple(self._heard), self._unanswered

    def _work(self) -> None:
        while not self._ended.is_set():
            try:
                with device_for(*self._where) as device:
                    self._ask_on(device)
            except (Unanswered, NetworkThreadDied):  # the broker was ended: it is started again
                self._ended.wait(RETRY_S)

    def _ask_on(self, device: Device) -> None:
        while not self._ended.is_set():
            example = self._examples[len(self._heard) % len(self._examples)]
            begun, asked_at_ns = time.monotonic(), time.time_ns()
            try:
                heard = _ask(device, example, asked_at_ns, begun)
            except Unanswered:
                if self._ended.is_set():
                    return
                self._unanswered += bool(self._heard)  # before that, the home is still starting
                self._ended.wait(RETRY_S)
                continue
            self._heard.append(heard)
            self._ended.wait(max(self._every_s, heard.waited_s))


def _ask(device: Device, example: Example, asked_at_ns: int, begun: float) -> Heard:
    turns = (ChatTurn(role="user", content=example.prompt),)
    [answer] = device.ask(InferenceRequest(messages=turns, max_tokens=MOST_TOKENS))
    if answer.error is not None:
        raise Unanswered(answer.error.reason)
    return Heard(example, asked_at_ns, time.monotonic() - begun, answer.version, answer.text)

"""Questions in, answers out piece by piece: a bounded queue, a few threads, a deadline for each. Knows no transport.

An answer is made with the adapter that was served when it began. Who asked is told from the thread that answers.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from edge_node.memory import give_back_memory
from edge_node.metrics import Metrics
from edge_node.serving.chat_tokens import ChatRefused, ChatTokens, Turn
from edge_node.serving.generation import Cancelled, Sampling, generate
from edge_node.serving.inference import AdapterSlot, Inference

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 5.0


class Overloaded(Exception):
    """As many questions wait already as may; ask again later."""


@dataclass(frozen=True)
class Question:
    """A conversation to go on with, and how; `on_base` asks for the base model without an adapter."""

    turns: Sequence[Turn]
    sampling: Sampling
    stop_strings: tuple[str, ...] = ()
    on_base: bool = False


@dataclass(frozen=True)
class Begun:
    """The answer is being made with this slot, None for the base model alone."""

    slot: AdapterSlot | None
    prompt_tokens: int


@dataclass(frozen=True)
class Piece:
    """Some more of the answer's text."""

    text: str


@dataclass(frozen=True)
class Ended:
    """The answer is whole: it came to its end, or to the most tokens that it may have."""

    finish: Literal["stop", "length"]
    tokens: int


@dataclass(frozen=True)
class Failed:
    """There is no answer, or no more of it; the reason is for who asked."""

    kind: Literal["invalid", "too_long", "waited", "timeout", "fault", "stopped"]
    reason: str


News = Begun | Piece | Ended | Failed
"""What who asked is told, in this order: Begun, any number of Piece, Ended; or Failed at any time as the last."""


@dataclass(frozen=True)
class Pending:
    """A question that was taken; set `given_up` when nobody waits for the answer any more."""

    question: Question
    tell: Callable[[News], None]
    deadline: float  # of time.monotonic
    given_up: threading.Event


class Answering:
    """`parallel` threads that answer, and room for `waiting` questions before them."""

    def __init__(
        self,
        inference: Inference,
        chat: ChatTokens,
        parallel: int,
        waiting: int,
        timeout_s: float,
        metrics: Metrics | None = None,
    ) -> None:
        self._inference, self._chat, self._timeout_s = inference, chat, timeout_s
        self.metrics = metrics or Metrics()
        self._questions: queue.Queue[Pending] = queue.Queue(waiting)
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._work, name=f"answer-{n}", daemon=True) for n in range(parallel)]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """How many questions nobody has begun to answer."""
        return self._questions.qsize()

    def ask(self, question: Question, tell: Callable[[News], None], given_up: threading.Event | None = None) -> Pending:
        """Queue a question; `tell` is called from another thread. Raises Overloaded when there is no room.

        `given_up` is for who can learn within `tell` that nobody waits any more.
        """
        pending = Pending(
            question, _noted(self.metrics, tell), time.monotonic() + self._timeout_s, given_up or threading.Event()
        )
        if self._stopped.is_set():
            raise Overloaded
        try:
            self._questions.put_nowait(pending)
        except queue.Full:
            raise Overloaded from None
        return pending

    def stop(self) -> None:
        """End answers under way at their next token, tell those who wait, and end the threads."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(STOP_TIMEOUT_S)
        while not self._questions.empty():
            self._questions.get_nowait().tell(_STOPPED)

    def _work(self) -> None:
        while not self._stopped.is_set():
            try:
                pending = self._questions.get(timeout=0.2)
            except queue.Empty:
                continue
            try:
                self._answer(pending)
            except Exception as error:  # one answer's fault must not end the thread: who asked is told, and the log
                log.exception("a question could not be answered")
                pending.tell(Failed("fault", f"the node met an error: {type(error).__name__}"))
            del pending
            give_back_memory()  # the keys and values of an answer are tens of megabytes

    def _answer(self, pending: Pending) -> None:
        if pending.given_up.is_set():
            return
        if time.monotonic() > pending.deadline:
            pending.tell(Failed("waited", f"no answer was begun within {self._timeout_s:g} s"))
            return
        try:
            self._tell_answer(pending)
        except ChatRefused as fault:
            pending.tell(Failed("invalid", str(fault)))
        except Cancelled:
            if self._stopped.is_set():
                pending.tell(_STOPPED)
            elif not pending.given_up.is_set():
                pending.tell(Failed("timeout", f"the answer was not whole within {self._timeout_s:g} s"))

    def _tell_answer(self, pending: Pending) -> None:
        question, session = pending.question, self._inference.session
        slot = None if question.on_base else self._inference.current
        prompt = self._chat.prompt(question.turns)
        room = session.architecture.context - len(prompt)
        if not prompt or room < 1:
            most = session.architecture.context
            kind: Literal["too_long", "invalid"] = "too_long" if prompt else "invalid"
            pending.tell(Failed(kind, f"{len(prompt)} tokens of prompt do not fit a context of {most}"))
            return
        sampling = replace(question.sampling, max_tokens=min(question.sampling.max_tokens, room))
        pending.tell(Begun(slot, len(prompt)))
        tokens = _Counted(generate(session, slot, prompt, sampling, self._chat.stops, lambda: self._is_over(pending)))
        for text in self._chat.text(tokens, question.stop_strings):
            pending.tell(Piece(text))
        full = tokens.exhausted and tokens.count == sampling.max_tokens
        pending.tell(Ended("length" if full else "stop", tokens.count))

    def _is_over(self, pending: Pending) -> bool:
        return self._stopped.is_set() or pending.given_up.is_set() or time.monotonic() > pending.deadline


_STOPPED = Failed("stopped", "the node is shutting down")


def _noted(metrics: Metrics, tell: Callable[[News], None]) -> Callable[[News], None]:
    """What tells somebody the news of an answer, and notes how it goes; the clock begins now."""
    asked, has_begun = time.monotonic(), False

    def tell_and_note(news: News) -> None:
        nonlocal has_begun
        match news:
            case Begun(prompt_tokens=tokens):
                metrics.tokens.labels("prompt").inc(tokens)
            case Piece() if not has_begun:
                has_begun = True
                metrics.first_token_seconds.observe(time.monotonic() - asked)
            case Ended(tokens=tokens):
                metrics.tokens.labels("answer").inc(tokens)
                metrics.answers.labels("whole").inc()
                metrics.answer_seconds.observe(time.monotonic() - asked)
            case Failed(kind):
                metrics.answers.labels(kind).inc()
        tell(news)

    return tell_and_note


class _Counted:
    """Tokens as they go by: how many there were, and whether they came to their own end."""

    def __init__(self, tokens: Iterator[int]) -> None:
        self._tokens = tokens
        self.count, self.exhausted = 0, False

    def __iter__(self) -> Iterator[int]:
        for token in self._tokens:
            self.count += 1
            yield token
        self.exhausted = True

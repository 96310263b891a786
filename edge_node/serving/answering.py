"""Questions in, answers out piece by piece: a bounded queue, a few threads, a deadline for each. Knows no transport.

An answer is made with the adapter that was served when it began. Who asked is told from the thread that answers.
"""

import contextlib
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from base_model.chat_tokens import ChatRefused, ChatTokens, Turn
from edge_node.health import Told
from edge_node.memory import give_back_memory
from edge_node.metrics import Metrics
from edge_node.serving.generation import Cancelled, Sampling, generate
from edge_node.serving.inference import AdapterSlot, Inference

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 5.0
TRIED_EVERY_S = 60.0  # while nobody asks: what answered a minute ago answers still
OVERDUE_S = 60.0  # a deadline counts between tokens, and the prompt of a large model takes its time


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
        self._deadlines = dict[str, float]()  # of the answers under way, by their thread
        self._tried_at = -math.inf  # when it last answered, or tried to; never, once an answer has met an error
        self._trouble: str | None = None  # why a question of its own was not answered
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
        return self._queue(question, _noted(self.metrics, tell), given_up or threading.Event())

    def look(self, at: float | None = None) -> Told:
        """Whether it answers. Where nobody asks it puts a question of its own, and the next look tells what came of it.

        `at` is of time.monotonic, now if not given.
        """
        now = time.monotonic() if at is None else at
        slot, waiting = self._inference.current, self.waiting
        is_idle = not self._deadlines and not waiting
        if is_idle and (self._trouble is not None or now - self._tried_at > TRIED_EVERY_S):
            self._tried_at = now
            with contextlib.suppress(Overloaded):
                self._queue(_TRIAL, self._tried, threading.Event())
        about = {"adapter": slot.named if slot is not None else None, "waiting": waiting}
        return Told(tuple(self._faults(now)), about)

    def stop(self) -> None:
        """End answers under way at their next token, tell those who wait, and end the threads."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(STOP_TIMEOUT_S)
        while not self._questions.empty():
            self._questions.get_nowait().tell(_STOPPED)

    def _faults(self, now: float) -> Iterator[str]:
        died = sum(not thread.is_alive() for thread in self._threads)
        if died and not self._stopped.is_set():
            yield f"{died} of {len(self._threads)} answering threads died; the node's log says why"
        late_s = now - min(self._deadlines.copy().values(), default=math.inf)
        if late_s > OVERDUE_S:
            yield f"an answer should have been given up {late_s:.0f} s ago, and goes on"
        if (trouble := self._trouble) is not None:
            yield f"a question of the node's own was not answered: {trouble}"

    def _tried(self, news: News) -> None:
        """Take note of what came of its own question; one that nobody had time for says nothing."""
        if isinstance(news, Failed) and news.kind not in ("waited", "stopped"):
            self._trouble = news.reason

    def _queue(self, question: Question, tell: Callable[[News], None], given_up: threading.Event) -> Pending:
        pending = Pending(question, tell, time.monotonic() + self._timeout_s, given_up)
        if self._stopped.is_set():
            raise Overloaded
        try:
            self._questions.put_nowait(pending)
        except queue.Full:
            raise Overloaded from None
        return pending

    def _work(self) -> None:
        own_name = threading.current_thread().name
        while not self._stopped.is_set():
            try:
                pending = self._questions.get(timeout=0.2)
            except queue.Empty:
                continue
            self._deadlines[own_name] = pending.deadline
            try:
                self._answer(pending)
            except Exception as error:  # one answer's fault must not end the thread: who asked is told, and the log
                log.exception("a question could not be answered")
                self._tried_at = -math.inf
                pending.tell(Failed("fault", f"the node met an error: {type(error).__name__}"))
            del self._deadlines[own_name], pending
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
        self._tried_at, self._trouble = time.monotonic(), None
        full = tokens.exhausted and tokens.count == sampling.max_tokens
        pending.tell(Ended("length" if full else "stop", tokens.count))

    def _is_over(self, pending: Pending) -> bool:
        return self._stopped.is_set() or pending.given_up.is_set() or time.monotonic() > pending.deadline


_TRIAL = Question([{"role": "user", "content": "hello"}], Sampling(max_tokens=1))
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

"""What answering costs inside one process: beside PyTorch with PEFT, and a swap beside loading the session again.

Both sides run on one thread and take turns; processor seconds, but for the swaps, which are about waiting. What a whole
node does, gateway.py has.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import numpy as np
import torch

from base_model.chat_tokens import ChatTokens
from base_model.evaluation import losses
from base_model.examples import Example
from base_model.language_model import LanguageModel
from edge_node.serving.answering import Answering, Begun, Ended, News, Piece, Question
from edge_node.serving.export import ServedModel
from edge_node.serving.generation import Sampling, generate
from edge_node.serving.inference import AdapterSlot, Inference, ServedVersion, begin
from edge_node.serving.session import Session
from schemas.adapter import Adapter

TURNS, TOKENS = 5, 33
SWAPS, CLIENTS, PARALLEL, ANSWER, VERSIONS = 1000, 4, 2, 8, 4
RELOADS = 5


@dataclass(frozen=True)
class Rate:
    """Of one side: greedy tokens after a prompt, and the first of them."""

    decode_tokens_per_cpu_second: float
    first_token_cpu_ms: float


@dataclass(frozen=True)
class Speed:
    """The adapter active on both sides."""

    prompt_tokens: int
    served: Rate
    torch_peft: Rate

    @property
    def decode_ratio(self) -> float:
        """Served to PyTorch."""
        return self.served.decode_tokens_per_cpu_second / self.torch_peft.decode_tokens_per_cpu_second


@dataclass(frozen=True)
class Loss:
    """Mean of the expected answers, in nats per token."""

    served: float
    torch: float

    @property
    def difference(self) -> float:
        """Served less PyTorch."""
        return self.served - self.torch


@dataclass(frozen=True)
class Losses:
    """Over so many held-out examples, with the adapter and of the base model."""

    examples: int
    adapter: Loss
    base: Loss


@dataclass(frozen=True)
class Spread:
    """Of many measurements."""

    median: float
    p99: float
    maximum: float


@dataclass(frozen=True)
class Swaps:
    """New versions while clients ask all the time, and what loading the whole session again takes instead."""

    swaps: int
    clients: int
    different_answers: int
    requests: int
    dropped: int
    mixed: int
    switch_ms: Spread
    verified_to_serving_ms: Spread
    verified_to_serving_ms_without_load: Spread
    session_reload_ms: Spread


def compare_speed(model: LanguageModel, inference: Inference, example: Example) -> Speed:
    """Greedy tokens after one prompt, the adapter active on both sides, end of text ignored on both."""
    prompt = model.encode(example).prompt
    slot = inference.current

    def served(count: int) -> None:
        list(generate(inference.session, slot, prompt, Sampling(count), frozenset(), lambda: False))

    def torch_and_peft(count: int) -> None:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            model.network.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                pad_token_id=model.padding,
            )

    for side in (served, torch_and_peft):
        side(TOKENS)  # pages of the weights are read once
    ours, baseline = [], []
    for _ in range(TURNS):
        ours.append((seconds(served, 1), seconds(served, TOKENS)))
        baseline.append((seconds(torch_and_peft, 1), seconds(torch_and_peft, TOKENS)))
    return Speed(len(prompt), served=rate(ours), torch_peft=rate(baseline))


def seconds(side: Callable[[int], None], count: int) -> float:
    """Processor seconds."""
    begun = time.process_time()
    side(count)
    return time.process_time() - begun


def rate(times: list[tuple[float, float]]) -> Rate:
    """Of pairs (seconds for one token, seconds for all)."""
    return Rate(
        decode_tokens_per_cpu_second=median((TOKENS - 1) / (whole - first) for first, whole in times),
        first_token_cpu_ms=1e3 * median(first for first, _ in times),
    )


def compare_losses(model: LanguageModel, adapter: Adapter, inference: Inference, examples: Sequence[Example]) -> Losses:
    """Mean loss of the expected answers, in nats per token: with the adapter, and of the base model."""
    session, nothing = inference.session, Adapter.zeros(adapter.layout)
    base = Loss(served_loss(model, session, None, examples), losses(model, nothing, examples))
    adapted = Loss(served_loss(model, session, inference.current, examples), losses(model, adapter, examples))
    return Losses(len(examples), adapter=adapted, base=base)


def served_loss(model: LanguageModel, session: Session, slot: AdapterSlot | None, examples: Sequence[Example]) -> float:
    """The same loss of the served model."""
    found: list[float] = []
    for example in examples:
        encoded = model.encode(example)
        tokens = (encoded.prompt + encoded.answer)[:-1]
        rows = range(len(encoded.prompt) - 1, len(tokens))
        logits = begin(session, slot, len(tokens)).read(tokens, rows)
        wide = logits.astype(np.float64)
        total = np.log(np.exp(wide - wide.max(axis=1, keepdims=True)).sum(axis=1)) + wide.max(axis=1)
        found += (total - wide[np.arange(len(rows)), encoded.answer]).tolist()
    return float(np.mean(found))


def swap_under_load(session: Session, adapter: Adapter, example: Example) -> Swaps:
    """A thousand new versions while four clients ask all the time; every answer is compared with its own version's."""
    adapters = [adapter * (1 + number / VERSIONS) for number in range(VERSIONS)]
    inference = Inference(session)
    answering = Answering(inference, ChatTokens(session.model.resolved.path), PARALLEL, CLIENTS, timeout_s=600)
    question = Question([{"role": "user", "content": example.prompt}], Sampling(ANSWER))
    expected: dict[str, str] = {}
    idle = []
    for number, one in enumerate(adapters):
        idle.append(take_up(inference, one, ServedVersion(1, number)))
        expected[one.digest] = ask(answering, question)[1]
    ended = threading.Event()
    counts = [dict.fromkeys(("asked", "right", "wrong"), 0) for _ in range(CLIENTS)]

    def client(count: dict[str, int]) -> None:
        while not ended.is_set():
            count["asked"] += 1
            digest, text = ask(answering, question)
            count["right" if text == expected[digest] else "wrong"] += 1

    clients = [threading.Thread(target=client, args=(count,)) for count in counts]
    for one_client in clients:
        one_client.start()
    loaded = [take_up(inference, adapters[number % VERSIONS], ServedVersion(2, number)) for number in range(SWAPS)]
    ended.set()
    for one_client in clients:
        one_client.join()
    answering.stop()
    asked, right, wrong = (sum(count[name] for count in counts) for name in ("asked", "right", "wrong"))
    return Swaps(
        swaps=SWAPS,
        clients=CLIENTS,
        different_answers=len(set(expected.values())),
        requests=asked,
        dropped=asked - right - wrong,
        mixed=wrong,
        switch_ms=spread([times.switch_ms for times in loaded]),
        verified_to_serving_ms=spread([times.wall_ms for times in loaded]),
        verified_to_serving_ms_without_load=spread([times.wall_ms for times in idle]),
        session_reload_ms=spread([reload_ms(session.model) for _ in range(RELOADS)]),
    )


def reload_ms(served: ServedModel) -> float:
    """The other way to a new version: load the session anew, up to its first token."""
    begun = time.perf_counter()
    Session(served).begin(1).read([0], [0])
    return 1e3 * (time.perf_counter() - begun)


def ask(answering: Answering, question: Question) -> tuple[str, str]:
    """The digest of the adapter that answered, and the whole text; an answer that fails is an error."""
    told: queue.SimpleQueue[News] = queue.SimpleQueue()
    answering.ask(question, told.put)
    begun, text = told.get(), ""
    assert isinstance(begun, Begun) and begun.slot is not None, begun
    while not isinstance(news := told.get(), Ended):
        assert isinstance(news, Piece), news
        text += news.text
    return begun.slot.digest, text


class TakenUp(NamedTuple):
    """Milliseconds from a verified adapter to serving it, and of the switch alone."""

    wall_ms: float
    switch_ms: float


def take_up(inference: Inference, adapter: Adapter, version: ServedVersion) -> TakenUp:
    """Serve one more version."""
    digest = adapter.digest
    begun = time.perf_counter()
    slot = inference.prepare(adapter, version, digest)
    ready = time.perf_counter()
    forgotten = inference.swap(slot)
    switched = time.perf_counter()
    del forgotten  # unmaps it, after the switch
    return TakenUp(1e3 * (switched - begun), 1e3 * (switched - ready))


def spread(values: list[float]) -> Spread:
    """Of these."""
    return Spread(float(np.median(values)), float(np.percentile(values, 99)), float(np.max(values)))

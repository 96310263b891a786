"""What serving costs on an edge node, beside PyTorch with PEFT in the same run, and whether the bars hold.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/edge.py --json edge.json

Two adapters of the default base model are trained for a moment on smart-home commands: queries and values at rank 8,
every linear module at rank 16. Both sides run on one thread and take turns; processor seconds, not wall-clock, but for
the swaps, which are about waiting. Memory is that of a process of its own that serves (serving_memory.py), and of a
whole node that is idle, serves, trains, or does both (node_memory.py). Some minutes.
"""

import argparse
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

from base_model.chat_tokens import ChatTokens
from base_model.evaluation import losses
from base_model.examples import Example, save_examples
from base_model.language_model import LanguageModel
from base_model.reference import DEFAULT_NAME, default_cache, resolve
from base_model.settings import TrainingConfig
from base_model.training import train
from edge_node.serving.answering import Answering, Begun, Ended, News, Piece, Question
from edge_node.serving.export import ServedModel, export, prepack
from edge_node.serving.generation import Sampling, generate
from edge_node.serving.inference import AdapterSlot, Inference, ServedVersion
from edge_node.serving.session import Session
from examples.smart_home.commands import held_out_examples, make_homes, private_examples
from examples.smart_home.recipe import EVERY_LINEAR
from schemas.adapter import Adapter, LoraConfig

SHAPES = {
    "qv8": LoraConfig(rank=8, alpha=16, target_modules=("q_proj", "v_proj")),
    "all16": LoraConfig(rank=16, alpha=32, target_modules=EVERY_LINEAR),
}
TRAINING = TrainingConfig(steps=20, batch_size=4, learning_rate=2e-3)
HELD_OUT, TURNS, TOKENS = 60, 5, 33
SWAPS, CLIENTS, PARALLEL, ANSWER, VERSIONS = 1000, 4, 2, 8, 4
Result = dict[str, Any]


def main() -> None:
    """Measure, print, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where to write the figures")
    path: Path = parser.parse_args().json
    resolved, cache = resolve(DEFAULT_NAME, default_cache()), default_cache()
    portable = export(resolved, cache, "q41x")
    own = prepack(portable, cache)
    model = LanguageModel.load(resolved)
    private = private_examples(make_homes(1, seed=5)[0], 200)
    held_out = held_out_examples(HELD_OUT, 7, private)
    result: Result = {"base_model": resolved.name, "precision": own.precision, "shapes": {}}
    for name, lora in SHAPES.items():
        adapter = train(model, model.initial_adapter(lora, 1), private, TRAINING, lambda step, loss: None).adapter
        inference = Inference(Session(own))
        inference.swap(inference.prepare(adapter, ServedVersion(1, 1), adapter.digest))
        result["shapes"][name] = {
            "adapter_bytes": adapter.values.nbytes,
            "speed": compare_speed(model, inference, held_out[0]),
            "nll": compare_losses(model, adapter, inference, held_out),
            "swaps": swap_under_load(inference.session, adapter, held_out[0]),
            "memory": {kind: memory(served, adapter) for kind, served in (("portable", portable), ("prepacked", own))},
            "node_memory": node_memory(adapter, private),
        }
        print(json.dumps({name: result["shapes"][name]}, indent=1), flush=True)
    result["bars"] = bars(result["shapes"])
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for bar in result["bars"]:
        print(
            f"{'ok  ' if bar['held'] else 'MISS'}  {bar['shape']:<6} {bar['what']}: {bar['found']:.4g} ({bar['bar']})"
        )
    sys.exit(not all(bar["held"] for bar in result["bars"]))


def compare_speed(model: LanguageModel, inference: Inference, example: Example) -> Result:
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
    found = {name: rates(times) for name, times in (("served", ours), ("torch_peft", baseline))}
    rate = "decode_tokens_per_cpu_second"
    return {"prompt_tokens": len(prompt), **found, "decode_ratio": found["served"][rate] / found["torch_peft"][rate]}


def seconds(side: Callable[[int], None], count: int) -> float:
    """Processor seconds."""
    begun = time.process_time()
    side(count)
    return time.process_time() - begun


def rates(times: list[tuple[float, float]]) -> Result:
    """Of pairs (seconds for one token, seconds for all)."""
    return {
        "decode_tokens_per_cpu_second": median((TOKENS - 1) / (whole - first) for first, whole in times),
        "first_token_cpu_ms": 1e3 * median(first for first, _ in times),
    }


def compare_losses(model: LanguageModel, adapter: Adapter, inference: Inference, examples: Sequence[Example]) -> Result:
    """Mean loss of the expected answers, in nats per token: with the adapter, and of the base model."""
    nothing = Adapter.zeros(adapter.layout)
    found: Result = {"examples": len(examples)}
    for name, on_torch, slot in (("adapter", adapter, inference.current), ("base", nothing, None)):
        of_torch, served = losses(model, on_torch, examples), served_loss(model, inference.session, slot, examples)
        found[name] = {"served": served, "torch": of_torch, "difference": served - of_torch}
    model.apply(adapter)
    return found


def served_loss(model: LanguageModel, session: Session, slot: AdapterSlot | None, examples: Sequence[Example]) -> float:
    """The same loss of the served model."""
    found: list[float] = []
    for example in examples:
        encoded = model.encode(example)
        tokens = (encoded.prompt + encoded.answer)[:-1]
        rows = range(len(encoded.prompt) - 1, len(tokens))
        logits, _ = session.forward(tokens, session.beginning, rows, slot.options if slot is not None else None)
        wide = logits.astype(np.float64)
        total = np.log(np.exp(wide - wide.max(axis=1, keepdims=True)).sum(axis=1)) + wide.max(axis=1)
        found += (total - wide[np.arange(len(rows)), encoded.answer]).tolist()
    return float(np.mean(found))


def swap_under_load(session: Session, adapter: Adapter, example: Example) -> Result:
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
    return {
        "swaps": SWAPS,
        "clients": CLIENTS,
        "different_answers": len(set(expected.values())),
        "requests": asked,
        "dropped": asked - right - wrong,
        "mixed": wrong,
        "switch_ms": spread([times.switch_ms for times in loaded]),
        "verified_to_serving_ms": spread([times.wall_ms for times in loaded]),
        "verified_to_serving_cpu_ms": spread([times.cpu_ms for times in loaded]),
        "verified_to_serving_ms_without_load": spread([times.wall_ms for times in idle]),
    }


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
    """Milliseconds from a verified adapter to serving it, on the clock and of this thread, and of the switch alone."""

    wall_ms: float
    cpu_ms: float
    switch_ms: float


def take_up(inference: Inference, adapter: Adapter, version: ServedVersion) -> TakenUp:
    """Serve one more version."""
    digest = adapter.digest
    begun, processor = time.perf_counter(), time.thread_time()
    slot = inference.prepare(adapter, version, digest)
    ready = time.perf_counter()
    forgotten = inference.swap(slot)
    switched, done = time.perf_counter(), time.thread_time()
    del forgotten  # unmaps it, after the switch
    return TakenUp(1e3 * (switched - begun), 1e3 * (done - processor), 1e3 * (switched - ready))


def spread(values: list[float]) -> Result:
    """Median, 99th percentile and maximum."""
    return {
        "median": float(np.median(values)),
        "p99": float(np.percentile(values, 99)),
        "maximum": float(np.max(values)),
    }


def memory(served: ServedModel, adapter: Adapter) -> Result:
    """What a process that only serves this adapter needs, in MB, and how long it takes to load."""
    with tempfile.TemporaryDirectory() as folder:
        body, layout = Path(folder) / "adapter.safetensors", Path(folder) / "layout.json"
        body.write_bytes(adapter.to_safetensors())
        layout.write_text(adapter.layout.model_dump_json())
        script = Path(__file__).with_name("serving_memory.py")
        command: list[str | Path] = [sys.executable, script, served.graph, served.resolved.path, body, layout]
        found: Result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        return found


def node_memory(adapter: Adapter, examples: tuple[Example, ...]) -> Result:
    """What a node and its processes need in each mode, in MB."""
    with tempfile.TemporaryDirectory() as folder:
        body, layout, data = (Path(folder) / name for name in ("adapter.safetensors", "layout.json", "examples.jsonl"))
        body.write_bytes(adapter.to_safetensors())
        layout.write_text(adapter.layout.model_dump_json())
        save_examples(examples, data)
        command: list[str | Path] = [sys.executable, Path(__file__).with_name("node_memory.py"), body, layout, data]
        found: Result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        return found


def bars(shapes: Result) -> list[Result]:
    """What must hold, and whether it does."""
    found = []
    for shape, one in shapes.items():
        stages, swaps = one["memory"]["prepacked"], one["swaps"]
        for what, value, most in (
            ("|NLL served - NLL torch|", abs(one["nll"]["adapter"]["difference"]), 0.01),
            ("requests dropped", swaps["dropped"], 0),
            ("requests mixed", swaps["mixed"], 0),
            ("switch, ms, median", swaps["switch_ms"]["median"], 1),
            ("verified to serving, ms, median", swaps["verified_to_serving_ms"]["median"], 100),
            ("RSS of serving, MB", stages["serving"]["rss"], 320),
            ("anonymous memory of serving, MB", stages["serving"]["anonymous"], 80),
            ("RSS of an idle process without a model, MB", stages["idle"]["rss"], 80),
            ("peak RSS of a node that serves and trains, MB", one["node_memory"]["both"]["peak_rss"], 1000),
        ):
            found.append({"shape": shape, "what": what, "found": value, "bar": f"<= {most}", "held": value <= most})
        ratio = one["speed"]["decode_ratio"]
        what = "decode tokens per CPU second, ratio to torch+peft"
        found.append({"shape": shape, "what": what, "found": ratio, "bar": ">= 4", "held": ratio >= 4})
    return found


if __name__ == "__main__":
    main()

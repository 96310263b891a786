"""What a node on a gateway needs and does, beside a baseline of the same run, and whether the bars hold.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/edge.py --json edge.json --write

Real processes are measured from outside: `alignfed edge` on Mosquitto, its memory as the kernel counts it, its answers
over HTTP (node_modes.py). Speed, losses and a thousand swaps are measured inside one process (serving.py). All of it
for two adapters of the default base model, trained for a moment on smart-home commands: queries and values at rank 8,
every linear module at rank 16. --write puts the tables into docs/edge-figures.md. A quarter of an hour.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from gateway import Memory
from generated import put
from node_modes import Mode, Modes, Setting, SwapsFromOutside, measure_modes, swaps_from_outside
from serving import Losses, Speed, Swaps, compare_losses, compare_speed, swap_under_load

from base_model.examples import Example
from base_model.language_model import LanguageModel
from base_model.reference import DEFAULT_NAME, ResolvedModel, default_cache, gguf_of, resolve
from base_model.settings import TrainingConfig
from base_model.training import train
from edge_node.serving.export import ServedModel, export, prepack
from edge_node.serving.inference import Inference, ServedVersion
from edge_node.serving.session import Session
from examples.smart_home.commands import held_out_examples, make_homes, private_examples
from examples.smart_home.recipe import EVERY_LINEAR
from schemas.adapter import LoraConfig

DOCUMENT = Path(__file__).parents[1] / "docs" / "edge-figures.md"
SHAPES = {
    "queries and values, rank 8": LoraConfig(rank=8, alpha=16, target_modules=("q_proj", "v_proj")),
    "every linear module, rank 16": LoraConfig(rank=16, alpha=32, target_modules=EVERY_LINEAR),
}
TRAINING = TrainingConfig(steps=20, batch_size=4, learning_rate=2e-3)
HELD_OUT = 60


@dataclass(frozen=True)
class SessionMemory:
    """The most that a bare session had while it answered three times: as a node has it, and two baselines."""

    ours: Memory
    not_prepacked: Memory
    defaults: Memory  # of ONNX Runtime


@dataclass(frozen=True)
class Figures:
    """All of one adapter."""

    adapter_mb: float
    memory: Modes
    swaps_from_outside: SwapsFromOutside
    swaps: Swaps
    speed: Speed
    losses: Losses


@dataclass(frozen=True)
class Bar:
    """What must hold: at most, or for a ratio at least, so much."""

    shape: str
    what: str
    found: float
    most: float | None = None
    least: float | None = None

    @property
    def held(self) -> bool:
        """Whether it does."""
        return (self.most is None or self.found <= self.most) and (self.least is None or self.found >= self.least)

    @property
    def wanted(self) -> str:
        """In words."""
        return f"at most {self.most:g}" if self.most is not None else f"at least {self.least:g}"


@dataclass(frozen=True)
class Result:
    """One run."""

    measured_on: str
    base_model: str
    precision: str
    session_memory: SessionMemory
    shapes: dict[str, Figures]
    bars: tuple[Bar, ...]


def main() -> None:
    """Measure, print, and write what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/edge-figures.md")
    options = parser.parse_args()
    result = measure()
    bars = [{**asdict(bar), "held": bar.held} for bar in result.bars]
    if options.json is not None:
        options.json.write_text(json.dumps({**asdict(result), "bars": bars}, indent=2) + "\n", encoding="utf-8")
    tables = {"run": result.measured_on, "memory": memory_table(result), "rest": other_table(result)}
    tables["bars"] = bar_table(result.bars)
    for name, text in tables.items():
        print(text, end="\n\n")
        if options.write:
            put(DOCUMENT, name, text)
    sys.exit(not all(bar.held for bar in result.bars))


def measure() -> Result:
    """Everything, one after the other."""
    cache = default_cache()
    resolved = resolve(DEFAULT_NAME, cache)
    portable = export(resolved, cache, "q41x")
    own = prepack(portable, cache)
    private = private_examples(make_homes(1, seed=5)[0], 200)
    shapes = {name: measure_shape(resolved, own, lora, private) for name, lora in SHAPES.items()}
    return Result(
        measured_on=where(),
        base_model=resolved.name,
        precision=own.precision,
        session_memory=SessionMemory(
            ours=session_memory(own, "ours"),
            not_prepacked=session_memory(portable, "ours"),
            defaults=session_memory(portable, "defaults"),
        ),
        shapes=shapes,
        bars=tuple(bar for name, figures in shapes.items() for bar in bars_of(name, figures)),
    )


def measure_shape(resolved: ResolvedModel, own: ServedModel, lora: LoraConfig, private: tuple[Example, ...]) -> Figures:
    """All of one adapter."""
    model = LanguageModel.load(resolved)
    first = model.initial_adapter(lora, 1)
    trained = train(model, first, private, TRAINING, lambda step, loss: None).adapter
    halves = tuple(first + (trained - first) * share for share in (0.25, 0.5))
    files = (gguf_of(resolved, default_cache()), *own.graph.parent.iterdir())
    setting = Setting(resolved, files, (*halves, trained, first), private)
    held_out = held_out_examples(HELD_OUT, 7, private)
    inference = Inference(Session(own))
    inference.swap(inference.prepare(trained, ServedVersion(1, 1), trained.digest))
    model.apply(trained)
    return Figures(
        adapter_mb=trained.values.nbytes / 1e6,
        speed=compare_speed(model, inference, held_out[0]),
        losses=compare_losses(model, trained, inference, held_out),
        swaps=swap_under_load(inference.session, trained, held_out[0]),
        memory=measure_modes(setting),
        swaps_from_outside=swaps_from_outside(setting),
    )


def session_memory(served: ServedModel, way: str) -> Memory:
    """Of a process that has nothing but a session."""
    script = Path(__file__).with_name("session_memory.py")
    command: list[str | Path] = [sys.executable, script, served.graph, served.resolved.path, way]
    return Memory(**json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))


def where() -> str:
    """The machine and the day, in a sentence."""
    facts = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    name = next((line.partition(": ")[2] for line in facts.splitlines() if line.startswith("model name")), "unknown")
    load = os.getloadavg()[0]
    return (
        f"Measured on {datetime.now(UTC):%Y-%m-%d}: {os.cpu_count()} processors ({name}), {platform.machine()}, Linux "
        f"{platform.release()}, Python {platform.python_version()}; a load of {load:.1f} at the end. Others used the "
        "machine too, which makes times longer and leaves memory as it is."
    )


def bars_of(shape: str, figures: Figures) -> Iterator[Bar]:
    """What must hold of one adapter."""
    memory, swaps, outside = figures.memory, figures.swaps, figures.swaps_from_outside
    both, limited = memory.both.together.pss, memory.limited
    yield Bar(shape, "idle, RSS at rest, MB", memory.idle.resting.rss, 80)
    yield Bar(shape, "idle after a training, RSS at rest, MB", memory.training.resting.rss, 80)
    yield Bar(shape, "serving, RSS at rest, MB", memory.serving.resting.rss, 320)
    yield Bar(shape, "serving, RSS at most, MB", memory.serving.working.rss, 320)
    yield Bar(shape, "serving, anonymous memory at rest, MB", memory.serving.resting.anonymous, 80)
    yield Bar(shape, "serving, anonymous memory at most, MB", memory.serving.working.anonymous, 80)
    yield Bar(shape, "serving and training, PSS of all processes at most, MB", both, 1000)
    if limited is not None:
        what = "serving and training a round in a control group of 1000 MB, processes killed"
        yield Bar(shape, what, limited.out_of_memory_kills, 0)
    yield Bar(shape, "requests dropped or mixed in swaps over HTTP", outside.dropped + outside.mixed, 0)
    yield Bar(shape, "answers of two versions that differ", outside.different_answers, least=2)
    yield Bar(shape, "requests dropped or mixed in swaps inside", swaps.dropped + swaps.mixed, 0)
    yield Bar(shape, "switch, ms, median", swaps.switch_ms.median, 1)
    yield Bar(shape, "verified to serving, ms, median", swaps.verified_to_serving_ms.median, 100)
    yield Bar(shape, "NLL served less NLL of PyTorch, nats", abs(figures.losses.adapter.difference), 0.01)
    yield Bar(shape, "tokens per processor second, ratio to PyTorch with PEFT", figures.speed.decode_ratio, least=4)


def memory_table(result: Result) -> str:
    """Memory of nodes, and of a session beside its baselines."""
    lines = [
        "| adapter | node | starting: RSS / anonymous | working, at most | at rest | all processes, PSS at most |",
        "|---|---|---|---|---|---|",
    ]
    for shape, figures in result.shapes.items():
        modes: dict[str, Mode] = {
            "idle": figures.memory.idle,
            "serves": figures.memory.serving,
            "serves, long prompts": figures.memory.serving_long,
            "trains": figures.memory.training,
            "both": figures.memory.both,
        }
        for name, mode in modes.items():
            cells = [_two(mode.starting), _two(mode.working), _two(mode.resting), f"{mode.together.pss:.0f}"]
            lines.append(f"| {shape} | {name} | {' | '.join(cells)} |")
        if (limited := figures.memory.limited) is not None:
            text = f"{limited.most_mb:.0f} counted, {limited.out_of_memory_kills} killed"
            lines.append(f"| {shape} | both, in a control group of 1000 MB | | | | {text} |")
    memory = result.session_memory
    lines += [
        "",
        "| a session alone, while it answers | RSS / anonymous, at most |",
        "|---|---|",
        f"| as a node has it | {_two(memory.ours)} |",
        f"| the same, weights not prepacked | {_two(memory.not_prepacked)} |",
        f"| ONNX Runtime's defaults | {_two(memory.defaults)} |",
    ]
    return "\n".join(lines)


def other_table(result: Result) -> str:
    """Everything but memory, with its baseline."""
    lines = ["| adapter | what | found | baseline |", "|---|---|---|---|"]
    for shape, one in result.shapes.items():
        out, swaps, speed, losses = one.swaps_from_outside, one.swaps, one.speed, one.losses
        torch, served = speed.torch_peft, speed.served
        requests = f"{out.requests} requests, {out.dropped} dropped, {out.mixed} mixed"
        inside = f"{swaps.requests} requests, {swaps.dropped} dropped, {swaps.mixed} mixed"
        rows = {
            f"{out.swaps} versions over MQTT, {out.clients} clients over HTTP": (requests, "two versions' own answers"),
            "verified to serving, ms, in that load": (f"{out.verified_to_serving_ms:.0f} on average", ""),
            "published to the first answer with it, ms": (
                f"{out.published_to_answered_ms.median:.0f}",
                f"an answer takes {out.answer_ms.median:.0f}",
            ),
            "first piece of an answer, ms": (
                f"{out.first_piece_adapter_ms:.0f}",
                f"{out.first_piece_base_ms:.0f} without adapter",
            ),
            f"{swaps.swaps} versions inside, {swaps.clients} clients": (inside, f"{swaps.different_answers} answers"),
            "switch, ms": (f"{swaps.switch_ms.median:.3f}", f"{swaps.switch_ms.maximum:.3f} at most"),
            "a new version, ms": (
                f"{swaps.verified_to_serving_ms_without_load.median:.0f}; {swaps.verified_to_serving_ms.median:.0f} "
                "in that load",
                f"{swaps.session_reload_ms.median:.0f} for loading the session again",
            ),
            "tokens per processor second": (
                f"{served.decode_tokens_per_cpu_second:.1f}",
                f"{torch.decode_tokens_per_cpu_second:.1f} in PyTorch with PEFT",
            ),
            f"first token after {speed.prompt_tokens}, processor ms": (
                f"{served.first_token_cpu_ms:.0f}",
                f"{torch.first_token_cpu_ms:.0f} in PyTorch with PEFT",
            ),
            f"loss of {losses.examples} held-out answers, nats a token": (
                f"{losses.adapter.served:.4f}",
                f"{losses.adapter.torch:.4f} in PyTorch; base {losses.base.served:.4f}, {losses.base.torch:.4f}",
            ),
        }
        lines += [f"| {shape} | {what} | {found} | {baseline} |" for what, (found, baseline) in rows.items()]
    return "\n".join(lines)


def bar_table(bars: tuple[Bar, ...]) -> str:
    """What must hold, and whether it does."""
    lines = ["| adapter | what | found | wanted | holds |", "|---|---|---|---|---|"]
    for bar in bars:
        lines.append(f"| {bar.shape} | {bar.what} | {bar.found:.4g} | {bar.wanted} | {'yes' if bar.held else 'NO'} |")
    return "\n".join(lines)


def _two(memory: Memory) -> str:
    return f"{memory.rss:.0f} / {memory.anonymous:.0f}"


if __name__ == "__main__":
    main()

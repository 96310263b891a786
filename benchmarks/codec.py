"""What every codec takes and loses on real deltas, beside fp32 in the same run.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/codec.py --json codec.json --write docs/codec.md

Smart-home commands train the default base model in three rounds, each a job of 20 steps of four commands of another
home from where the round before has ended, for two shapes of adapter and three seeds. Every round's delta goes through
each codec, and what a codec has made of all deltas so far is added to the first adapter: so its errors pile up. The
loss on commands of yet other homes says what is left of the improvement since the first adapter, with the standard
error of that share over the commands. Times are CPU time, the median of some turns, as ratios to fp32's in the same
turns.

A run that was stopped goes on with what its file holds. Several processes may share the file, each with its seeds or
with all of them in another order: each adds what it has measured, and leaves out what the other has. Exits with 1 while
kltp at its usual step has not met the bar on both shapes, after the last round of every seed.
"""

import argparse
import fcntl
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import numpy as np
from generated import put
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from base_model.evaluation import example_losses
from base_model.examples import Example
from base_model.language_model import LanguageModel
from base_model.reference import DEFAULT_NAME, default_cache, resolve
from base_model.settings import TrainingConfig
from base_model.training import train
from broker.whole_file import write_whole
from examples.smart_home.commands import held_out_examples, make_homes, private_examples
from examples.smart_home.recipe import EVERY_LINEAR
from schemas import kltp
from schemas.adapter import Adapter, LoraConfig
from schemas.codec import decode, encode
from schemas.messages import CodecId

SEEDS = (0, 1, 2)
ROUNDS, STEPS, BATCH, HELD_OUT, TURNS = 3, 20, 4, 100, 3
LEAST_RATIO, LEAST_KEPT = 25.0, 99.5
QUERIES_AND_VALUES = ("q_proj", "v_proj")


class Shape(NamedTuple):
    """Which factors an adapter has, and the learning rate that suits them."""

    name: str
    lora: LoraConfig
    learning_rate: float


class Way(NamedTuple):
    """A codec, and the step where it has one."""

    name: str
    codec: CodecId
    step: float = 1.0


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Result(_Value):
    """One delta through one codec, and what is left of the improvement with all deltas so far."""

    shape: str
    seed: int
    round: int
    codec: str
    parameters: int
    bytes: int
    ratio_to_fp32: float
    loss_before: float  # mean over the held-out commands, nats per answer token
    loss_after: float  # with the exact deltas
    loss_kept_percent: float
    loss_kept_error: float  # standard error over the commands
    encode_ms: float
    decode_ms: float
    encode_ratio_to_fp32: float
    decode_ratio_to_fp32: float
    symbols_over_entropy: float | None  # of kltp alone


class Row(_Value):
    """Means over the seeds of one shape, codec and round."""

    shape: str
    codec: str
    round: int
    seeds: int
    bytes: float
    ratio_to_fp32: float
    loss_kept_percent: float
    loss_kept_error: float
    least_kept_percent: float
    encode_ms: float
    decode_ms: float
    encode_ratio_to_fp32: float
    decode_ratio_to_fp32: float


class Bar(_Value):
    """What kltp at its usual step must come to on every shape, after the last round, as a mean over all seeds."""

    ratio_to_fp32: float = LEAST_RATIO
    loss_kept_percent: float = LEAST_KEPT
    met: bool


class Setting(_Value):
    """What results must have in common to stand in one file."""

    rounds: int = ROUNDS
    steps: int = STEPS
    batch_size: int = BATCH
    held_out_examples: int = HELD_OUT


class Report(_Value):
    """The JSON file."""

    setting: Setting
    bar: Bar
    summary: tuple[Row, ...]
    results: tuple[Result, ...]


SHAPES = (
    Shape("queries and values, rank 8", LoraConfig(rank=8, alpha=16, target_modules=QUERIES_AND_VALUES), 2e-3),
    Shape("every linear module, rank 16", LoraConfig(rank=16, alpha=32, target_modules=EVERY_LINEAR), 5e-4),
)
FP32, USUAL = Way("fp32", "fp32"), Way("kltp, step 1", "kltp")
COSTS = ("bytes", "ratio_to_fp32", "encode_ms", "decode_ms", "encode_ratio_to_fp32", "decode_ratio_to_fp32")
WAYS = (FP32, Way("fp16", "fp16"), Way("int8", "int8"), USUAL, Way("kltp, step 2", "kltp", 2.0))


def measure(model: LanguageModel, shape: Shape, seed: int) -> Iterator[Result]:
    """Train round after round, and give the figures of every way to send the deltas."""
    homes = make_homes(ROUNDS, seed)
    private = [private_examples(home, STEPS * BATCH) for home in homes]
    held_out = held_out_examples(HELD_OUT, seed, [example for examples in private for example in examples])
    first = end = model.initial_adapter(shape.lora, seed)
    arrived = dict.fromkeys(WAYS, first)
    before = losses_by_example(model, first, held_out)
    for number, examples in enumerate(private, start=1):
        start, config = end, _training(shape, seed + number - 1)
        end = train(model, start, examples, config, lambda step, loss: None).adapter
        delta, after = end - start, losses_by_example(model, end, held_out)
        cost = milliseconds(delta, end)
        for way in WAYS:
            body = encode(delta, way.codec, end=end, step=way.step)
            arrived[way] += decode(body, delta.layout, way.codec)
            found = after if way is FP32 else losses_by_example(model, arrived[way], held_out)
            kept, error = share_kept(before, after, found)
            yield Result(
                shape=shape.name,
                seed=seed,
                round=number,
                codec=way.name,
                parameters=delta.layout.size,
                bytes=len(body),
                ratio_to_fp32=4 * delta.layout.size / len(body),
                loss_before=float(before.mean()),
                loss_after=float(after.mean()),
                loss_kept_percent=kept,
                loss_kept_error=error,
                encode_ms=cost[way][0],
                decode_ms=cost[way][1],
                encode_ratio_to_fp32=cost[way][0] / cost[FP32][0],
                decode_ratio_to_fp32=cost[way][1] / cost[FP32][1],
                symbols_over_entropy=over_entropy(body, delta) if way.codec == "kltp" else None,
            )


def _training(shape: Shape, seed: int) -> TrainingConfig:
    return TrainingConfig(steps=STEPS, batch_size=BATCH, learning_rate=shape.learning_rate, seed=seed)


def losses_by_example(model: LanguageModel, adapter: Adapter, examples: Sequence[Example]) -> NDArray[np.float64]:
    """Of each example the mean loss of its answer tokens, in nats."""
    return np.array(example_losses(model, adapter, examples))


def share_kept(
    before: NDArray[np.float64], after: NDArray[np.float64], with_codec: NDArray[np.float64]
) -> tuple[float, float]:
    """Per cent of the improvement that a codec keeps, and the standard error of that over the examples.

    The losses are of the same examples, so what makes one example harder than another cancels out.
    """
    gained = float((before - after).mean())
    lost = (with_codec - after) / gained
    return 100 * (1 - float(lost.mean())), 100 * float(lost.std(ddof=1)) / len(lost) ** 0.5


def milliseconds(delta: Adapter, end: Adapter) -> dict[Way, tuple[float, float]]:
    """CPU milliseconds to encode and to decode, by way, all ways in turns."""
    encoding: dict[Way, list[float]] = {way: [] for way in WAYS}
    decoding: dict[Way, list[float]] = {way: [] for way in WAYS}
    for _ in range(TURNS):
        for way in WAYS:
            spent, body = timed(partial(encode, delta, way.codec, end=end, step=way.step))
            encoding[way].append(spent)
            decoding[way].append(timed(partial(decode, body, delta.layout, way.codec))[0])
    return {way: (median(encoding[way]), median(decoding[way])) for way in WAYS}


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU milliseconds of a call, and what it gave."""
    begun = time.process_time()
    result = call()
    return 1e3 * (time.process_time() - begun), result


def over_entropy(body: bytes, delta: Adapter) -> float:
    """Bytes of the symbols over the entropy of each bucket's, which no coder without context goes below."""
    contents, sizes = kltp.read(body, delta.layout)
    buckets: dict[int, list[Any]] = {}
    for component in contents.components:
        buckets.setdefault(component.bucket, []).append(component.symbols)
    bits = 0.0
    for rows in buckets.values():
        counts = np.unique(np.concatenate(rows), return_counts=True)[1]
        bits -= float(np.sum(counts * np.log2(counts / counts.sum())))
    return 8 * sizes["symbols"] / bits


def summary(results: Sequence[Result]) -> Iterator[Row]:
    """Means over seeds, and the least that was kept, by shape, codec and round."""
    for shape in SHAPES:
        for way in WAYS:
            for number in range(1, ROUNDS + 1):
                wanted = (shape.name, way.name, number)
                if found := [one for one in results if (one.shape, one.codec, one.round) == wanted]:
                    yield _row(found)


def _row(found: Sequence[Result]) -> Row:
    return Row(
        shape=found[0].shape,
        codec=found[0].codec,
        round=found[0].round,
        seeds=len(found),
        least_kept_percent=min(one.loss_kept_percent for one in found),
        # of a mean over seeds, whose examples and training differ
        loss_kept_error=sum(one.loss_kept_error**2 for one in found) ** 0.5 / len(found),
        **{name: mean(getattr(one, name) for one in found) for name in (*COSTS, "loss_kept_percent")},
    )


def table(rows: Sequence[Row]) -> str:
    """The summary in Markdown: a line for a codec, with what is kept after each round."""
    rounds = " | ".join(f"kept after {number}" for number in range(1, ROUNDS + 1))
    header = f"| shape | codec | bytes a round | smaller | {rounds} | least | encode | decode | seeds |"
    lines = [header, "| " + " | ".join(["---"] * (8 + ROUNDS)) + " |"]
    for shape in SHAPES:
        for way in WAYS:
            found = [row for row in rows if (row.shape, row.codec) == (shape.name, way.name)]
            lines += [_line(found)] if found else []
    return "\n".join(lines)


def _line(rounds: Sequence[Row]) -> str:
    costs = (mean(getattr(row, name) for row in rounds) for name in COSTS)
    size, ratio, encode_ms, decode_ms, encode_ratio, decode_ratio = costs
    kept = " | ".join(f"{row.loss_kept_percent:.2f} ± {row.loss_kept_error:.2f} %" for row in rounds)
    return (
        f"| {rounds[0].shape} | {rounds[0].codec} | {size:,.0f} | {ratio:.1f}x "
        f"| {kept} | {min(row.least_kept_percent for row in rounds):.2f} % "
        f"| {encode_ms:.1f} ms, {encode_ratio:.0f}x | {decode_ms:.1f} ms, {decode_ratio:.0f}x | {rounds[0].seeds} |"
    )


def bar(rows: Sequence[Row]) -> Bar:
    """Whether kltp at its usual step comes to the bar; not met while a seed of a shape is missing."""
    usual = [row for row in rows if row.codec == USUAL.name and row.round == ROUNDS]
    is_whole = {row.shape for row in usual if row.seeds == len(SEEDS)} == {shape.name for shape in SHAPES}
    is_good = all(row.ratio_to_fp32 >= LEAST_RATIO and row.loss_kept_percent >= LEAST_KEPT for row in usual)
    return Bar(met=is_whole and is_good)


def kept_so_far(file: Path | None) -> tuple[Result, ...]:
    """What was measured before, by a run that was stopped or by one beside this, under the same setting."""
    if file is None or not file.exists():
        return ()
    report = Report.model_validate_json(file.read_bytes())
    if report.setting != Setting():
        raise ValueError(f"{file} is of another setting: move it away, or name another file")
    return report.results


def keep(measured: Sequence[Result], file: Path | None, document: Path | None) -> Report:
    """Add what was measured to the file and rewrite the document's table, each where it is wanted."""
    with _alone_with(file):
        results = {(one.seed, one.shape, one.round, one.codec): one for one in (*kept_so_far(file), *measured)}
        rows = tuple(summary(list(results.values())))
        report = Report(setting=Setting(), bar=bar(rows), summary=rows, results=tuple(results.values()))
        if file is not None:
            write_whole(file, f"{report.model_dump_json(indent=2)}\n".encode())
        if document is not None:
            put(document, "codecs", table(rows))
    return report


@contextmanager
def _alone_with(file: Path | None) -> Iterator[None]:
    """Let no other process of this benchmark read or write the file meanwhile."""
    if file is None:
        yield
        return
    with file.with_name(f"{file.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_measured(results: Sequence[Result], seed: int, shape: Shape) -> bool:
    return any((one.seed, one.shape) == (seed, shape.name) for one in results)


def _progress(result: Result) -> str:
    kept, error, ratio = result.loss_kept_percent, result.loss_kept_error, result.ratio_to_fp32
    where = f"seed {result.seed}, {result.shape}, round {result.round}, {result.codec}"
    return f"{where}: {ratio:.1f}x, {kept:.2f} % kept, standard error {error:.2f} %"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, choices=SEEDS, help="measure these; default all")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write every figure here; go on with one that is there"
    )
    parser.add_argument("--write", type=Path, metavar="DOCUMENT", help="put the table into this document")
    return parser.parse_args()


def main() -> None:
    """Measure, print, and write what was asked for."""
    options, measured, model = _options(), list[Result](), None
    for seed, shape in ((seed, shape) for seed in options.seeds for shape in SHAPES):
        if _is_measured(kept_so_far(options.json), seed, shape):
            continue
        model = model or LanguageModel.load(resolve(DEFAULT_NAME, default_cache()))
        whole = list[Result]()
        for result in measure(model, shape, seed):
            whole.append(result)
            print(_progress(result), flush=True)
        measured += whole  # all its rounds or none: its errors pile up from the first
        keep(measured, options.json, options.write)
    report = keep(measured, options.json, options.write)
    print(table(report.summary))
    sys.exit(not report.bar.met)


if __name__ == "__main__":
    main()

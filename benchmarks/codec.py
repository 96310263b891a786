"""What every codec takes and loses on real deltas, beside fp32 in the same run.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/codec.py --json codec.json --write docs/codec.md

Smart-home commands train the default base model in three rounds, each a job of 20 steps of four commands of another
home from where the round before has ended, for two shapes of adapter and three seeds. Every round's delta goes through
each codec, and what a codec has made of all deltas so far is added to the first adapter: so its errors pile up. The
loss on commands of yet other homes says what is left of the improvement since the first adapter, with the standard
error of that share over the commands. Times are CPU time, the median of some turns, as ratios to fp32's in the same
turns. Exits with 1 when kltp at its usual step misses the bar on a shape after the last round.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from base_model.evaluation import example_losses
from base_model.examples import Example
from base_model.language_model import LanguageModel
from base_model.reference import DEFAULT_NAME, default_cache, resolve
from base_model.settings import TrainingConfig
from base_model.training import train
from examples.smart_home.commands import held_out_examples, make_homes, private_examples
from examples.smart_home.recipe import EVERY_LINEAR
from schemas import kltp
from schemas.adapter import Adapter, LoraConfig
from schemas.codec import decode, encode
from schemas.messages import CodecId

SEEDS = (0, 1, 2)
ROUNDS, STEPS, BATCH, HELD_OUT, TURNS = 3, 20, 4, 48, 3
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


SHAPES = (
    Shape("queries and values, rank 8", LoraConfig(rank=8, alpha=16, target_modules=QUERIES_AND_VALUES), 2e-3),
    Shape("every linear module, rank 16", LoraConfig(rank=16, alpha=32, target_modules=EVERY_LINEAR), 5e-4),
)
FP32, USUAL = Way("fp32", "fp32"), Way("kltp, step 1", "kltp")
WAYS = (FP32, Way("fp16", "fp16"), Way("int8", "int8"), USUAL, Way("kltp, step 2", "kltp", 2.0))


def measure(model: LanguageModel, shape: Shape, seed: int) -> Iterator[dict[str, Any]]:
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
            kept, error = share_kept(
                before, after, after if way is FP32 else losses_by_example(model, arrived[way], held_out)
            )
            yield {
                "shape": shape.name,
                "seed": seed,
                "round": number,
                "codec": way.name,
                "parameters": delta.layout.size,
                "bytes": len(body),
                "ratio_to_fp32": 4 * delta.layout.size / len(body),
                "loss_before": float(before.mean()),
                "loss_after": float(after.mean()),
                "loss_kept_percent": kept,
                "loss_kept_error": error,
                "encode_ms": cost[way][0],
                "decode_ms": cost[way][1],
                "encode_ratio_to_fp32": cost[way][0] / cost[FP32][0],
                "decode_ratio_to_fp32": cost[way][1] / cost[FP32][1],
                "symbols_over_entropy": over_entropy(body, delta) if way.codec == "kltp" else None,
            }


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


def summary(results: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Means over seeds, and the least that was kept, by shape, codec and round."""
    for shape in SHAPES:
        for way in WAYS:
            for number in range(1, ROUNDS + 1):
                wanted = (shape.name, way.name, number)
                found = [r for r in results if (r["shape"], r["codec"], r["round"]) == wanted]
                if not found:
                    continue
                names = [name for name, value in found[0].items() if isinstance(value, float)]
                yield {
                    "shape": shape.name,
                    "codec": way.name,
                    "round": number,
                    "seeds": len(found),
                    **{name: mean(result[name] for result in found) for name in ("bytes", *names)},
                    "least_kept_percent": min(result["loss_kept_percent"] for result in found),
                    # of a mean over seeds, whose examples and training differ
                    "loss_kept_error": sum(r["loss_kept_error"] ** 2 for r in found) ** 0.5 / len(found),
                }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The summary in Markdown: a line for a codec, with what is kept after each round."""
    rounds = " | ".join(f"kept after {number}" for number in range(1, ROUNDS + 1))
    header = f"| shape | codec | bytes a round | smaller | {rounds} | least | encode | decode | seeds |"
    lines = [header, "| " + " | ".join(["---"] * (8 + ROUNDS)) + " |"]
    for shape in SHAPES:
        for way in WAYS:
            found = [r for r in rows if (r["shape"], r["codec"]) == (shape.name, way.name)]
            lines += [_line(found)] if found else []
    return "\n".join(lines)


def _line(rounds: Sequence[dict[str, Any]]) -> str:
    names = ("bytes", "ratio_to_fp32", "encode_ms", "decode_ms", "encode_ratio_to_fp32", "decode_ratio_to_fp32")
    size, ratio, encode_ms, decode_ms, encode_ratio, decode_ratio = (mean(r[name] for r in rounds) for name in names)
    kept = " | ".join(f"{r['loss_kept_percent']:.2f} ± {r['loss_kept_error']:.2f} %" for r in rounds)
    return (
        f"| {rounds[0]['shape']} | {rounds[0]['codec']} | {size:,.0f} | {ratio:.1f}x "
        f"| {kept} | {min(r['least_kept_percent'] for r in rounds):.2f} % "
        f"| {encode_ms:.1f} ms, {encode_ratio:.0f}x | {decode_ms:.1f} ms, {decode_ratio:.0f}x | {rounds[0]['seeds']} |"
    )


def write(document: Path, text: str) -> None:
    """Put the table between the document's markers."""
    before, begin, rest = document.read_text(encoding="utf-8").partition("<!-- measured: codecs -->")
    _, end, after = rest.partition("<!-- end -->")
    if not begin or not end:
        raise ValueError(f"{document} has no part '<!-- measured: codecs -->'")
    document.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")


def _of(results: Sequence[dict[str, Any]], shape: Shape, seed: int) -> list[dict[str, Any]]:
    return [result for result in results if (result["shape"], result["seed"]) == (shape.name, seed)]


def _earlier(file: Path | None) -> list[dict[str, Any]]:
    """What a run that was stopped has measured already, under the same setting."""
    if file is None or not file.exists():
        return []
    report = json.loads(file.read_text(encoding="utf-8"))
    if report["setting"] != _setting():
        raise ValueError(f"{file} is of another setting: move it away, or name another file")
    results: list[dict[str, Any]] = report["results"]
    return results


def _save(results: Sequence[dict[str, Any]], file: Path | None, document: Path | None) -> list[dict[str, Any]]:
    """Write what there is so far where it is wanted; its summary."""
    rows = list(summary(results))
    if file is not None:
        report = {"setting": _setting(), "bar": _bar(rows), "summary": rows, "results": results}
        file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if document is not None:
        write(document, table(rows))
    return rows


def _setting() -> dict[str, Any]:
    return {
        "seeds": list(SEEDS),
        "rounds": ROUNDS,
        "steps": STEPS,
        "batch_size": BATCH,
        "held_out_examples": HELD_OUT,
    }


def _bar(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What kltp at its usual step must come to on every shape, after the last round."""
    usual = [row for row in rows if row["codec"] == USUAL.name and row["round"] == ROUNDS]
    met = all(r["ratio_to_fp32"] >= LEAST_RATIO and r["loss_kept_percent"] >= LEAST_KEPT for r in usual)
    return {"ratio_to_fp32": LEAST_RATIO, "loss_kept_percent": LEAST_KEPT, "met": met and len(usual) == len(SHAPES)}


def _progress(result: dict[str, Any]) -> str:
    kept, error, ratio = result["loss_kept_percent"], result["loss_kept_error"], result["ratio_to_fp32"]
    where = f"seed {result['seed']}, {result['shape']}, round {result['round']}, {result['codec']}"
    return f"{where}: {ratio:.1f}x, {kept:.2f} % kept, standard error {error:.2f} %"


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write every figure here; go on with one that is there"
    )
    parser.add_argument("--write", type=Path, metavar="DOCUMENT", help="put the table into this document")
    options = parser.parse_args()
    results = _earlier(options.json)
    missing = [(seed, shape) for seed in SEEDS for shape in SHAPES if not _of(results, shape, seed)]
    model = LanguageModel.load(resolve(DEFAULT_NAME, default_cache())) if missing else None
    for seed, shape in missing:
        assert model is not None
        for result in measure(model, shape, seed):
            results.append(result)
            print(_progress(result), flush=True)
        _save(results, options.json, options.write)
    rows = _save(results, options.json, options.write)
    print(table(rows))
    sys.exit(not _bar(rows)["met"])


if __name__ == "__main__":
    main()

"""One training job in a process of its own: `python -m edge_node.training.process`, a job on stdin, reports on stdout.

It trains on the blocks that are served, where there are some, and otherwise as base_model/training.py does. It ends
with the job, or with the node, whichever comes first, and all its memory with it. The only file of the node's that
meets PyTorch on purpose.
"""

import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Literal

from base_model.descent import OnStep, TrainingResult
from base_model.reference import ResolvedModel
from base_model.wheel import BaseModelError
from edge_node.child_process import die_with_the_parent, stand_back
from edge_node.memory import give_back_memory
from edge_node.training.pipe import (
    CutShort,
    Job,
    Loaded,
    Measured,
    Order,
    Step,
    read_job,
    write_report,
    write_result,
)

FASTER_IN_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}  # flags of x86-64, of x86-64, of aarch64


@dataclass(frozen=True)
class Prepared:
    """A model that is ready for the job: what it is, in words, and what it can do."""

    weights: str
    held_out_loss: Callable[[], float]  # of the start, in nats per answer token
    train: Callable[[OnStep], TrainingResult]


def main() -> None:
    """Do one job."""
    begun = time.monotonic()
    die_with_the_parent()
    stand_back()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the node, which then ends this process
    with os.fdopen(os.dup(1), "wb") as reports:
        os.dup2(2, 1)  # whatever a library prints must not get between the reports
        try:
            _work(sys.stdin.buffer, reports, begun)
        except CutShort:
            sys.exit("the node ended before it had said the job")
        except BaseModelError as fault:
            sys.exit(str(fault))


def _work(orders: IO[bytes], reports: IO[bytes], begun: float) -> None:
    import torch

    job = read_job(orders)
    torch.set_num_threads(job.order.threads)
    model = _prepared(job)
    write_report(reports, Loaded(weights=model.weights, seconds=time.monotonic() - begun))
    if job.held_out:
        write_report(reports, Measured(examples=len(job.held_out), loss=model.held_out_loss()))
    if not job.examples:
        return
    result = model.train(_reporting(reports, job.order.slowdown))
    examples = min(len(job.examples), result.examples_seen)
    write_result(reports, result.adapter, examples, result.steps, result.mean_loss, _peak_mb())


def _prepared(job: Job) -> Prepared:
    """The model of the job, on blocks if that can be."""
    if job.order.blocks is None:
        return _on_dense_weights(job)
    try:
        return _on_blocks(job, job.order.blocks)
    except BaseModelError as fault:
        dense = _on_dense_weights(job)
        return replace(dense, weights=f"{dense.weights}, which take more memory than blocks would: {fault}")


def _on_blocks(job: Job, gguf: Path) -> Prepared:
    import torch

    from base_model.chat_tokens import ChatTokens
    from base_model.tokens import encoded
    from edge_node.training.block_model import BlockModel
    from edge_node.training.block_training import mean_loss, train_blocks

    order = job.order
    activations = _activations(order)
    model, tokens = BlockModel(gguf, order.model, getattr(torch, activations)), ChatTokens(order.model)
    give_back_memory()  # reading the tokenizer took more than what is left of it
    examples, held_out = (
        [
            encoded(tokens.prompt([{"role": "user", "content": one.prompt}]), tokens.answer(one.completion), tokens.end)
            for one in some
        ]
        for some in (job.examples, job.held_out)
    )
    return Prepared(
        weights=f"the blocks of {gguf.name}, activations {activations}",
        held_out_loss=lambda: mean_loss(model, job.start, held_out),
        train=lambda on_step: train_blocks(model, job.start, examples, order.config, on_step),
    )


def _on_dense_weights(job: Job) -> Prepared:
    from base_model.evaluation import losses
    from base_model.language_model import LanguageModel
    from base_model.training import train

    order = job.order
    dtype: Literal["float32", "bfloat16"] = "bfloat16" if order.activations == "bfloat16" else "float32"
    seen = order.config.steps * min(order.config.batch_size, len(job.examples))
    kept_mb = 256 if seen > len(job.examples) else 0  # what lower layers make of an example, if it comes again
    resolved = ResolvedModel(str(order.model), order.model, "")
    model = LanguageModel.load(resolved, dtype, threads=order.threads, frozen_cache_mb=kept_mb)
    return Prepared(
        weights=f"{dtype} weights",
        held_out_loss=lambda: losses(model, job.start, job.held_out),
        train=lambda on_step: train(model, job.start, job.examples, order.config, on_step),
    )


def _activations(order: Order) -> str:
    if order.activations != "auto":
        return order.activations
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:  # not Linux
        flags = set()
    return "bfloat16" if flags & FASTER_IN_BFLOAT16 else "float32"


def _reporting(reports: IO[bytes], slowdown: float) -> OnStep:
    """Report each step; with a slowdown of s, pause s - 1 times its duration, as if the hardware were slower."""
    begun = time.monotonic()

    def on_step(step: int, loss: float) -> None:
        nonlocal begun
        write_report(reports, Step(step=step, loss=loss))
        give_back_memory()  # the holes between what lasts: a twentieth of the whole
        time.sleep((slowdown - 1) * (time.monotonic() - begun))
        begun = time.monotonic()

    return on_step


def _peak_mb() -> float:
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(kibibytes / 1024, 1)


if __name__ == "__main__":
    main()

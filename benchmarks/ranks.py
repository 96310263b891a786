"""How much of what a small node has learnt is lost when its delta becomes one of the federation's rank.

    OMP_NUM_THREADS=1 python benchmarks/ranks.py [--json FILE]

A head of rank R is new, or has been trained on another home's commands. A node of rank 4 starts from it as nodes do,
cut to its rank, and trains a job on its own. Lost is how far the head's products then move from what the node
changed, relative to that: widened as the coordinator does it, and by least squares. Losses are nats per answer token
on held-out commands: of the head, of the node's start, of the node after its job, and of the head with the widened
delta. Beside it the job that the node would do if it trained four of the head's own rows and left the others as they
are. Two minutes of processor.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from base_model.evaluation import losses
from base_model.examples import Example
from base_model.language_model import LanguageModel
from base_model.reference import DEFAULT_NAME, default_cache, resolve
from base_model.settings import TrainingConfig
from base_model.training import train
from coordinator.intake import RAISING_RIDGE
from examples.smart_home.commands import held_out_examples, make_homes, private_examples
from examples.smart_home.recipe import EVERY_LINEAR
from schemas.adapter import A_SUFFIX, B_SUFFIX, Adapter, LoraConfig
from schemas.products import product_distance, stack, transplant, truncate, widen

RANKS, NODE_RANK = (8, 16), 4
JOB = TrainingConfig(steps=8, batch_size=4, learning_rate=2e-3)  # the demo's
LONGER = JOB.model_copy(update={"steps": 16, "seed": 1})
HELD_OUT = 24


class Row(NamedTuple):
    """One line of the table."""

    rank: int
    head: str
    widened: float  # what is lost
    least_squares: float
    head_loss: float
    cut_loss: float
    node_loss: float
    head_after: float
    rows_loss: float


def main() -> None:
    """Measure, print a table, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    path: Path | None = parser.parse_args().json
    torch.set_num_threads(1)
    model = LanguageModel.load(resolve(DEFAULT_NAME, default_cache()))
    own, others = (private_examples(home, 100) for home in make_homes(2, seed=5))
    held_out = held_out_examples(HELD_OUT, 7, (*own, *others))
    rows = []
    for rank in RANKS:
        lora = LoraConfig(rank=rank, alpha=2 * rank, target_modules=EVERY_LINEAR, last_layers=10)
        new = model.initial_adapter(lora, seed=1)
        trained = train(model, new, others, LONGER, _unheard).adapter
        rows += [measure(model, head, start, own, held_out) for head, start in (("new", new), ("trained", trained))]
    print(table(rows))
    print(f"{time.process_time():.0f} processor seconds")
    if path is not None:
        path.write_text(json.dumps([row._asdict() for row in rows], indent=2) + "\n", encoding="utf-8")


def measure(model: LanguageModel, name: str, head: Adapter, own: Sequence[Example], held_out: Sequence[Example]) -> Row:
    """A node's job from this head, what is lost of it, and how good everybody is before and after."""
    start = truncate(head, head.layout.with_rank(NODE_RANK))
    after = train(model, start, own, JOB, _unheard).adapter
    wide = widen(head, after - start, RAISING_RIDGE)
    near = transplant(head, head, after - start, RAISING_RIDGE)
    with only(model, head, strongest(head, NODE_RANK)):
        of_rows = train(model, head, own, JOB, _unheard).adapter
    found = [losses(model, adapter, held_out) for adapter in (head, start, after, head + wide, of_rows)]
    wanted = change(start, after)
    lost = [product_distance(change(head, head + delta), wanted) for delta in (wide, near)]
    return Row(head.layout.lora.rank, name, *lost, *found)


def change(before: Adapter, after: Adapter) -> Adapter:
    """The change of the products, as an adapter."""
    return stack([(after, 1.0), (before, -1.0)])


def strongest(adapter: Adapter, count: int) -> list[int]:
    """The rows whose parts of the products are the largest, over all modules."""
    sizes = np.zeros(adapter.layout.lora.rank)
    tensors = adapter.tensors()
    for name, a in tensors.items():
        if name.endswith(A_SUFFIX):
            b = tensors[name.removesuffix(A_SUFFIX) + B_SUFFIX]
            sizes += np.square(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=0))
    return [int(row) for row in np.argsort(-sizes, kind="stable")[:count]]


@contextmanager
def only(model: LanguageModel, adapter: Adapter, rows: Sequence[int]) -> Iterator[None]:
    """While this lasts, training this adapter moves these rows of A and columns of B alone."""
    model.apply(adapter)
    handles = []
    for name, factor in model.factors.items():
        mask = torch.zeros_like(factor)
        if name.endswith(A_SUFFIX):
            mask[list(rows), :] = 1
        else:
            mask[:, list(rows)] = 1
        handles.append(factor.register_hook(masked(mask)))  # type: ignore[no-untyped-call]
    yield
    for handle in handles:
        handle.remove()


def masked(mask: Tensor) -> Callable[[Tensor], Tensor]:
    """What a gradient has where the mask is 1."""
    return lambda gradient: gradient * mask


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = [
        "| rank | head | widened | least squares | head's loss | start | after its job | head then | four rows |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        found = (row.head_loss, row.cut_loss, row.node_loss, row.head_after, row.rows_loss)
        cells = " | ".join(f"{loss:.3f}" for loss in found)
        widened = "under 1e-6" if row.widened < 1e-6 else f"{row.widened:.1e}"
        lines.append(f"| {row.rank} | {row.head} | {widened} | {row.least_squares:.2%} | {cells} |")
    return "\n".join(lines)


def _unheard(step: int, loss: float) -> None:
    """Nobody watches."""


if __name__ == "__main__":
    main()

"""What a training step costs: frozen layers cached, on blocks, and with the options that stay near the start.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/training.py

Both sides train the same adapter on the same smart-home commands of the default base model, in turns: jobs of four
steps of four examples, on one thread. The states of an example are made in the first job that sees it, which is shown
apart. CPU milliseconds a step, not wall-clock; a busy machine makes all of them longer, and hardly changes the ratio.
Everything is a ratio to a baseline of the same run: the whole network's dense weights, or plain training on blocks.
"""

import sys
import time
from collections.abc import Callable, Sequence
from statistics import median

import torch

from base_model.examples import Example
from base_model.language_model import Dtype, LanguageModel
from base_model.reference import DEFAULT_NAME, ResolvedModel, default_cache, gguf_of, resolve
from base_model.settings import TrainingConfig
from base_model.training import train
from edge_node.training.block_model import BlockModel
from edge_node.training.block_training import train_blocks
from examples.smart_home.commands import make_homes, private_examples
from examples.smart_home.recipe import EVERY_LINEAR
from schemas.adapter import Adapter, LoraConfig

JOBS, TURNS = 7, 5
Side = Callable[[], float]
"""Runs one job; its loss."""
CONFIG = TrainingConfig(steps=4, batch_size=4, learning_rate=2e-3)
RECIPES: tuple[tuple[str, Dtype, LoraConfig], ...] = (
    ("last 10 layers, every linear module", "float32", LoraConfig(target_modules=EVERY_LINEAR, last_layers=10)),
    ("last 6 layers, queries and values", "bfloat16", LoraConfig(target_modules=("q_proj", "v_proj"), last_layers=6)),
)


def milliseconds(model: LanguageModel, start: Adapter, examples: Sequence[Example]) -> tuple[float, float]:
    """CPU milliseconds a step of one job, and its loss."""
    begun = time.process_time()
    loss = train(model, start, examples, CONFIG, lambda step, loss: None).mean_loss
    return 1e3 * (time.process_time() - begun) / CONFIG.steps, loss


def compare(resolved: ResolvedModel, name: str, dtype: Dtype, lora: LoraConfig) -> bool:
    """Measure one recipe and print it; whether both sides came to the same loss, up to rounding."""
    examples = private_examples(make_homes(1, seed=5)[0], CONFIG.steps * CONFIG.batch_size)
    cached, whole = LanguageModel.load(resolved, dtype), LanguageModel.load(resolved, dtype, frozen_cache_mb=0)
    start = cached.initial_adapter(lora, seed=1)
    milliseconds(whole, start, examples)  # pages of the weights are read once
    first, _ = milliseconds(cached, start, examples)
    pairs = [(milliseconds(cached, start, examples), milliseconds(whole, start, examples)) for _ in range(JOBS)]
    ours, baseline = (median(pair[side][0] for pair in pairs) for side in (0, 1))
    (_, our_loss), (_, baseline_loss) = pairs[0]
    print(f"{name}, {dtype}; CPU ms a step")
    print(f"  whole network  median {baseline:6.1f}   loss {baseline_loss:.4f}")
    print(f"  cached         median {ours:6.1f}   loss {our_loss:.4f}   {cached.frozen.used / 2**20:.1f} MiB kept")
    print(f"  first job             {first:6.1f}")
    print(f"  ratio          median {ours / baseline:6.2f}")
    return abs(our_loss / baseline_loss - 1) < 0.02


def blocks_and_options(resolved: ResolvedModel, name: str, lora: LoraConfig) -> bool:
    """Plain training on dense weights, on blocks, and on blocks with each option; whether dense and blocks agree."""
    examples = private_examples(make_homes(1, seed=5)[0], CONFIG.steps * CONFIG.batch_size)
    dense = LanguageModel.load(resolved, frozen_cache_mb=0)
    encoded = [dense.encode(example) for example in examples]
    start, gguf = dense.initial_adapter(lora, seed=1), gguf_of(resolved, default_cache())
    blocks = {dtype: BlockModel(gguf, resolved.path, getattr(torch, dtype)) for dtype in ("float32", "bfloat16")}

    def on_blocks(dtype: str, **options: float) -> Side:
        config = CONFIG.model_copy(update=options)
        return lambda: train_blocks(blocks[dtype], start, encoded, config, lambda step, loss: None).mean_loss

    plain = "blocks, float32"
    sides: dict[str, Side] = {
        "dense weights, float32": lambda: milliseconds(dense, start, examples)[1],
        plain: on_blocks("float32"),
        "blocks, bfloat16": on_blocks("bfloat16"),
        "blocks, float32, proximal": on_blocks("float32", proximal=0.1),
        "blocks, float32, representation_penalty": on_blocks("float32", representation_penalty=0.01),
    }
    times: dict[str, list[float]] = {side: [] for side in sides}
    losses: dict[str, float] = {}
    for _ in range(TURNS):
        for side, run in sides.items():
            begun = time.process_time()
            losses[side] = run()
            times[side].append(1e3 * (time.process_time() - begun) / CONFIG.steps)
    print(f"{name}; CPU ms a step, median of {TURNS} jobs in turns")
    for side, found in times.items():
        ratio = median(one / other for one, other in zip(found, times[plain], strict=True))
        print(f"  {side:<40} {median(found):7.1f}   ratio {ratio:5.2f}   loss {losses[side]:.4f}")
    return abs(losses[plain] / losses["dense weights, float32"] - 1) < 1e-4


def main() -> None:
    """Measure and print."""
    resolved = resolve(DEFAULT_NAME, default_cache())
    agreed = [blocks_and_options(resolved, name, lora) for name, _, lora in RECIPES]
    agreed += [compare(resolved, *recipe) for recipe in RECIPES]
    sys.exit(not all(agreed))


if __name__ == "__main__":
    main()

"""What a training step costs where the lower layers carry no factors, as a ratio to running the whole network.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/training.py

Both sides train the same adapter on the same smart-home commands of the default base model, in turns: jobs of four
steps of four examples, on one thread. The states of an example are made in the first job that sees it, which is shown
apart. CPU milliseconds a step, not wall-clock; a busy machine makes all of them longer, and hardly changes the ratio.
"""

import sys
import time
from collections.abc import Sequence
from statistics import median

from base_model.examples import Example
from base_model.language_model import Dtype, LanguageModel
from base_model.reference import DEFAULT_NAME, ResolvedModel, default_cache, resolve
from base_model.settings import TrainingConfig
from base_model.training import train
from examples.smart_home.commands import make_homes, private_examples
from examples.smart_home.recipe import EVERY_LINEAR
from schemas.adapter import Adapter, LoraConfig

JOBS = 7
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


def main() -> None:
    """Measure and print."""
    resolved = resolve(DEFAULT_NAME, default_cache())
    agreed = [compare(resolved, *recipe) for recipe in RECIPES]
    sys.exit(not all(agreed))


if __name__ == "__main__":
    main()

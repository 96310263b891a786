"""The default base model itself: fetched, verified, converted, and it learns."""

import pytest

from base_model.evaluation import evaluate
from base_model.language_model import Dtype, LanguageModel
from base_model.reference import DEFAULT_NAME, default_cache, resolve
from base_model.settings import TrainingConfig
from base_model.training import train
from base_model.wheel import PINS
from examples.smart_home.commands import held_out_examples, make_homes, private_examples
from schemas.adapter import LoraConfig


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_default_model_learns_commands_from_a_few_steps(dtype: Dtype) -> None:
    resolved = resolve(DEFAULT_NAME, default_cache())
    assert resolved.digest == PINS[DEFAULT_NAME.removeprefix("pypi:")].gguf_sha256
    model = LanguageModel.load(resolved, dtype)
    private = private_examples(make_homes(1, seed=5)[0], 60)
    held_out = held_out_examples(12, seed=5, seen=private)
    start = model.initial_adapter(LoraConfig(target_modules=("q_proj", "v_proj", "down_proj"), last_layers=10), seed=5)
    config = TrainingConfig(steps=15, batch_size=4, learning_rate=2e-3)
    learned = train(model, start, private, config, lambda step, loss: None).adapter
    before = evaluate(model, start, held_out, lambda done, total: None)
    after = evaluate(model, learned, held_out, lambda done, total: None)
    assert after.loss < 0.6 * before.loss
    assert len(model.frozen) > 0
    assert sum(answer.startswith('{"intent":"') for answer in after.answers) >= 6

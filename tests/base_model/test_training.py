"""Training lowers the loss, repeats exactly, and stops when it is told to."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from base_model.evaluation import evaluate
from base_model.examples import Example
from base_model.language_model import LanguageModel
from base_model.tokens import collate, encode
from base_model.training import TrainingConfig, answer_losses, train
from schemas.adapter import LoraConfig

EXAMPLES = (
    Example(prompt="turn on the desk lamp", completion='{"intent":"TurnOn","name":"desk lamp"}'),
    Example(prompt="turn off the lights", completion='{"intent":"TurnOff","domain":"light"}'),
    Example(prompt="set the volume to 20", completion='{"intent":"SetVolume","volume_level":20}'),
)
CONFIG = TrainingConfig(steps=30, batch_size=3, learning_rate=0.01, seed=1)


def ignore(step: int, loss: float) -> None:
    """Nobody watches."""


def test_training_lowers_the_loss_and_says_what_it_did(model: LanguageModel, lora: LoraConfig) -> None:
    start = model.initial_adapter(lora, seed=1)
    heard: list[tuple[int, float]] = []
    result = train(model, start, EXAMPLES, CONFIG, lambda step, loss: heard.append((step, loss)))
    before = evaluate(model, start, EXAMPLES, ignore_progress).loss
    after = evaluate(model, result.adapter, EXAMPLES, ignore_progress).loss
    assert heard[0][1] == pytest.approx(before, rel=1e-5)
    assert after < 0.8 * before
    assert [step for step, _ in heard] == list(range(1, 31))
    assert result.last_loss == heard[-1][1]
    assert result.mean_loss == pytest.approx(np.mean([loss for _, loss in heard]))
    assert (result.steps, result.examples_seen) == (30, 90)


def ignore_progress(done: int, total: int) -> None:
    """Nobody watches."""


def test_the_same_seed_gives_the_same_adapter_whatever_the_global_generator(
    model: LanguageModel, lora: LoraConfig
) -> None:
    start = model.initial_adapter(lora, seed=1)
    config = TrainingConfig(steps=3, batch_size=2, seed=5)
    first = train(model, start, EXAMPLES, config, ignore).adapter
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert train(model, start, EXAMPLES, config, ignore).adapter == first
    assert torch.equal(torch.get_rng_state(), state)
    other = train(model, start, EXAMPLES, config.model_copy(update={"seed": 6}), ignore).adapter
    assert other != first


def test_a_listener_that_raises_ends_the_training_at_once(model: LanguageModel, lora: LoraConfig) -> None:
    class Stop(Exception):
        pass

    def stop_at_two(step: int, loss: float) -> None:
        if step == 2:
            raise Stop

    steps: list[int] = []
    with pytest.raises(Stop):
        train(
            model, model.initial_adapter(lora, 1), EXAMPLES, CONFIG, lambda s, x: (steps.append(s), stop_at_two(s, x))
        )
    assert steps == [1, 2]


def test_fewer_examples_than_a_batch_are_all_used_in_every_step(model: LanguageModel, lora: LoraConfig) -> None:
    config = TrainingConfig(steps=2, batch_size=64)
    assert train(model, model.initial_adapter(lora, 1), EXAMPLES, config, ignore).examples_seen == 6


def test_losses_are_those_of_the_answer_tokens_of_each_example_alone(model: LanguageModel) -> None:
    encoded = [encode(model.tokenizer, example) for example in EXAMPLES]
    expected = []
    for example in encoded:
        ids = torch.tensor([example.prompt + example.answer])
        logits = model.network(input_ids=ids).logits[0, len(example.prompt) - 1 : -1]
        expected.append(cross_entropy(logits, torch.tensor(example.answer), reduction="none"))
    losses = answer_losses(model, collate(encoded, model.padding))
    torch.testing.assert_close(losses, torch.cat(expected), rtol=1e-4, atol=1e-5)

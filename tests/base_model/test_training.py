"""Training lowers the loss, repeats exactly, and stops when it is told to."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from base_model.descent import TrainingResult
from base_model.evaluation import evaluate, features, losses
from base_model.examples import Example
from base_model.language_model import LanguageModel
from base_model.reference import ResolvedModel
from base_model.settings import TrainingConfig
from base_model.tokens import collate, encode
from base_model.training import answer_losses, train
from schemas.adapter import A_SUFFIX, B_SUFFIX, Adapter, LoraConfig

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
    found = answer_losses(model, collate(encoded, model.padding))
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-5)


def run(model: LanguageModel, start: Adapter, **options: object) -> TrainingResult:
    return train(model, start, EXAMPLES, TrainingConfig(**CONFIG.model_dump() | options), ignore)


def test_without_options_training_is_adamw_on_the_mean_loss_and_nothing_else(
    model: LanguageModel, lora: LoraConfig
) -> None:
    start = model.initial_adapter(lora, seed=1)
    config = TrainingConfig(steps=4, batch_size=3, learning_rate=0.01, proximal=0, representation_penalty=0)
    trained = train(model, start, EXAMPLES, config, ignore).adapter
    model.apply(start)
    factors = list(model.factors.values())
    optimizer = torch.optim.AdamW(factors, lr=0.01, weight_decay=0)
    random = np.random.default_rng(config.seed)
    for _ in range(4):
        batch = collate([model.encode(EXAMPLES[index]) for index in random.permutation(3)], model.padding)
        optimizer.zero_grad()
        answer_losses(model, batch).mean().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(factors, config.gradient_clip)
        optimizer.step()
    assert trained == model.read()


@pytest.mark.parametrize(("trained", "kept"), [("A", B_SUFFIX), ("B", A_SUFFIX)])
def test_a_factor_that_is_not_trained_keeps_every_bit(
    model: LanguageModel, lora: LoraConfig, trained: str, kept: str
) -> None:
    start = run(model, model.initial_adapter(lora, seed=1)).adapter  # B is no longer zero, so that A can learn
    end = run(model, start, trained_factors=trained)
    same = {name: np.array_equal(values, start.tensors()[name]) for name, values in end.adapter.tensors().items()}
    assert all(unchanged == name.endswith(kept) for name, unchanged in same.items())
    assert losses(model, end.adapter, EXAMPLES) < losses(model, start, EXAMPLES)


def test_an_abandoned_run_leaves_both_factors_able_to_learn(model: LanguageModel, lora: LoraConfig) -> None:
    start = model.initial_adapter(lora, seed=1)
    expected = run(model, start).adapter

    def stop(step: int, loss: float) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        train(model, start, EXAMPLES, TrainingConfig(trained_factors="B"), stop)
    assert run(model, start).adapter == expected


def test_a_larger_proximal_term_ends_nearer_to_the_start(model: LanguageModel, lora: LoraConfig) -> None:
    start = run(model, model.initial_adapter(lora, seed=1), steps=5).adapter
    moved = [(run(model, start, proximal=mu).adapter - start).norm for mu in (0, 1, 100)]
    assert moved[0] > moved[1] > moved[2]


def test_the_proximal_gradient_is_that_of_half_mu_times_the_squared_distance(
    model: LanguageModel, lora: LoraConfig
) -> None:
    """Two steps by hand, with the term in the loss."""
    start = model.initial_adapter(lora, seed=1)
    config = TrainingConfig(steps=2, batch_size=3, learning_rate=0.01, proximal=3)
    trained = train(model, start, EXAMPLES, config, ignore).adapter
    model.apply(start)
    factors = list(model.factors.values())
    before = [factor.detach().clone() for factor in factors]
    optimizer = torch.optim.AdamW(factors, lr=0.01, weight_decay=0)
    random = np.random.default_rng(config.seed)
    for _ in range(2):
        batch = collate([model.encode(EXAMPLES[index]) for index in random.permutation(3)], model.padding)
        distance = sum((factor - old).square().sum() for factor, old in zip(factors, before, strict=True))
        optimizer.zero_grad()
        (answer_losses(model, batch).mean() + 3 / 2 * distance).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(factors, config.gradient_clip)
        optimizer.step()
    np.testing.assert_allclose(trained.values, model.read().values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("last_layers", [None, 1])
def test_a_larger_representation_penalty_keeps_the_features_of_prompts_nearer(
    model: LanguageModel, lora: LoraConfig, last_layers: int | None
) -> None:
    lora = lora.model_copy(update={"last_layers": last_layers})
    start = run(model, model.initial_adapter(lora, seed=1), steps=5).adapter
    before = features(model, start, EXAMPLES)

    def moved(penalty: float) -> float:
        after = features(model, run(model, start, representation_penalty=penalty).adapter, EXAMPLES)
        return float(np.square(after - before).sum(axis=1).mean())

    free, held, held_hard = moved(0), moved(0.01), moved(1)
    assert free > held > held_hard


def test_penalties_are_not_counted_as_loss(model: LanguageModel, lora: LoraConfig) -> None:
    start = run(model, model.initial_adapter(lora, seed=1), steps=5).adapter
    plain = losses(model, start, EXAMPLES)
    for mu, penalty in ((9, 0), (0, 9)):
        first: list[float] = []
        config = TrainingConfig(steps=2, batch_size=3, proximal=mu, representation_penalty=penalty)
        end = train(model, start, EXAMPLES, config, lambda _, loss: first.append(loss))  # noqa: B023
        assert first[0] == pytest.approx(plain, rel=1e-5)
        assert end.last_loss < 2 * plain


def test_steps_too_small_for_bfloat16_still_move_the_factors(resolved: ResolvedModel, lora: LoraConfig) -> None:
    model = LanguageModel.load(resolved, dtype="bfloat16")
    start = run(model, model.initial_adapter(lora, seed=1)).adapter
    end = run(model, start, steps=1, learning_rate=1e-6).adapter
    moved = np.abs((end - start).values)
    assert 0 < moved.max() < 1.1e-6
    assert np.mean(moved > 0) > 0.9
    same_when_rounded = torch.tensor(start.values).bfloat16() == torch.tensor(end.values).bfloat16()
    assert same_when_rounded.float().mean() > 0.9


def test_training_in_bfloat16_learns_as_in_float32(
    model: LanguageModel, resolved: ResolvedModel, lora: LoraConfig
) -> None:
    rough = LanguageModel.load(resolved, dtype="bfloat16")
    start = model.initial_adapter(lora, seed=1)
    exact, rounded = run(model, start), run(rough, start)
    assert rounded.last_loss == pytest.approx(exact.last_loss, rel=0.05)
    assert rounded.last_loss < 0.8 * losses(rough, start, EXAMPLES)

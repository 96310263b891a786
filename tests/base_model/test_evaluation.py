"""Scores: the loss, the answers in order, and exact matches."""

from pathlib import Path

import numpy as np
import pytest
import torch

from base_model.evaluation import (
    ANSWER_BATCH,
    answers,
    evaluate,
    example_losses,
    features,
    losses,
    module_inputs,
)
from base_model.examples import Example
from base_model.language_model import BYTES_OF_A_LOGIT, LanguageModel
from base_model.reference import resolve
from base_model.settings import TrainingConfig
from base_model.training import train
from schemas.adapter import A_SUFFIX, Adapter, LoraConfig

EXAMPLES = tuple(
    Example(prompt=f"turn on the {room} lamp", completion=f'{{"area":"{room}"}}')
    for room in ("kitchen", "office", "den")
)


def ignore(done: int, total: float) -> None:
    """Nobody watches."""


def test_a_model_that_learned_the_answers_writes_them_exactly(model: LanguageModel, lora: LoraConfig) -> None:
    start = model.initial_adapter(lora, seed=1)
    before = evaluate(model, start, EXAMPLES, ignore)
    config = TrainingConfig(steps=60, batch_size=3, learning_rate=0.01)
    learned = train(model, start, EXAMPLES, config, ignore).adapter
    after = evaluate(model, learned, EXAMPLES, ignore)
    assert before.exact_match == 0
    assert after.answers == tuple(example.completion for example in EXAMPLES)
    assert after.exact_match == 1
    assert after.loss < before.loss


def test_answers_do_not_depend_on_which_other_prompts_share_the_batch(model: LanguageModel, lora: LoraConfig) -> None:
    adapter = model.initial_adapter(lora, seed=1)
    many = tuple(Example(prompt="lamp " * (1 + n % 7), completion='{"area":"den"}') for n in range(ANSWER_BATCH + 3))
    together = evaluate(model, adapter, many, ignore)
    assert together.answers == evaluate(model, adapter, many, ignore).answers
    for n in (0, 6, ANSWER_BATCH + 2):
        assert evaluate(model, adapter, many[n : n + 1], ignore).answers[0] == together.answers[n]


def test_a_bound_on_memory_makes_batches_smaller_and_changes_no_loss(tiny_model_dir: Path, lora: LoraConfig) -> None:
    resolved = resolve(str(tiny_model_dir), tiny_model_dir)
    free, bound = LanguageModel.load(resolved), LanguageModel.load(resolved, batch_mb=1)
    many = tuple(Example(prompt="lamp " * n, completion='{"area":"den"}') for n in range(1, 20))
    adapter = free.initial_adapter(lora, seed=1)
    lengths = [len(bound.encode(example)) for example in many]
    size = bound.batch_size(lengths, 1000)
    assert 1 < size < free.batch_size(lengths, 1000) == 1000
    assert size * max(lengths) * bound.network.config.vocab_size * BYTES_OF_A_LOGIT <= 1 << 20
    assert bound.batch_size([10**9], 8) == 1
    assert losses(bound, adapter, many) == pytest.approx(losses(free, adapter, many), rel=1e-6)


def test_progress_counts_every_example_for_loss_and_for_answers(model: LanguageModel, lora: LoraConfig) -> None:
    heard: list[tuple[int, int]] = []
    evaluate(model, model.initial_adapter(lora, 1), EXAMPLES, lambda done, total: heard.append((done, total)))
    assert heard == [(3, 6), (6, 6)]


def learned(model: LanguageModel, lora: LoraConfig, steps: int) -> Adapter:
    config = TrainingConfig(steps=steps, batch_size=3, learning_rate=0.01)
    return train(model, model.initial_adapter(lora, seed=1), EXAMPLES, config, ignore).adapter


def test_the_mean_loss_counts_answer_tokens_and_each_examples_own_loss_counts_its_own(
    model: LanguageModel, lora: LoraConfig
) -> None:
    adapter = learned(model, lora, steps=3)
    each = example_losses(model, adapter, EXAMPLES)
    tokens = [len(model.encode(example).answer) for example in EXAMPLES]
    assert len(set(tokens)) > 1
    assert losses(model, adapter, EXAMPLES) == pytest.approx(np.average(each, weights=tokens), rel=1e-6)
    assert losses(model, adapter, EXAMPLES) == evaluate(model, adapter, EXAMPLES, ignore).loss
    assert each == pytest.approx([losses(model, adapter, [example]) for example in EXAMPLES], rel=1e-5)


@pytest.mark.parametrize("steps", [1, 12, 18, 60])
def test_answers_are_what_plain_generation_writes(model: LanguageModel, lora: LoraConfig, steps: int) -> None:
    adapter = learned(model, lora, steps)
    written = answers(model, adapter, EXAMPLES)
    limit = max(len(model.encode(example).answer) for example in EXAMPLES) + 8
    for example, answer in zip(EXAMPLES, written, strict=True):
        prompt = torch.tensor([model.encode(example).prompt])
        tokens = model.network.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=limit,
            do_sample=False,
            pad_token_id=0,
        )[0, prompt.shape[1] :]
        assert answer == str(model.tokenizer.decode(tokens, skip_special_tokens=True)).strip()


def test_answers_as_expected_are_known_without_generating(model: LanguageModel, lora: LoraConfig) -> None:
    adapter = learned(model, lora, steps=60)
    runs: list[int] = []
    model.network.register_forward_pre_hook(lambda *_: runs.append(1))
    assert answers(model, adapter, EXAMPLES) == tuple(example.completion for example in EXAMPLES)
    assert len(runs) == 1


def test_text_after_an_end_of_text_in_the_expected_answer_is_not_the_models(
    model: LanguageModel, lora: LoraConfig
) -> None:
    example = Example(prompt="stop", completion="now<|end|>not this")
    config = TrainingConfig(steps=40, learning_rate=0.01)
    adapter = train(model, model.initial_adapter(lora, seed=1), [example], config, ignore).adapter
    assert losses(model, adapter, [example]) < 0.5
    assert answers(model, adapter, [example]) == ("now",)


def test_features_are_the_mean_of_the_prompts_last_hidden_states(model: LanguageModel, lora: LoraConfig) -> None:
    adapter = learned(model, lora, steps=3)
    found = features(model, adapter, EXAMPLES)
    assert found.shape == (3, 64)
    assert found.dtype == np.float32
    for example, row in zip(EXAMPLES, found, strict=True):
        prompt = torch.tensor([model.encode(example).prompt])
        with torch.no_grad():
            hidden = model.network(prompt, output_hidden_states=True).hidden_states[-1]
        np.testing.assert_allclose(row, hidden[0].mean(dim=0).numpy(), rtol=1e-4, atol=1e-5)


def test_module_inputs_are_the_real_tokens_activations(model: LanguageModel) -> None:
    lora = LoraConfig(rank=2, target_modules=("q_proj", "v_proj", "down_proj"), last_layers=1)
    adapter = model.initial_adapter(lora, seed=1)
    found = module_inputs(model, adapter, EXAMPLES)
    assert set(found) == {name.removesuffix(A_SUFFIX) for name, _ in adapter.layout.tensors if name.endswith(A_SUFFIX)}
    tokens = sum(len(e.prompt) + len(e.answer) - 1 for e in map(model.encode, EXAMPLES))
    shapes = {name.rsplit(".", 1)[-1]: values.shape for name, values in found.items()}
    assert shapes == {"q_proj": (tokens, 64), "v_proj": (tokens, 64), "down_proj": (tokens, 128)}
    assert {values.dtype for values in found.values()} == {np.dtype(np.float32)}

    only = module_inputs(model, adapter, EXAMPLES[:1])
    encoded = model.encode(EXAMPLES[0])
    with torch.no_grad():
        states = model.network(torch.tensor([encoded.prompt + encoded.answer[:-1]]), output_hidden_states=True)
        layer = next(module for name, module in model.network.named_modules() if name.endswith("layers.1"))
        expected = layer.input_layernorm(states.hidden_states[1][0]).numpy()
    for name, values in only.items():
        if name.endswith("q_proj"):
            np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)

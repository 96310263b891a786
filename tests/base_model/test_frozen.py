"""Layers without factors run once for each example, and nothing else changes."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, Gemma2Config, Gemma2ForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from base_model.descent import TrainingResult
from base_model.evaluation import example_losses
from base_model.examples import Example
from base_model.frozen import StateCache, decoder_layers, first_adapted_layer, resuming
from base_model.language_model import LanguageModel
from base_model.reference import ResolvedModel, resolve
from base_model.settings import TrainingConfig
from base_model.training import train
from schemas.adapter import Adapter, LoraConfig

EXAMPLES = tuple(
    Example(prompt=f"turn on the lamp in the {room}", completion=f'{{"area":"{room}"}}')
    for room in ("kitchen", "office", "den", "attic of the old house")
)
LAST = LoraConfig(rank=4, alpha=8, target_modules=("q_proj", "v_proj", "down_proj"), last_layers=1)
CONFIG = TrainingConfig(steps=6, batch_size=3, learning_rate=0.01, seed=1)
TINY: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.2,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "eos_token_id": 0,
}


@pytest.fixture
def uncached(resolved: ResolvedModel) -> LanguageModel:
    return LanguageModel.load(resolved, frozen_cache_mb=0)


def trained(model: LanguageModel, examples: tuple[Example, ...] = EXAMPLES) -> TrainingResult:
    return train(model, model.initial_adapter(LAST, seed=1), examples, CONFIG, lambda step, loss: None)


def count_calls(module: Any) -> Callable[[], int]:
    calls: list[int] = []
    module.register_forward_pre_hook(lambda *_: calls.append(1))
    return lambda: len(calls)


def test_training_with_cached_states_agrees_with_training_the_whole_network(
    model: LanguageModel, uncached: LanguageModel
) -> None:
    cached, whole = trained(model), trained(uncached)
    assert len(model.frozen) == len(EXAMPLES)
    assert len(uncached.frozen) == 0
    assert cached.mean_loss == pytest.approx(whole.mean_loss, rel=1e-5)
    torch.testing.assert_close(
        torch.tensor(cached.adapter.values), torch.tensor(whole.adapter.values), rtol=1e-3, atol=1e-5
    )


def test_losses_from_cached_states_agree_with_the_whole_networks(model: LanguageModel, uncached: LanguageModel) -> None:
    adapter = trained(uncached).adapter
    expected = example_losses(uncached, adapter, EXAMPLES)
    assert example_losses(model, adapter, EXAMPLES) == pytest.approx(expected, rel=1e-5)
    assert example_losses(model, adapter, EXAMPLES) == pytest.approx(expected, rel=1e-5)


def test_the_same_job_gives_the_same_bits_whether_states_were_kept_or_not(
    model: LanguageModel, resolved: ResolvedModel
) -> None:
    first = trained(model).adapter
    assert trained(model).adapter == first
    forgetful = LanguageModel.load(resolved)
    forgetful.frozen = StateCache(limit=1)  # in use, and too small to keep anything
    example_losses(forgetful, first, EXAMPLES[2:])
    assert trained(forgetful).adapter == first
    assert len(forgetful.frozen) == 0


def test_states_made_while_evaluating_serve_training(model: LanguageModel) -> None:
    start = model.initial_adapter(LAST, seed=1)
    example_losses(model, start, EXAMPLES)
    kept = model.frozen.used
    assert trained(model).adapter != start
    assert model.frozen.used == kept


def test_the_lower_layers_see_each_example_once(model: LanguageModel) -> None:
    trained(model, EXAMPLES[:1])  # tries out what this network allows
    layers = decoder_layers(model.network, model.adapted)
    lower, upper = count_calls(layers[0].mlp), count_calls(layers[1].mlp)
    trained(model)
    assert lower() == len(EXAMPLES) - 1
    assert upper() == CONFIG.steps


def test_factors_in_the_lowest_layer_leave_nothing_to_keep(model: LanguageModel, lora: LoraConfig) -> None:
    assert first_adapted_layer(model.layout(lora)) == 0
    train(model, model.initial_adapter(lora, seed=1), EXAMPLES, CONFIG, lambda step, loss: None)
    assert len(model.frozen) == 0


def test_an_error_while_layers_are_skipped_leaves_the_network_whole(model: LanguageModel) -> None:
    tokens = torch.tensor([[5, 9, 17, 33]])
    model.apply(model.initial_adapter(LAST, seed=1))
    before = model.network(input_ids=tokens).logits
    layers = decoder_layers(model.network, model.adapted)
    with pytest.raises(RuntimeError), resuming(layers, 1, torch.zeros(1, 4, 3)):
        model.network(input_ids=tokens)
    assert torch.equal(model.network(input_ids=tokens).logits, before)


def test_the_cache_lets_go_of_what_was_unused_for_longest() -> None:
    cache = StateCache(limit=8)
    one, two, three = ((24, bytes([k])) for k in (1, 2, 3))
    for key in (one, two, one, three):
        cache.get(key, lambda: torch.zeros(1))
    assert (len(cache), cache.used) == (2, 8)
    assert cache.get(one, lambda: torch.ones(1)).item() == 0
    assert cache.get(two, lambda: torch.ones(1)).item() == 1


def test_states_larger_than_the_cache_are_made_and_not_kept() -> None:
    cache = StateCache(limit=8)
    kept = (24, b"kept")
    cache.get(kept, lambda: torch.zeros(2))
    assert len(cache.get((24, b"large"), lambda: torch.zeros(3))) == 3
    assert (len(cache), cache.used) == (1, 8)


def test_a_network_whose_layers_talk_past_each_other_is_left_whole(
    model: LanguageModel, uncached: LanguageModel, caplog: pytest.LogCaptureFixture
) -> None:
    for one in (model, uncached):
        let_the_second_layer_see_what_the_first_does(one)
    with caplog.at_level(logging.WARNING):
        assert trained(model).adapter == trained(uncached).adapter
    assert len(model.frozen) == 0
    assert [record.message[:56] for record in caplog.records] == [
        "this architecture does without resuming at layer 1, whic"
    ]


def let_the_second_layer_see_what_the_first_does(model: LanguageModel) -> None:
    model.apply(model.initial_adapter(LAST, seed=1))
    first, second = decoder_layers(model.network, model.adapted)
    seen: list[torch.Tensor] = []
    first.mlp.register_forward_hook(lambda _, __, output: seen.append(output))
    second.register_forward_pre_hook(lambda _, inputs: (inputs[0] + seen[-1],))


@pytest.mark.parametrize(
    "network",
    [
        # scales what it embeds, sees four tokens back in every other layer, squeezes its logits
        pytest.param(lambda: Gemma2ForCausalLM(Gemma2Config(**TINY, sliding_window=4)), id="gemma2"),
        pytest.param(lambda: Qwen3ForCausalLM(Qwen3Config(**TINY)), id="qwen3"),
    ],
)
@pytest.mark.parametrize("last_layers", [1, 2, 3])
def test_other_architectures_resume_too(
    network: Callable[[], PreTrainedModel],
    last_layers: int,
    tiny_model_dir: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network().save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / "model")
    resolved = resolve(str(tmp_path / "model"), tmp_path / "cache")
    cached, whole = LanguageModel.load(resolved), LanguageModel.load(resolved, frozen_cache_mb=0)
    start: Adapter = whole.initial_adapter(LAST.model_copy(update={"last_layers": last_layers}), seed=1)
    adapter = train(whole, start, EXAMPLES, CONFIG, lambda step, loss: None).adapter
    assert example_losses(cached, adapter, EXAMPLES) == pytest.approx(
        example_losses(whole, adapter, EXAMPLES), rel=1e-4
    )
    assert len(cached.frozen) == len(EXAMPLES)
    assert not caplog.records

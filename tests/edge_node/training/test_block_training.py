"""Training on blocks beside base_model/training.py on the same weights in float32.

Tolerances: losses within 1e-5 of each other, deltas within 1 % of their length, both in float32. The sums are taken in
another order, and Adam's first steps have the length of the learning rate whatever the gradient, so a parameter whose
gradient is nearly zero may go the other way.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from base_model.descent import TrainingResult
from base_model.examples import Example
from base_model.language_model import LanguageModel
from base_model.layout import initial_adapter, layout_of
from base_model.reference import ResolvedModel, resolve
from base_model.settings import TrainingConfig
from base_model.tokens import collate
from base_model.training import answer_losses, train
from base_model.wheel import BaseModelError
from edge_node.serving.export import export
from edge_node.serving.session import Session
from edge_node.training import block_model, block_training
from edge_node.training.block_model import BlockModel
from edge_node.training.block_training import train_blocks
from schemas.adapter import Adapter, LoraConfig

EVERY_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EXAMPLES = (
    Example(prompt="turn on the desk lamp in the kitchen", completion='{"intent":"TurnOn","area":"kitchen"}'),
    Example(prompt="set the volume to 20 percent", completion='{"intent":"SetVolume","volume_level":20}'),
    Example(prompt="turn off the lights", completion='{"intent":"TurnOff","domain":"light"}'),
    Example(prompt="office", completion="{}"),
)
LOSS_TOLERANCE, DELTA_TOLERANCE = 1e-5, 0.01


def nothing(step: int, loss: float) -> None:
    """What is done after a step."""


@pytest.fixture(scope="module")
def dense(quantised: ResolvedModel) -> LanguageModel:
    return LanguageModel.load(quantised)


@pytest.fixture(scope="module")
def blocks(quantised: ResolvedModel) -> BlockModel:
    return BlockModel(Path(quantised.name), quantised.path, torch.float32)


def start_of(resolved: ResolvedModel, **lora: Any) -> Adapter:
    """An adapter that has learnt something: with B zero, A would have no gradient."""
    layout = layout_of(resolved, LoraConfig(**{"rank": 2, "alpha": 8, "target_modules": EVERY_LINEAR} | lora))
    noise = np.random.default_rng(3).normal(0, 0.05, layout.size).astype(np.float32)
    return initial_adapter(layout, seed=1) + Adapter(layout, noise)


def both(
    dense: LanguageModel, blocks: BlockModel, start: Adapter, **options: Any
) -> tuple[TrainingResult, TrainingResult]:
    config = TrainingConfig(**{"steps": 3, "batch_size": 3, "learning_rate": 0.01} | options)
    encoded = [dense.encode(example) for example in EXAMPLES]
    return train(dense, start, EXAMPLES, config, nothing), train_blocks(blocks, start, encoded, config, nothing)


def difference(one: Adapter, other: Adapter, start: Adapter) -> float:
    """How far apart two trained adapters are, as a share of how far the first has come."""
    return (one - other).norm / (one - start).norm


@pytest.mark.parametrize(
    ("lora", "options"),
    [
        ({}, {}),
        ({"target_modules": ("q_proj", "v_proj")}, {}),
        ({"last_layers": 1}, {}),
        ({"target_modules": ("down_proj",), "last_layers": 1}, {"trained_factors": "B"}),
        ({}, {"trained_factors": "A"}),
        ({}, {"proximal": 0.5}),
        ({}, {"representation_penalty": 0.05}),
        ({}, {"gradient_clip": 0.01}),
    ],
)
def test_blocks_learn_what_their_dense_weights_learn(
    dense: LanguageModel, blocks: BlockModel, quantised: ResolvedModel, lora: Any, options: Any
) -> None:
    start = start_of(quantised, **lora)
    usual, ours = both(dense, blocks, start, **options)
    assert ours.mean_loss == pytest.approx(usual.mean_loss, rel=LOSS_TOLERANCE)
    assert ours.last_loss == pytest.approx(usual.last_loss, rel=LOSS_TOLERANCE)
    assert difference(usual.adapter, ours.adapter, start) < DELTA_TOLERANCE
    assert (ours.steps, ours.examples_seen) == (usual.steps, usual.examples_seen)


def test_the_same_job_gives_the_same_bits(blocks: BlockModel, dense: LanguageModel, quantised: ResolvedModel) -> None:
    encoded, config = [dense.encode(example) for example in EXAMPLES], TrainingConfig(steps=2, batch_size=2)
    start = start_of(quantised)
    assert train_blocks(blocks, start, encoded, config, nothing) == train_blocks(
        blocks, start, encoded, config, nothing
    )


def test_portions_change_what_is_in_memory_and_not_what_is_learnt(
    dense: LanguageModel, blocks: BlockModel, quantised: ResolvedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = start_of(quantised)
    monkeypatch.setattr(block_training, "PORTION", 30)  # one example at a time
    monkeypatch.setattr(block_model, "LOGIT_ROWS", 2)
    monkeypatch.setattr(block_model, "VOCABULARY_ROWS", 100)
    usual, ours = both(dense, blocks, start, representation_penalty=0.05)
    assert ours.mean_loss == pytest.approx(usual.mean_loss, rel=LOSS_TOLERANCE)
    assert difference(usual.adapter, ours.adapter, start) < DELTA_TOLERANCE


def test_bfloat16_activations_go_the_same_way(dense: LanguageModel, quantised: ResolvedModel) -> None:
    start = start_of(quantised)
    blocks = BlockModel(Path(quantised.name), quantised.path, torch.bfloat16)
    usual, ours = both(dense, blocks, start)
    assert ours.mean_loss == pytest.approx(usual.mean_loss, rel=0.02)
    assert (usual.adapter - start).cosine(ours.adapter - start) > 0.9


def test_the_loss_of_what_is_trained_is_the_loss_of_what_is_served(
    dense: LanguageModel, blocks: BlockModel, quantised: ResolvedModel, tmp_path: Path
) -> None:
    blocks.apply(Adapter.zeros(start_of(quantised).layout))
    batch = collate([dense.encode(example) for example in EXAMPLES], dense.padding)
    trained = blocks.losses(batch).mean().item()
    session, served = Session(export(quantised, tmp_path, "q41x")), list[float]()
    for encoded in batch.examples:
        tokens = (encoded.prompt + encoded.answer)[:-1]
        rows = range(len(encoded.prompt) - 1, len(tokens))
        logits = session.begin(len(tokens)).read(tokens, rows)
        shares = torch.from_numpy(logits).double().log_softmax(dim=-1)
        served += [-shares[row, token].item() for row, token in enumerate(encoded.answer)]
    assert trained == pytest.approx(np.mean(served), abs=0.01)  # the served one rounds activations to 8 bits


def test_long_examples_take_the_fused_attention_to_the_same_loss(
    dense: LanguageModel, blocks: BlockModel, quantised: ResolvedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = start_of(quantised)
    usual, _ = both(dense, blocks, start)
    monkeypatch.setattr("edge_node.training.block_layer.SHORT", 4)
    _, fused = both(dense, blocks, start)
    assert fused.mean_loss == pytest.approx(usual.mean_loss, rel=LOSS_TOLERANCE)


def test_an_architecture_with_biases_and_rows_in_plain_order_learns_alike(
    tiny_model_dir: Path, write_gguf: Callable[..., None], tmp_path: Path
) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path / "qwen2"
    shutil.copytree(tiny_model_dir, folder)
    (folder / "model.safetensors").unlink()
    llama = json.loads((folder / "config.json").read_text())
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = Qwen2Config(
        **{name: llama[name] for name in sizes}, num_key_value_heads=2, tie_word_embeddings=True, initializer_range=0.2
    )
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = Qwen2ForCausalLM(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | {"head_dim": 16}))
    gguf = tmp_path / "qwen2.gguf"
    write_gguf(gguf, folder, "qwen2")
    resolved = resolve(str(gguf), tmp_path / "cache")
    start = start_of(resolved)
    usual, ours = both(LanguageModel.load(resolved), BlockModel(gguf, resolved.path, torch.float32), start)
    assert ours.mean_loss == pytest.approx(usual.mean_loss, rel=LOSS_TOLERANCE)
    assert difference(usual.adapter, ours.adapter, start) < DELTA_TOLERANCE


def test_a_file_without_some_tensor_is_refused_by_its_name(quantised: ResolvedModel, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(quantised.path, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(BaseModelError, match=r"blk\.2\.attn_q\.weight is missing"):
        BlockModel(Path(quantised.name), other, torch.float32)


def test_factors_of_other_modules_are_a_bad_call(blocks: BlockModel, quantised: ResolvedModel) -> None:
    layout = start_of(quantised).layout
    odd = layout.model_copy(update={"tensors": (("base_model.model.x.lora_A.weight", (2, 2)),)})
    with pytest.raises(ValueError, match="no linear module"):
        blocks.apply(Adapter.zeros(odd))


def test_each_answer_token_has_the_loss_that_dense_weights_give_it(
    dense: LanguageModel, blocks: BlockModel, quantised: ResolvedModel
) -> None:
    start = start_of(quantised)
    dense.apply(start)
    blocks.apply(start)
    batch = collate([dense.encode(example) for example in EXAMPLES], dense.padding)
    with torch.no_grad():
        torch.testing.assert_close(blocks.losses(batch), answer_losses(dense, batch), rtol=1e-4, atol=1e-5)

"""The served graph computes what the trained model computes, and is made once, whole or not at all."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from base_model.architecture import read_architecture
from base_model.language_model import LanguageModel
from base_model.reference import resolve
from base_model.wheel import BaseModelError
from edge_node.serving.export import export, prepack, usual_precision
from edge_node.serving.inference import ServedVersion, begin
from edge_node.serving.session import Session
from edge_node.serving.weights import dequantised, gguf_weights

TOKENS = [5, 17, 300, 42, 8, 8, 120, 77, 3, 250]
SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}


def served_logits(session, slot=None, pieces=(10,)):
    """Logits of every position, with the tokens going in piece by piece."""
    conversation, rows, start = begin(session, slot, sum(pieces)), [], 0
    for size in pieces:
        rows.append(conversation.read(TOKENS[start : start + size], range(size)))
        start += size
    return np.concatenate(rows)


def torch_logits(network, tokens=TOKENS):
    with torch.inference_mode():
        return network(torch.tensor([tokens])).logits[0].numpy()


@pytest.mark.parametrize(
    "lora", [{"rank": 1}, {"rank": 16, "alpha": 16}, {"target_modules": ("q_proj", "v_proj")}, {"last_layers": 1}]
)
def test_one_graph_serves_any_rank_and_modules_as_peft_does(resolved, inference, make_adapter, lora):
    adapter = make_adapter(1, **lora)
    model = LanguageModel.load(resolved)
    model.apply(adapter)
    slot = inference.prepare(adapter, ServedVersion(1, 1), adapter.digest)
    np.testing.assert_allclose(served_logits(inference.session, slot), torch_logits(model.network), rtol=0, atol=1e-4)


def test_without_an_adapter_the_base_model_answers(resolved, session):
    expected = torch_logits(LanguageModel.load(resolved).network)
    np.testing.assert_allclose(served_logits(session), expected, rtol=0, atol=1e-4)


def test_a_prompt_in_pieces_gives_the_logits_of_the_whole(session):
    whole = served_logits(session)
    np.testing.assert_allclose(served_logits(session, pieces=(4, 1, 5)), whole, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "network",
    [Qwen2ForCausalLM(Qwen2Config(**SIZES)), LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False))],
    ids=["biases", "an output layer of its own"],
)
def test_relatives_of_llama_are_served_too(tmp_path, network):
    torch.nn.init.normal_(network.model.layers[0].self_attn.q_proj.weight)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    network.save_pretrained(tmp_path / "model")
    session = Session(export(resolve(str(tmp_path / "model"), tmp_path), tmp_path, "fp32"))
    tokens = [token % 96 for token in TOKENS]
    logits = session.begin(len(tokens)).read(tokens, range(len(tokens)))
    np.testing.assert_allclose(logits, torch_logits(network, tokens), rtol=0, atol=1e-3)


def test_weights_in_bfloat16_are_served_as_the_numbers_they_are(tmp_path, tiny_model_dir):
    network = LlamaForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.bfloat16)
    network.save_pretrained(tmp_path / "model")
    session = Session(export(resolve(str(tmp_path / "model"), tmp_path), tmp_path, "fp32"))
    np.testing.assert_allclose(served_logits(session), torch_logits(network.float()), rtol=0, atol=1e-4)


def test_the_blocks_of_a_gguf_file_are_exactly_the_weights_that_training_starts_from(quantised):
    read = gguf_weights(Path(quantised.name), read_architecture(quantised.path))
    for name, values in load_file(quantised.path / "model.safetensors").items():
        np.testing.assert_array_equal(np.squeeze(dequantised(read(name))), values, err_msg=name)


def test_only_a_llama_s_gguf_file_has_its_rotary_halves_interleaved(tiny_model_dir, write_gguf, tmp_path):
    read = {}
    for architecture in ("llama", "qwen2"):
        write_gguf(tmp_path / architecture, tiny_model_dir, architecture)
        read[architecture] = gguf_weights(tmp_path / architecture, read_architecture(tiny_model_dir))
    for name in load_file(tiny_model_dir / "model.safetensors"):
        np.testing.assert_array_equal(dequantised(read["qwen2"](name)), dequantised(read["llama"](name)), err_msg=name)


def test_a_quantised_model_answers_as_the_trained_one_but_for_eight_bit_activations(quantised, cache):
    assert usual_precision(quantised) == "q41x"
    session = Session(export(quantised, cache, "q41x"))
    served, expected = served_logits(session), torch_logits(LanguageModel.load(quantised).network)
    assert np.corrcoef(served.ravel(), expected.ravel())[0, 1] > 0.999
    in_float32 = served_logits(Session(export(quantised, cache, "fp32")))
    np.testing.assert_allclose(in_float32, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("precision", ["q41x", "fp32"])
def test_the_prepacked_copy_gives_the_same_logits_bit_for_bit(quantised, cache, precision):
    portable = export(quantised, cache, precision)
    own = prepack(portable, cache)
    assert own.graph != portable.graph
    assert Session(own).factor_shapes == Session(portable).factor_shapes
    np.testing.assert_array_equal(served_logits(Session(own)), served_logits(Session(portable)))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"model_type": "gpt2"}, "its architecture is gpt2"),
        ({"hidden_act": "gelu"}, "its activation is gelu"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "its rotary positions are scaled"),
        ({"model_type": "mistral", "sliding_window": 128}, "a sliding window only"),
    ],
)
def test_a_model_that_is_not_like_llama_is_refused_with_what_to_do(tmp_path, tiny_model_dir, changed, reason):
    config = json.loads((tiny_model_dir / "config.json").read_text()) | changed
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BaseModelError, match=f"{reason}.*without --http"):
        read_architecture(tmp_path)


def test_blocks_that_are_gone_are_missed_with_what_to_do(resolved, cache):
    with pytest.raises(BaseModelError, match="set the precision fp32"):
        export(resolved, cache, "q41x")


def test_a_damaged_graph_is_made_again(resolved, tmp_path):
    said = []
    graph = export(resolved, tmp_path, "fp32", lambda stage, done, total: said.append(stage)).graph
    export(resolved, tmp_path, "fp32", lambda stage, done, total: said.append(stage))
    assert said == ["export"]
    whole = graph.read_bytes()
    graph.write_bytes(whole[: len(whole) // 2])
    export(resolved, tmp_path, "fp32", lambda stage, done, total: said.append(stage))
    assert said == ["export", "export"]
    assert graph.read_bytes() == whole


def test_of_several_that_start_at_once_one_makes_the_graph(resolved, tmp_path):
    said, made = [], []

    def start():
        made.append(export(resolved, tmp_path, "fp32", lambda stage, done, total: said.append(stage)))

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [stage for stage in said if stage != "wait"] == ["export"]
    assert len(made) == 3


def test_what_a_killed_export_left_is_not_used(resolved, tmp_path):
    half = tmp_path / "work" / f"{resolved.digest}-fp32-1"
    half.mkdir(parents=True)
    (half / "model.onnx").write_bytes(b"half")
    Session(export(resolved, tmp_path, "fp32"))
    assert not half.exists()

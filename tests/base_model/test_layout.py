"""The layout read from file headers is the one PEFT makes."""

import numpy as np
import pytest
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model, get_peft_model_state_dict
from transformers import LlamaForCausalLM

from base_model.layout import initial_adapter, layout_of
from base_model.reference import ResolvedModel
from base_model.wheel import BaseModelError
from schemas.adapter import LoraConfig


@pytest.mark.parametrize("last_layers", [None, 1])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_the_layout_from_file_headers_is_what_peft_would_save(resolved: ResolvedModel, last_layers: int | None) -> None:
    lora = LoraConfig(rank=3, target_modules=("k_proj", "down_proj"), last_layers=last_layers)
    layers = None if last_layers is None else [1]
    peft_lora = PeftLoraConfig(r=3, target_modules=["k_proj", "down_proj"], layers_to_transform=layers)
    network = get_peft_model(LlamaForCausalLM.from_pretrained(resolved.path), peft_lora)
    saved = get_peft_model_state_dict(network, save_embedding_layers=False)
    assert dict(layout_of(resolved, lora).tensors) == {name: tuple(tensor.shape) for name, tensor in saved.items()}


def test_a_module_the_model_lacks_is_refused_with_the_names_it_has(resolved: ResolvedModel) -> None:
    with pytest.raises(BaseModelError, match=r"no module c_attn; it has .*q_proj"):
        layout_of(resolved, LoraConfig(target_modules=("q_proj", "c_attn")))


def test_more_last_layers_than_there_are_is_refused(resolved: ResolvedModel) -> None:
    with pytest.raises(BaseModelError, match="has only 2 layers"):
        layout_of(resolved, LoraConfig(last_layers=3))


def test_the_initial_adapter_depends_on_the_seed_alone_and_changes_nothing_yet(resolved: ResolvedModel) -> None:
    layout = layout_of(resolved, LoraConfig(rank=4))
    first, again, other = (initial_adapter(layout, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    for name, values in first.tensors().items():
        bound = 1 / np.sqrt(values.shape[1]) if ".lora_A." in name else 0
        assert np.abs(values).max() <= bound

"""The base model in memory with one LoRA adapter on it: load, apply an adapter, read it back.

Weights stay memory-mapped and read-only, so that several processes on one machine share them. It does not know
training, evaluation, or the network.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from accelerate import init_empty_weights
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from base_model.layout import initial_adapter, layout_of
from base_model.peft_folder import peft_config
from base_model.reference import ResolvedModel
from base_model.wheel import BaseModelError
from schemas.adapter import Adapter, Layout, LoraConfig

Dtype = Literal["float32", "bfloat16"]


@dataclass
class LanguageModel:
    """A loaded base model and the adapter that is on it now."""

    resolved: ResolvedModel
    network: Any  # PreTrainedModel or PeftModel: neither is typed as callable with what models take
    tokenizer: PreTrainedTokenizerBase
    adapted: Layout | None = None

    @classmethod
    def load(cls, resolved: ResolvedModel, dtype: Dtype = "float32", threads: int = 1) -> Self:
        """Map the weights into memory and read the tokenizer; PyTorch uses `threads` threads from now on.

        With the dtype of the file the weights are shared with other processes; another dtype makes a private copy.
        """
        torch.set_num_threads(threads)
        tokenizer = AutoTokenizer.from_pretrained(resolved.path, local_files_only=True)
        return cls(resolved, _mapped_network(resolved, getattr(torch, dtype)), tokenizer)

    def layout(self, lora: LoraConfig) -> Layout:
        """Names and shapes of the factors this configuration adds to the model."""
        return layout_of(self.resolved, lora)

    def initial_adapter(self, lora: LoraConfig, seed: int) -> Adapter:
        """The adapter training starts from: the model answers as without it."""
        return initial_adapter(self.layout(lora), seed)

    def apply(self, adapter: Adapter) -> None:
        """Put this adapter on the model in place of the one before; any rank, modules and layers."""
        if self.adapted != adapter.layout:
            self._attach(adapter.layout)
        tensors = {name: torch.from_numpy(values.copy()) for name, values in adapter.tensors().items()}
        set_peft_model_state_dict(self.network, tensors)

    def read(self) -> Adapter:
        """The adapter that is on the model now, as a float32 value of its own."""
        if self.adapted is None:
            raise ValueError("no adapter was applied yet")
        return Adapter.from_tensors(self.adapted, {name: t.numpy() for name, t in _factors(self.network).items()})

    @property
    def padding(self) -> int:
        """The token id that fills batches; masked out everywhere, so end-of-text serves where there is no other."""
        padding = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if padding is None else padding)

    def parameters(self) -> list[torch.nn.Parameter]:
        """The trainable factors, and nothing of the base model."""
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    @contextmanager
    def logits_only_at(self, chosen: torch.Tensor) -> Iterator[None]:
        """Make the model compute logits of the `chosen` hidden states alone, as (1, chosen, vocabulary).

        Half the work of a small model is the product with its vocabulary. Doing this before the output layer, inside
        the model, keeps whatever the model does to its logits afterwards.
        """
        head = self.network.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][chosen].unsqueeze(0),))
        try:
            yield
        finally:
            hook.remove()

    def _attach(self, layout: Layout) -> None:
        if isinstance(self.network, PeftModel):
            self.network = self.network.unload()
            self.adapted = None
        config = peft_config(layout, self.network.name_or_path) | {"inference_mode": False}
        with warnings.catch_warnings():
            # PEFT asks for an attribute that transformers has renamed; nothing a user can act on
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
            self.network = get_peft_model(self.network, PeftLoraConfig(**config))
        self.network.eval()
        shapes = {name: tuple(tensor.shape) for name, tensor in _factors(self.network).items()}
        if shapes != dict(layout.tensors):
            raise BaseModelError(
                f"PEFT adds other factors to {self.resolved.name} than its weight files announce; "
                "this architecture is not supported"
            )
        self.adapted = layout


def _factors(network: PeftModel) -> dict[str, torch.Tensor]:
    return dict(get_peft_model_state_dict(network, save_embedding_layers=False))


def _mapped_network(resolved: ResolvedModel, dtype: torch.dtype) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(resolved.path, local_files_only=True)
    # buffers are computed and small, so they are real; parameters are empty until the mapped ones take their place
    with init_empty_weights(include_buffers=False):
        network: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    state: dict[str, torch.Tensor] = {}
    for path in sorted(resolved.path.glob("*.safetensors")):
        state |= load_file(path)
    network.load_state_dict({name: tensor.to(dtype) for name, tensor in state.items()}, strict=False, assign=True)
    network.tie_weights()
    empty = [name for name, parameter in network.named_parameters() if parameter.is_meta]
    if empty:
        raise BaseModelError(f"the weight files of {resolved.name} lack {len(empty)} tensors, first: {empty[0]}")
    network.requires_grad_(False)
    network.train(False)
    return network

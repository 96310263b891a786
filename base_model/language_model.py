"""The base model in memory with one LoRA adapter on it: load, apply an adapter, read it back.

Weights stay memory-mapped and read-only, so that several processes on one machine share them. It does not know
training, evaluation, or the network.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Literal, Self

import torch
from accelerate import init_empty_weights
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from base_model.attention import SHORT_ROWS
from base_model.examples import Example
from base_model.frozen import StateCache
from base_model.layout import initial_adapter, layout_of
from base_model.peft_folder import peft_config
from base_model.reference import ResolvedModel
from base_model.tokens import Encoded, encode
from base_model.wheel import BaseModelError
from schemas.adapter import A_SUFFIX, Adapter, Layout, LoraConfig

Dtype = Literal["float32", "bfloat16"]
Device = Literal["cpu", "cuda"]

BYTES_OF_A_LOGIT = 12  # in float32, with two copies on the way to a loss
MOST_ENCODED = 10_000  # examples whose tokens are kept: some 10 MB of short ones


@dataclass
class LanguageModel:
    """A loaded base model and the adapter that is on it now."""

    resolved: ResolvedModel
    network: Any  # PreTrainedModel or PeftModel: neither is typed as callable with what models take
    tokenizer: PreTrainedTokenizerBase
    frozen: StateCache  # what the layers below the adapted ones made of examples
    batch_mb: int | None = None  # the most that a batch without gradients may take, in MiB; no bound when unset
    adapted: Layout | None = None
    factors: dict[str, torch.nn.Parameter] = field(default_factory=dict)  # the layout's tensors, float32
    shortcuts: dict[str, bool] = field(default_factory=dict)  # name -> whether this network allows it
    encode: Callable[[Example], Encoded] = field(init=False)
    _attached: dict[str, tuple[str, dict[str, torch.nn.Parameter]]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        # jobs see the same examples again and again
        self.encode = lru_cache(maxsize=MOST_ENCODED)(partial(encode, self.tokenizer))

    @classmethod
    def load(
        cls,
        resolved: ResolvedModel,
        dtype: Dtype = "float32",
        threads: int = 1,
        device: Device = "cpu",
        frozen_cache_mb: int = 256,
        batch_mb: int | None = None,
    ) -> Self:
        """Map the weights into memory and read the tokenizer; PyTorch uses `threads` threads from now on.

        With the dtype of the file the weights are shared with other processes; another dtype makes a private copy.
        Factors are float32 always. Up to `frozen_cache_mb` MiB keep what the layers below the adapted ones make of
        examples, so that it is computed once; 0 computes it each time. `batch_mb` bounds what is measured at once.
        """
        torch.set_num_threads(threads)
        tokenizer = AutoTokenizer.from_pretrained(resolved.path, local_files_only=True)
        network: Any = _mapped_network(resolved, getattr(torch, dtype))
        if device == "cpu" and dtype == "bfloat16" and network.config._attn_implementation == "sdpa":
            network.set_attn_implementation(SHORT_ROWS)
        return cls(resolved, network.to(device), tokenizer, StateCache(frozen_cache_mb << 20), batch_mb)

    def layout(self, lora: LoraConfig) -> Layout:
        """Names and shapes of the factors this configuration adds to the model."""
        return layout_of(self.resolved, lora)

    def initial_adapter(self, lora: LoraConfig, seed: int) -> Adapter:
        """The adapter training starts from: the model answers as without it."""
        return initial_adapter(self.layout(lora), seed)

    def batch_size(self, lengths: Sequence[int], most: int) -> int:
        """How many examples of these lengths, in tokens, to measure at once: at least one, at most `most`.

        What counts is logits over the whole vocabulary, as if every token had some.
        """
        if self.batch_mb is None or not lengths:
            return most
        largest = max(lengths) * int(self.network.config.vocab_size) * BYTES_OF_A_LOGIT
        return max(1, min(most, (self.batch_mb << 20) // largest))

    def apply(self, adapter: Adapter) -> None:
        """Put this adapter on the model in place of the one before; any rank, modules and layers."""
        if self.adapted != adapter.layout:
            self._attach(adapter.layout)
        with torch.no_grad():
            for name, values in adapter.tensors().items():
                self.factors[name].copy_(torch.tensor(values))

    def read(self) -> Adapter:
        """The adapter that is on the model now, as a float32 value of its own."""
        if self.adapted is None:
            raise ValueError("no adapter was applied yet")
        tensors = {name: factor.detach().cpu().numpy() for name, factor in self.factors.items()}
        return Adapter.from_tensors(self.adapted, tensors)

    @property
    def device(self) -> torch.device:
        """Where the weights are, and batches must be."""
        device: torch.device = self.network.device
        return device

    @property
    def padding(self) -> int:
        """The token id that fills batches; no other token sees it, so end-of-text serves where there is no such id."""
        padding = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if padding is None else padding)

    def adapted_modules(self) -> dict[str, torch.nn.Module]:
        """The modules that carry factors, by the names of their factors up to `.lora_A.weight`."""
        names = [name.removesuffix(A_SUFFIX) for name in self.factors if name.endswith(A_SUFFIX)]
        return {name: self.network.get_submodule(name) for name in names}

    def _attach(self, layout: Layout) -> None:
        """Make this layout's factors the ones that count; those of others stay beside them, for jobs of mixed ranks."""
        if layout.digest not in self._attached:
            self._attached[layout.digest] = self._added(layout)
        name, self.factors = self._attached[layout.digest]
        self.network.set_adapter(name)
        self.adapted = layout

    def _added(self, layout: Layout) -> tuple[str, dict[str, torch.nn.Parameter]]:
        config = PeftLoraConfig(**peft_config(layout, self.network.name_or_path) | {"inference_mode": False})
        name = f"layout_{layout.digest[:16]}"
        with warnings.catch_warnings():
            # PEFT asks for an attribute that transformers has renamed; nothing a user can act on
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
            if isinstance(self.network, PeftModel):
                self.network.add_adapter(name, config)
            else:
                self.network = get_peft_model(self.network, config, adapter_name=name)
        self.network.eval()
        factors = _factors(self.network, name)
        if {name: tuple(factor.shape) for name, factor in factors.items()} != dict(layout.tensors):
            raise BaseModelError(
                f"PEFT adds other factors to {self.resolved.name} than its weight files announce; "
                "this architecture is not supported"
            )
        return name, factors


def _factors(network: PeftModel, adapter: str) -> dict[str, torch.nn.Parameter]:
    """The factors by the names PEFT saves them under; the parameters themselves, not copies."""
    saved = get_peft_model_state_dict(network, adapter_name=adapter, save_embedding_layers=False)
    names = {tensor.data_ptr(): name for name, tensor in saved.items()}
    parameters = {parameter.data_ptr(): parameter for parameter in network.parameters()}
    return {name: parameters[place] for place, name in names.items()}


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

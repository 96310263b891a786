"""Which LoRA factors a base model gets, read from the headers of its weight files: no weights, no PyTorch.

The names are PEFT's, as in `adapter_model.safetensors`. That PEFT makes the same factors is checked when the model
is loaded (language_model.py).
"""

import math
import re

import numpy as np
from safetensors import safe_open

from base_model.reference import ResolvedModel
from base_model.wheel import BaseModelError
from schemas.adapter import A_SUFFIX, B_SUFFIX, Adapter, Layout, LoraConfig

PEFT_PREFIX = "base_model.model."
LAYER_NUMBER = re.compile(r"\.(\d+)\.")

ModuleShapes = dict[str, tuple[int, int]]  # module name -> (out_features, in_features)


def layout_of(resolved: ResolvedModel, lora: LoraConfig) -> Layout:
    """Names and shapes of every factor this configuration adds to the model; milliseconds, from file headers alone."""
    chosen = _targets(_linear_modules(resolved), lora)
    tensors = []
    for name, (out_features, in_features) in chosen.items():
        tensors.append((f"{PEFT_PREFIX}{name}{A_SUFFIX}", (lora.rank, in_features)))
        tensors.append((f"{PEFT_PREFIX}{name}{B_SUFFIX}", (out_features, lora.rank)))
    return Layout(lora=lora, tensors=tuple(sorted(tensors)))


def initial_adapter(layout: Layout, seed: int) -> Adapter:
    """Where training starts: A uniform in +-1/sqrt(in_features) as PEFT draws it, B zero, so the model is unchanged.

    The same layout and seed give the same adapter on every machine.
    """
    generator = np.random.default_rng(seed)
    tensors = {}
    for name, shape in layout.tensors:
        if name.endswith(A_SUFFIX):
            bound = 1 / math.sqrt(shape[1])
            tensors[name] = generator.uniform(-bound, bound, shape).astype(np.float32)
        else:
            tensors[name] = np.zeros(shape, dtype=np.float32)
    return Adapter.from_tensors(layout, tensors)


def _linear_modules(resolved: ResolvedModel) -> ModuleShapes:
    shapes = {}
    for path in sorted(resolved.path.glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            for key in file.keys():  # noqa: SIM118  a safetensors file has keys() and is not a mapping
                shape = file.get_slice(key).get_shape()
                if key.endswith(".weight") and len(shape) == 2:
                    shapes[key.removesuffix(".weight")] = (shape[0], shape[1])
    return shapes


def _targets(modules: ModuleShapes, lora: LoraConfig) -> ModuleShapes:
    suffixes = tuple(f".{target}" for target in lora.target_modules)
    found = {name: shape for name, shape in modules.items() if f".{name}".endswith(suffixes)}
    missing = [target for target in lora.target_modules if not any(f".{n}".endswith(f".{target}") for n in found)]
    if missing:
        last_names = sorted({name.rsplit(".", 1)[-1] for name in modules})
        raise BaseModelError(f"the base model has no module {missing[0]}; it has {', '.join(last_names)}")
    return found if lora.last_layers is None else _topmost(found, lora.last_layers)


def _topmost(modules: ModuleShapes, layers: int) -> ModuleShapes:
    numbers = {name: int(match[1]) for name in modules if (match := LAYER_NUMBER.search(name))}
    count = 1 + max(numbers.values(), default=-1)
    if layers > count:
        raise BaseModelError(f"last_layers is {layers}, but the base model has only {count} layers")
    return {name: shape for name, shape in modules.items() if numbers.get(name, -1) >= count - layers}

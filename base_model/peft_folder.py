"""An adapter as a PEFT folder: the two files that `PeftModel.from_pretrained` reads. Written without PyTorch."""

import json
from pathlib import Path
from typing import Any

from base_model.layout import LAYER_NUMBER
from schemas.adapter import Adapter, Layout


def save_peft(adapter: Adapter, folder: Path, base_name: str) -> None:
    """Write adapter_model.safetensors and adapter_config.json; `base_name` is what PEFT will say the base model is."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(adapter.to_safetensors())
    (folder / "adapter_config.json").write_text(json.dumps(peft_config(adapter.layout, base_name), indent=2) + "\n")


def peft_config(layout: Layout, base_name: str) -> dict[str, Any]:
    """What adapter_config.json says: rank, alpha, modules, and the adapted layers where they are not all of them."""
    lora = layout.lora
    layers = sorted({int(match[1]) for name, _ in layout.tensors if (match := LAYER_NUMBER.search(name))})
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(lora.target_modules),
        "layers_to_transform": None if lora.last_layers is None else layers,
        "inference_mode": True,
    }

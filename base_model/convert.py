"""One GGUF file -> a folder of config.json, tokenizer and model.safetensors that can be memory-mapped.

Run as `python -m base_model.convert FILE.gguf FOLDER` in a process of its own: it needs several times the model's
memory for a few seconds, and gives it back by ending.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer


def convert(gguf: Path, folder: Path) -> None:
    """Write the de-quantised float32 weights, the configuration and the tokenizer of a GGUF file into a new folder."""
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    config = AutoConfig.from_pretrained(**where)
    model = AutoModelForCausalLM.from_pretrained(**where, config=config, dtype=torch.float32)
    # the weights are plain float32 now; keeping the GGUF mark would make loaders look for the GGUF file again
    del model.config.quantization_config
    folder.mkdir(parents=True)
    weights = folder / "model.safetensors"
    save_file(_without_tied(model), weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors writes for the owner only; a service may run as another user
    model.config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)


def _without_tied(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state without second names of one storage: safetensors refuses shared memory, loading ties them again."""
    seen: set[int] = set()
    state = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            state[name] = tensor.contiguous()
    return state


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))

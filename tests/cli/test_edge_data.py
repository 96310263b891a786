"""`alignfed edge data`, and `alignfed edge` beside it."""

import json
from pathlib import Path
from typing import Any

from base_model.examples import Example


def write(folder: Path) -> Path:
    lines = [Example(prompt=f"lamp {n}", completion=f"on {n}").model_dump_json() for n in range(60)]
    (folder / "kitchen.jsonl").write_text("\n".join([*lines, lines[0], "{", '{"prompt": "my secret"}']) + "\n")
    config = folder / "kitchen.toml"
    config.write_text('[edge]\nnode = "kitchen"\ndata = "kitchen.jsonl"\ndata_dir = "node"\n')
    return config


def test_it_counts_and_says_why_lines_were_refused(alignfed: Any, tmp_path: Path) -> None:
    shown = alignfed("edge", "data", "--config", write(tmp_path))
    assert shown.returncode == 0
    for line in (
        "examples    60: ",
        "duplicates  1\n",
        "refused     2 lines\n",
        "file kitchen.jsonl: 1 not JSON, the last in line 62\n",
        "from        file kitchen.jsonl: 60\n",
    ):
        assert line in shown.stdout
    assert "secret" not in shown.stdout + shown.stderr
    assert not (tmp_path / "node").exists()


def test_its_json_holds_the_same_with_what_to_do_about_warnings(alignfed: Any, tmp_path: Path) -> None:
    shown = json.loads(alignfed("edge", "data", "--config", write(tmp_path), "--json").stdout)
    assert (shown["examples"], shown["training"] + shown["held_out"], shown["duplicates"]) == (60, 60, 1)
    assert {(refused["reason"], refused["last_line"]) for refused in shown["refused"]} == {
        ("not JSON", 62),
        ('not an object with the texts "prompt" and "completion"', 63),
    }
    (too_few, *_) = shown["warnings"]
    assert too_few["name"] == "too_few"
    assert "add examples" in too_few["advice"]


def test_options_before_the_subcommand_are_not_lost_in_silence(alignfed: Any, tmp_path: Path) -> None:
    refused = alignfed("edge", "--config", write(tmp_path), "data")
    assert refused.returncode == 2
    assert "put the options behind `alignfed edge data`" in refused.stderr


def test_without_a_node_it_says_what_to_pass(alignfed: Any) -> None:
    refused = alignfed("edge", "data")
    assert refused.returncode == 2
    assert "pass --node and --data" in refused.stderr


def test_a_node_that_could_learn_from_nothing_is_refused(alignfed: Any) -> None:
    refused = alignfed("edge", "--node", "kitchen")
    assert refused.returncode == 2
    assert "there is nothing to learn from: set data" in refused.stderr


def test_a_file_that_is_not_there_is_named(alignfed: Any, tmp_path: Path) -> None:
    failed = alignfed("edge", "data", "--node", "kitchen", "--data", tmp_path / "none.jsonl")
    assert failed.returncode == 1
    assert "none.jsonl" in failed.stderr

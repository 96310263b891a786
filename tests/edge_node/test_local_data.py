"""The owner's file of examples."""

import os
from pathlib import Path

import pytest

from base_model.examples import Example, InvalidExamples, save_examples
from edge_node.local_data import LocalData

LAMP = Example(prompt="lamp on", completion="TurnOn")
FAN = Example(prompt="fan off", completion="TurnOff")


def test_examples_are_read_again_when_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    save_examples((LAMP,), path)
    data = LocalData(path)
    assert data.examples() == (LAMP,)
    save_examples((FAN, LAMP), path)
    assert data.examples() == (FAN, LAMP)


def test_a_change_of_equal_length_is_seen_by_its_time(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    save_examples((LAMP,), path)
    data = LocalData(path)
    data.examples()
    save_examples((LAMP.model_copy(update={"prompt": "lamp in"}),), path)
    os.utime(path, ns=(1, 1))
    assert data.examples()[0].prompt == "lamp in"


def test_an_unchanged_file_is_not_read_again(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    save_examples((LAMP,), path)
    data = LocalData(path)
    assert data.examples() is data.examples()


@pytest.mark.parametrize(("content", "said"), [(None, "cannot read"), ("", "holds no examples"), ("{", "line 1")])
def test_a_file_that_cannot_be_used_is_an_error_that_names_it(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "examples.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidExamples, match=said) as refusal:
        LocalData(path).examples()
    assert str(path) in str(refusal.value)


def test_a_file_that_was_mended_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    path.write_text("{")
    data = LocalData(path)
    with pytest.raises(InvalidExamples):
        data.examples()
    save_examples((LAMP,), path)
    assert data.examples() == (LAMP,)

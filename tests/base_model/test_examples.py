"""A user's data: what is read, and what is refused with the line to look at."""

from pathlib import Path

import pytest

from base_model.examples import MAX_CHARACTERS, Example, InvalidExamples, load_examples, save_examples


def test_saved_examples_load_again(tmp_path: Path) -> None:
    examples = (
        Example(prompt="turn on the lamp", completion='{"intent":"TurnOn"}'),
        Example(prompt="é\n", completion="ü"),
    )
    save_examples(examples, tmp_path / "data.jsonl")
    assert load_examples(tmp_path / "data.jsonl") == examples


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"prompt": "a"}', "completion: Field required"),
        ('{"prompt": "a", "completion": "b", "answer": "c"}', "answer: Extra inputs are not permitted"),
        ('{"prompt": "", "completion": "b"}', "prompt: String should have at least 1 character"),
        ('{"prompt": 7, "completion": "b"}', "prompt: Input should be a valid string"),
        ("turn on the lamp", "Invalid JSON"),
        ('["a", "b"]', "Input should be an object"),
        ('{"prompt": "%s", "completion": "b"}' % ("a" * (MAX_CHARACTERS + 1)), "at most 8192 characters"),
    ],
)
def test_a_bad_line_is_named_with_its_number_and_what_to_write(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n\n' + line + "\n")
    with pytest.raises(InvalidExamples) as refusal:
        load_examples(path)
    assert f"{path}, line 3: " in str(refusal.value)
    assert reason in str(refusal.value)
    assert 'texts "prompt" and "completion"' in str(refusal.value)


def test_bytes_that_are_no_text_are_refused_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(b'{"prompt": "\xff", "completion": "b"}')
    with pytest.raises(InvalidExamples, match="line 1: "):
        load_examples(tmp_path / "data.jsonl")


def test_an_empty_file_is_refused_with_what_to_write(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("\n\n")
    with pytest.raises(InvalidExamples, match="holds no examples"):
        load_examples(tmp_path / "data.jsonl")


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidExamples, match=r"cannot read .*data\.jsonl: No such file"):
        load_examples(tmp_path / "data.jsonl")

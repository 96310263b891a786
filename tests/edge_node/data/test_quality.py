"""What is doubtful about examples, and what to do about it."""

from pathlib import Path

import pytest

from base_model.examples import Example
from edge_node.data.quality import quality
from edge_node.training.example_tokens import over_the_limits


def examples(count: int, completion: str | None = None) -> list[Example]:
    return [Example(prompt=f"lamp {n}", completion=completion or f"turn on lamp {n}") for n in range(count)]


def names(training: list[Example], held_out: int = 10, one_job: int = 10) -> dict[str, int]:
    return {warning.name: warning.examples for warning in quality(training, held_out, one_job)}


def test_good_examples_get_no_warning() -> None:
    assert names(examples(50)) == {}


def test_fewer_examples_than_one_job_sees_are_too_few() -> None:
    assert names(examples(9)) == {"too_few": 9}


def test_few_held_out_examples_say_little() -> None:
    assert names(examples(50), held_out=2) == {"little_held_out": 2}


def test_short_and_long_completions_are_counted() -> None:
    training = [*examples(50), Example(prompt="a", completion="x "), Example(prompt="b", completion="y" * 1001)]
    assert names(training) == {"short_completions": 1, "long_completions": 1}


def test_prompts_with_several_different_completions_are_counted() -> None:
    again = [Example(prompt="lamp 1", completion="turn it off"), Example(prompt="lamp 1", completion="leave it")]
    assert names([*examples(50), *again]) == {"several_completions": 1}


def test_completions_that_are_nearly_all_the_same_are_a_warning_once_there_are_enough_to_tell() -> None:
    training = [*examples(26, "TurnOn"), *[e.model_copy(update={"prompt": f"f {e.prompt}"}) for e in examples(24)]]
    assert names(training) == {"uniform_completions": 26}
    assert names(training[1:]) == {"uniform_completions": 25}
    assert names(training[2:]) == {}
    assert names(examples(12, "TurnOn")) == {}


def test_every_warning_says_what_to_do_and_quotes_nothing() -> None:
    training = [Example(prompt="my secret", completion=c) for c in ("x", "y")]
    for warning in quality(training, 0, 10):
        assert warning.advice
        assert "secret" not in warning.found + warning.advice


def test_examples_over_the_token_limits_are_counted_where_the_tokenizer_is_at_hand(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    training = [
        Example(prompt="q" * 900, completion="TurnOn"),
        Example(prompt="q" * 760, completion="TurnOn"),
        Example(prompt="lamp", completion="z" * 256),
        Example(prompt="lamp", completion="z" * 255),
    ]
    found = {warning.name: warning.examples for warning in over_the_limits(training, str(tiny_model_dir), tmp_path)}
    assert found == {"prompt_over_limit": 1, "completion_over_limit": 1}
    assert over_the_limits(training, str(tmp_path / "not here"), tmp_path) == ()


@pytest.mark.parametrize("name", ["hub/model", "model.gguf"])
def test_no_model_is_fetched_to_count_tokens(name: str, tmp_path: Path) -> None:
    assert over_the_limits([Example(prompt="q" * 900, completion="a")], name, tmp_path) == ()
    assert list(tmp_path.iterdir()) == []

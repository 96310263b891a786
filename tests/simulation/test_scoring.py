"""Scores of written answers: to the letter, and by the intent they name."""

import pytest

from base_model.examples import Example
from simulation.scoring import intent_of, jain, scores

LAMP = Example(prompt="lamp on", completion='{"intent":"TurnOn","name":"lamp"}')
TIMER = Example(prompt="stop the timer", completion='{"intent":"CancelTimer"}')
PROSE = Example(prompt="who are you", completion="A lamp.")


def test_an_answer_with_the_right_intent_and_a_wrong_slot_counts_for_the_intent_alone() -> None:
    assert scores(['{"intent":"TurnOn","name":"fan"}', TIMER.completion], [LAMP, TIMER]) == (0.5, 1.0)


def test_an_answer_that_is_no_json_misses_the_intent() -> None:
    assert scores(["Sure!", ' {"intent":"CancelTimer"}\n'], [LAMP, TIMER]) == (0.5, 0.5)


def test_examples_that_name_no_intent_do_not_count_for_the_intents() -> None:
    assert scores(["A lamp.", "Sure!"], [PROSE, LAMP]) == (0.5, 0.0)


def test_a_task_without_intents_has_no_intent_accuracy() -> None:
    assert scores(["A lamp."], [PROSE]) == (1.0, None)


def test_answers_without_their_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="1 answers do not belong to 2 examples"):
        scores(["A lamp."], [PROSE, LAMP])
    with pytest.raises(ValueError, match="at least one example"):
        scores([], [])


@pytest.mark.parametrize("answer", ['{"intent":7}', '{"name":"tv"}', '["TurnOn"]', '{"intent":"Tu', "", "[" * 100_000])
def test_the_intent_of_an_answer_that_names_none_is_none(answer: str) -> None:
    assert intent_of(answer) is None


def test_jains_index_is_one_for_equals_and_one_nth_for_a_single_winner():
    assert jain([2, 2, 2]) == pytest.approx(1)
    assert jain([0, 0, 0, 7]) == pytest.approx(0.25)

"""Answers given during a run are counted by the version that gave them, and told command by command."""

import re

from examples.smart_home.answers import Change, Said, VersionAnswers, by_version, change, stories
from examples.smart_home.report import render


def test_right_answers_are_counted_for_each_version_the_base_model_first(report):
    assert by_version(report.interview.answers[::-1]) == (
        VersionAnswers(None, asked=1, exact=0, right_intent=0),
        VersionAnswers(0, asked=2, exact=0, right_intent=0),
        VersionAnswers(1, asked=2, exact=0.5, right_intent=1),
    )


def test_a_change_counts_each_command_when_it_was_asked_first_and_last(report):
    answers = report.interview.answers
    assert change(answers) == Change(commands=2, at_first=0, at_last=1)
    # the last version answered one command only; the other counts with what an earlier version said
    assert change(answers[:-1]).commands == 2
    assert change(()) == Change(0, 0, 0)


def test_a_command_is_told_with_each_answer_once_and_the_versions_that_gave_it(report):
    first, second = stories(report.interview.answers)
    assert first.prompt == "lights <on>"
    assert first.said == (Said("base-0", "Sure!"), Said("1", first.expected))
    assert [said.versions for said in second.said] == ["0", "1"]
    assert stories(report.interview.answers, count=1) == (first,)


def test_the_page_tells_what_the_home_answered_and_what_it_did_not(report):
    page = render(report)
    words = re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", page))
    assert "5 questions in all, 2 without an answer" in words
    assert "base 1 0 % 0 % 0 2 0 % 0 % 1 2 100 % 50 %" in words
    assert "lights &lt;on&gt;" in page and "&lt;fan&gt;" in page


def test_a_run_too_short_for_an_answer_has_no_section_on_them(report):
    silent = report.interview.model_copy(update={"answers": (), "unanswered": 0})
    assert "Answers while it learned" in render(report)
    assert "Answers while it learned" not in render(report.model_copy(update={"interview": silent}))

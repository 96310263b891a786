"""`alignfed simulate` and `compare`: what they refuse, and the plan, which runs nothing."""

import pytest


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("simulate", "--method", "fedsgd"), "there is no method fedsgd; there are alignfed,"),
        (("compare", "--plan", "--methods", "fedsgd"), "fedsgd"),
        (("compare", "--plan", "--regimes", "antarctic"), "antarctic"),
        (
            ("compare", "--plan", "--seeds", "10,eleven"),
            "--seeds takes numbers with commas between them, not 10,eleven",
        ),
    ],
)
def test_what_does_not_exist_is_named_and_nothing_is_run(alignfed, words, said):
    shown = alignfed(*words)
    assert shown.returncode == 2
    assert said in shown.stderr


def test_the_plan_says_what_would_be_run_and_for_how_long(alignfed, tmp_path):
    shown = alignfed(
        "compare", "--plan", "--methods", "alignfed,fedbuff_1", "--seeds", "3", "--out", str(tmp_path / "out")
    )
    assert shown.returncode == 0
    assert "2 runs" in shown.stdout
    assert not (tmp_path / "out").exists()


def test_a_document_is_not_written_before_there_is_something_to_say(alignfed, tmp_path):
    shown = alignfed("compare", "--out", str(tmp_path), "--results", str(tmp_path / "results.md"))
    assert shown.returncode == 1
    assert "run the comparison first" in shown.stderr

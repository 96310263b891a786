"""The kept corpus: every input in it is taken as it should be, and it is no larger than it has to be."""

import os
from collections.abc import Iterator

import pytest

from fuzz import corpus
from fuzz.target import Target, clear
from fuzz.targets import TARGETS, target_of
from schemas.messages import Message
from schemas.reading import MODELS

LARGEST = 300_000


@pytest.fixture(scope="module", autouse=True)
def files() -> Iterator[None]:
    """The folder that decoders of files read from is gone afterwards."""
    yield
    clear(os.getpid())


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_every_kept_input_is_taken_as_it_should_be(target: Target) -> None:
    kept = corpus.inputs(target.name)
    assert kept, "run python -m fuzz.seeds"
    for data in [*kept, b"", b"\xff" * 40, b"[" * 2900]:
        target.check(data)


def test_the_corpus_is_small() -> None:
    assert sum(path.stat().st_size for path in corpus.FOLDER.iterdir()) < LARGEST


def test_every_type_of_message_has_a_target() -> None:
    kinds: set[type[Message]] = set(MODELS.values())
    assert {f"message-{kind.__name__}" for kind in kinds} <= {target.name for target in TARGETS}


def test_a_target_that_there_is_not_is_named_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="no target nonsense, only topic, route"):
        target_of("nonsense")


def test_of_inputs_that_go_the_same_way_the_shortest_is_kept() -> None:
    def check(data: bytes) -> None:
        if data.startswith(b"a"):
            assert len(data) < 100

    target = Target("letters", check, share=1)
    assert corpus.minimal(target, [b"abc", b"a", b"bcd", b"b"]) == [b"a", b"b"]

"""Rows that no coordinator has written: they are described all the same, and no journal is folded with them."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from broker.recording import RecordingError, Row, append, transaction
from coordinator.journal import open_journal, record_founding
from coordinator.replay.inside import replay
from coordinator.replay.recorded import read_row
from coordinator.state import FederationConfig
from schemas.adapter import Adapter

MakeConfig = Callable[..., FederationConfig]
MakeAdapter = Callable[..., Adapter]

ROWS = [
    ("$journal/order/1", b"[]", None),
    ("$journal/order/1", b"[" * 1100, None),
    ("$journal/config", b"7", "row 3 is no event"),
    ("$journal/keys", b"null", "row 3 is no event"),
    ("$journal/answer/1/2", b"[1]\n", None),
    ("$journal/answer/1", b"{}\n", "row 3 is no event"),
    ("$journal/order/first", b"{}", "row 3 is no event"),
    ("$journal/rollback/only", b"", "row 3 is no event"),
    ("$journal/poison/", b"", None),
    ("$journal/poison/\x1b[2J/" + "x" * 1000, b"\0", None),
]


@pytest.mark.parametrize(("topic", "payload", "_"), ROWS)
def test_a_row_that_no_coordinator_writes_is_described(topic: str, payload: bytes, _: object) -> None:
    said = read_row(Row(1, topic, payload))
    assert isinstance(said.content, dict)
    assert said.kind.startswith("journal/")


@pytest.mark.parametrize(("topic", "payload", "what"), [row for row in ROWS if row[2]])
def test_a_journal_with_such_a_row_is_refused_with_its_number(
    tmp_path: Path, config: MakeConfig, adapter: MakeAdapter, topic: str, payload: bytes, what: str
) -> None:
    with closing(open_journal(tmp_path / "journal.db")) as journal, transaction(journal):
        record_founding(journal, config(), adapter(0), 1)
        append(journal, Row(2, topic, payload))
    with pytest.raises(RecordingError, match=what):
        list(replay(tmp_path / "journal.db"))

"""A start from a checkpoint comes to what a whole fold comes to; from anything else it does not start."""

import hashlib
import json
import pickle
import shutil
import sqlite3
from contextlib import closing
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest

from broker.recording import read_rows, write_recording
from coordinator.checkpoint import NAME, Checkpoint, load, save
from coordinator.journal import fold_history
from coordinator.recovery import keep
from coordinator.registry import Registry
from coordinator.replay.inside import replay

GOLDEN = Path(__file__).parents[1] / "golden" / "demo.rec"
MIDDLE = 20  # a row of it


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "adapters")


@pytest.fixture
def journal(tmp_path: Path, registry: Registry) -> Path:
    """The demo's journal, with its registry."""
    path = tmp_path / "journal.db"
    shutil.copy(GOLDEN, path)
    for _, _, effects in fold_history(path):
        keep(registry, effects)
    return path


@pytest.fixture
def kept(journal: Path, registry: Registry) -> Path:
    """A checkpoint of a row in the middle."""
    made = checkpoints(journal)[MIDDLE]
    assert made.seq < len(list(read_rows(journal)))
    save(journal, made, registry)
    return journal.parent / NAME


def checkpoints(journal: Path) -> list[Checkpoint]:
    """What the journal comes to after each of its rows from the second on."""
    return [Checkpoint(seq, state, history) for seq, (state, history, _) in enumerate(fold_history(journal), 2)]


def test_going_on_from_any_row_comes_to_the_same(journal: Path, registry: Registry) -> None:
    made = checkpoints(journal)
    assert len(made) == 37 and made[-1].state.head.version > 1 and made[-1].history.nodes
    assert any(one.state.open_questions for one in made) and any(one.state.buffer.groups for one in made)
    for one, following in pairwise(made):
        save(journal, one, registry)
        loaded = load(journal, registry)
        assert loaded == one
        state, history, _ = next(fold_history(journal, loaded))
        assert Checkpoint(following.seq, state, history) == following
    *_, (state, history, _) = fold_history(journal, load(journal, registry))
    assert (state, history) == made[-1][1:]


def test_adapters_of_a_checkpoint_cannot_be_written_to(journal: Path, registry: Registry, kept: Path) -> None:
    loaded = load(journal, registry)
    assert loaded is not None
    with pytest.raises(ValueError, match="read-only"):
        loaded.state.head.adapter.values[0] = 1


def test_without_a_checkpoint_there_is_none(journal: Path, registry: Registry) -> None:
    assert load(journal, registry) is None


def test_a_checkpoint_that_is_cut_short_or_damaged_does_not_count(
    journal: Path, registry: Registry, kept: Path
) -> None:
    whole = kept.read_bytes()
    for size in (0, 1, 100, whole.index(b"\n"), whole.index(b"\n") + 1, len(whole) // 2, len(whole) - 1):
        kept.write_bytes(whole[:size])
        assert load(journal, registry) is None
    for place in (0, 30, whole.index(b"\n") + 1, len(whole) // 2, len(whole) - 1):
        kept.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert load(journal, registry) is None
    kept.write_bytes(whole)
    assert load(journal, registry) is not None


def relabel(kept: Path, content: bytes | None = None, **changes: Any) -> None:
    """Write a checkpoint again with another label, and the digest of what is behind it."""
    label, _, old = kept.read_bytes().partition(b"\n")
    content = old if content is None else content
    fields = {**json.loads(label), **changes, "sha256": hashlib.sha256(content).hexdigest()}
    kept.write_bytes(json.dumps(fields).encode() + b"\n" + content)


def test_a_checkpoint_of_another_program_does_not_count(journal: Path, registry: Registry, kept: Path) -> None:
    relabel(kept)
    assert load(journal, registry) is not None
    relabel(kept, program="0" * 64)
    assert load(journal, registry) is None


def test_a_checkpoint_of_a_journal_that_was_restored_from_an_older_copy_does_not_count(
    journal: Path, registry: Registry, kept: Path
) -> None:
    rows = list(read_rows(journal))
    journal.unlink()
    write_recording(journal, rows[:MIDDLE])
    assert load(journal, registry) is None


def test_a_checkpoint_of_a_journal_that_went_on_another_way_does_not_count(
    journal: Path, registry: Registry, kept: Path
) -> None:
    rows = list(read_rows(journal))
    journal.unlink()
    write_recording(journal, [*rows[: MIDDLE - 1], *rows[MIDDLE:], rows[-1]])
    assert load(journal, registry) is None


@pytest.mark.parametrize("lost", ["manifests/1.json", "decisions/1.json"])
def test_what_the_registry_has_lost_is_made_again_from_the_whole_journal(
    journal: Path, registry: Registry, kept: Path, lost: str
) -> None:
    (registry.folder / lost).unlink()
    assert load(journal, registry) is None


def call(module: str, name: str, argument: str) -> bytes:
    """A pickle that calls something, as nobody's dumps would write it."""
    words = b"".join(pickle.SHORT_BINUNICODE + bytes([len(word)]) + word.encode() for word in (module, name))
    said = pickle.SHORT_BINUNICODE + bytes([len(argument)]) + argument.encode()
    return pickle.PROTO + b"\x04" + words + pickle.STACK_GLOBAL + said + pickle.TUPLE1 + pickle.REDUCE + pickle.STOP


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "mkdir"),
        ("builtins", "eval"),
        ("coordinator.checkpoint", "Path.mkdir"),  # what our modules import
        ("coordinator.checkpoint", "import_module"),
        ("coordinator.recovery", "FederationDiffers"),
        ("coordinator.registry", "Registry"),
        ("numpy", "ndarray"),  # of objects: pointers to anywhere
    ],
)
def test_a_checkpoint_runs_no_code(
    tmp_path: Path,
    journal: Path,
    registry: Registry,
    kept: Path,
    caplog: pytest.LogCaptureFixture,
    module: str,
    name: str,
) -> None:
    relabel(kept, call(module, name, str(tmp_path / "was here")))
    assert load(journal, registry) is None
    assert f"{module}.{name} is no part of a state" in caplog.text
    assert not (tmp_path / "was here").exists()


def test_a_coordinator_that_is_killed_goes_on_from_its_checkpoint(coordinator: Any, node: Any) -> None:
    node.until_version(0)
    for sequence in count():
        if (coordinator.data_dir / NAME).exists():
            break
        sent = node.send("kitchen", sequence, node.head, 0.1)
        node.until(partial(node.statuses, sent))
    version = node.head.version
    coordinator.kill()
    seq = json.loads((coordinator.data_dir / NAME).read_bytes().partition(b"\n")[0])["seq"]
    with closing(sqlite3.connect(coordinator.data_dir / "journal.db")) as database:
        # what a whole fold would stumble over
        database.execute("UPDATE messages SET crc32 = crc32 + 1 WHERE seq = ?", (seq // 2,))
        database.commit()
    coordinator.start()
    node.until_version(version)
    node.send("cellar", 0, node.head, 0.1)
    node.until_version(version + 1)
    coordinator.kill()
    with closing(sqlite3.connect(coordinator.data_dir / "journal.db")) as database:
        database.execute("UPDATE messages SET crc32 = crc32 - 1 WHERE seq = ?", (seq // 2,))
        database.commit()
    assert replay(coordinator.data_dir / "journal.db")

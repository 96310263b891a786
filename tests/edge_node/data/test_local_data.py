"""The node's private examples: the owner's files, what came otherwise, and what is held out."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis.strategies import binary, lists, sampled_from

from base_model.examples import Example, InvalidExamples, save_examples
from edge_node.data.example_lines import MAX_LINE_BYTES, TOO_LONG_A_LINE, UNFINISHED
from edge_node.data.example_store import ExampleStore, place_of
from edge_node.data.local_data import LocalData
from edge_node.data.settings import LocalDataSettings

LAMP = Example(prompt="lamp on", completion="TurnOn")
FAN = Example(prompt="fan off", completion="TurnOff")
DOOR = Example(prompt="open the door", completion="OpenCover")
EVERYTHING = LocalDataSettings(held_out=0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "examples.jsonl"


@pytest.fixture
def open_data(tmp_path: Path) -> Any:
    """Open the node's data on a file or folder: as a new process would, each time."""

    def opened(watched: Path | None, settings: LocalDataSettings = EVERYTHING) -> LocalData:
        return LocalData.open(watched, tmp_path / "node", settings)

    return opened


def line(example: Example) -> bytes:
    return example.model_dump_json().encode() + b"\n"


def append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


def refused(data: LocalData) -> dict[str, int]:
    return {tally.outcome: tally.lines for tally in data.summary().refused}


# the owner's files


def test_a_file_that_was_rewritten_replaces_what_came_from_it(path: Path, open_data: Any) -> None:
    save_examples((LAMP,), path)
    data = open_data(path)
    assert data.examples() == (LAMP,)
    save_examples((FAN, DOOR), path)
    assert data.examples() == (FAN, DOOR)


def test_a_change_of_equal_length_is_seen_by_its_time(path: Path, open_data: Any) -> None:
    save_examples((LAMP,), path)
    data = open_data(path)
    data.examples()
    save_examples((LAMP.model_copy(update={"prompt": "lamp in"}),), path)
    os.utime(path, ns=(1, 1))
    assert data.examples()[0].prompt == "lamp in"


def test_what_is_appended_is_read_on_and_survives_a_restart(path: Path, open_data: Any) -> None:
    path.write_bytes(line(LAMP))
    data = open_data(path)
    assert data.examples() == (LAMP,)
    append(path, line(FAN))
    assert data.examples() == (LAMP, FAN)
    append(path, line(DOOR))
    assert open_data(path).examples() == (LAMP, FAN, DOOR)


def test_an_unchanged_file_is_not_read_again(path: Path, open_data: Any) -> None:
    save_examples((LAMP,), path)
    data = open_data(path)
    assert data.examples() is data.examples()


def test_a_line_that_is_being_written_is_waited_for_wherever_it_is_cut(path: Path, open_data: Any) -> None:
    whole = line(FAN)
    data = open_data(path)
    for cut in range(1, len(whole) - 1):
        path.write_bytes(line(LAMP) + whole[:cut])
        assert data.examples() == (LAMP,), whole[:cut]
        assert refused(data) == {UNFINISHED: 1}
        append(path, whole[cut:])
        assert data.examples() == (LAMP, FAN)
        assert refused(data) == {}


def test_the_last_line_counts_without_its_line_break_when_it_is_whole(path: Path, open_data: Any) -> None:
    path.write_bytes(line(LAMP) + line(FAN).rstrip())
    data = open_data(path)
    assert data.examples() == (LAMP, FAN)
    append(path, b"\n" + line(DOOR))
    assert data.examples() == (LAMP, FAN, DOOR)
    assert refused(data) == {}


def test_bad_lines_are_counted_with_their_reason_and_the_good_ones_are_kept(path: Path, open_data: Any) -> None:
    lines = [
        b"{",
        b"nonsense",
        b"\xff\xfe",
        b"[]",
        b'{"prompt": "a"}',
        b'{"prompt": 1, "completion": "b"}',
        b'{"prompt": "", "completion": "b"}',
        b'{"prompt": "a", "completion": "b", "more": 1}',
        json.dumps({"prompt": "a", "completion": "b" * 8193}).encode(),
        b"",
    ]
    path.write_bytes(b"\xef\xbb\xbf" + line(LAMP) + b"\n".join(lines) + b"\r\n" + line(FAN))
    data = open_data(path)
    assert data.examples() == (LAMP, FAN)
    assert refused(data) == {
        "not JSON": 2,
        "not UTF-8": 1,
        'not an object with the texts "prompt" and "completion"': 3,
        "an empty text": 1,
        'a field beside "prompt" and "completion"': 1,
        "a text over 8192 characters": 1,
    }
    (not_json,) = [tally for tally in data.summary().refused if tally.outcome == "not JSON"]
    assert (not_json.source, not_json.last) == ("file examples.jsonl", 3)


def test_a_line_without_end_costs_its_own_line_only(path: Path, open_data: Any) -> None:
    path.write_bytes(line(LAMP) + b"x" * (3 * MAX_LINE_BYTES) + b"\n" + line(FAN))
    data = open_data(path)
    assert data.examples() == (LAMP, FAN)
    assert refused(data) == {TOO_LONG_A_LINE: 1}


def test_reasons_never_repeat_what_a_line_says(path: Path, open_data: Any) -> None:
    path.write_text('{"prompt": "a", "completion": "b", "my secret": 1}\nmy secret\n')
    data = open_data(path)
    data.refresh()
    assert "secret" not in repr(data.summary())


def test_what_was_refused_is_counted_anew_when_its_file_is_mended(path: Path, open_data: Any) -> None:
    path.write_text("{\n{\n")
    data = open_data(path)
    with pytest.raises(InvalidExamples, match=r"holds no examples \(2 lines are none\)"):
        data.examples()
    save_examples((LAMP,), path)
    assert data.examples() == (LAMP,)
    assert refused(data) == {}


def test_a_folder_gives_all_of_its_files_and_forgets_those_that_go(tmp_path: Path, open_data: Any) -> None:
    folder = tmp_path / "inbox"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(line(LAMP) + line(FAN))
    (folder / "b.jsonl").write_bytes(line(FAN) + line(DOOR))
    (folder / ".c.jsonl").write_bytes(b"half of a")
    (folder / "d.jsonl.part").write_bytes(b"half of a")
    (folder / "e.jsonl").mkdir()
    data = open_data(folder)
    assert data.examples() == (LAMP, FAN, DOOR)
    assert data.summary().duplicates == 1
    (folder / "a.jsonl").unlink()
    assert data.examples() == (FAN, DOOR)  # the fan is in b, too
    assert data.summary().sources == {"file b.jsonl": 2}


def test_a_folder_that_is_away_for_a_while_costs_nothing(tmp_path: Path, open_data: Any) -> None:
    folder = tmp_path / "stick"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(line(LAMP))
    data = open_data(folder)
    data.refresh()
    folder.rename(tmp_path / "unplugged")
    with pytest.raises(InvalidExamples, match=r"cannot read .*stick"):
        data.examples()
    assert data.training() == (LAMP,)


def test_a_file_that_cannot_be_read_is_an_error_that_names_it(path: Path, open_data: Any) -> None:
    with pytest.raises(InvalidExamples, match=f"cannot read {path}"):
        open_data(path).examples()
    path.write_text("")
    with pytest.raises(InvalidExamples, match=f"{path} holds no examples"):
        open_data(path).examples()


READER = """
import sys
from pathlib import Path
from edge_node.data import watched_files
from edge_node.data.settings import LocalDataSettings
from edge_node.data.local_data import LocalData

watched_files.BATCH = 10
data = LocalData.open(Path(sys.argv[1]), Path(sys.argv[2]), LocalDataSettings(held_out=0))
print("reading", flush=True)
data.refresh()
"""


def test_a_reader_that_is_killed_in_the_middle_of_a_file_goes_on_where_it_was(tmp_path: Path, path: Path) -> None:
    examples = tuple(Example(prompt=f"lamp {number}", completion="on") for number in range(3000))
    path.write_bytes(b"".join(map(line, examples)) + b"{\n")
    node = tmp_path / "node"
    for pause_s in (0.01, 0.05, 0.1):
        with subprocess.Popen([sys.executable, "-c", READER, str(path), str(node)], stdout=subprocess.PIPE) as reader:
            assert reader.stdout is not None
            reader.stdout.readline()
            try:
                reader.wait(pause_s)
            except subprocess.TimeoutExpired:
                reader.send_signal(signal.SIGKILL)
    data = LocalData.open(path, node, EVERYTHING)
    assert data.examples() == examples
    assert data.summary().duplicates == 0
    assert refused(data) == {"not JSON": 1}


@given(parts=lists(sampled_from([line(LAMP), line(FAN), b"{", b"\n", b"\r\n", b"\xff", b"\0"]) | binary(max_size=40)))
def test_whatever_is_in_a_file_is_no_fault_and_reading_it_in_parts_comes_to_the_same(parts: list[bytes]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "examples.jsonl"
        in_parts, at_once = (LocalData(ExampleStore(None, 1 << 20, 0), path) for _ in range(2))
        path.write_bytes(b"")
        for number, part in enumerate(parts):
            append(path, part)
            os.utime(path, ns=(number, number))
            in_parts.refresh()
        at_once.refresh()
    assert in_parts.training() == at_once.training()
    assert refused(in_parts) == refused(at_once)


# the store


def test_the_oldest_go_first_and_appending_does_not_bring_them_back(path: Path, open_data: Any) -> None:
    examples = [Example(prompt=f"{number:05d}", completion="x" * 8000) for number in range(20)]
    path.write_bytes(b"".join(map(line, examples[:10])))
    data = open_data(path, LocalDataSettings(held_out=0, most_bytes=1 << 16))
    assert list(data.examples()) == examples[2:10]
    append(path, b"".join(map(line, examples[10:])))
    assert list(data.examples()) == examples[12:]
    assert data.summary().dropped == 12
    assert data.summary().size <= 1 << 16


def test_an_example_is_kept_once_wherever_it_comes_from(path: Path, open_data: Any) -> None:
    save_examples((LAMP,), path)
    data = open_data(path)
    data.refresh()
    assert data.add("http", [LAMP, FAN, FAN]) == (1, 2)
    assert data.examples() == (LAMP, FAN)
    path.write_bytes(b"")
    assert data.examples() == (LAMP, FAN)  # the lamp came over HTTP, too


def test_what_is_held_out_is_decided_by_the_prompt_and_never_trained_on(open_data: Any) -> None:
    data = open_data(None, LocalDataSettings(held_out=0.1))
    examples = [Example(prompt=f"lamp {number}", completion=answer) for number in range(2000) for answer in ("a", "b")]
    data.add("http", examples)
    held_out, training = data.held_out(10_000), data.examples()
    assert set(held_out) | set(training) == set(examples)
    assert {example.prompt for example in held_out}.isdisjoint(example.prompt for example in training)
    assert 0.07 < len(held_out) / len(examples) < 0.13
    assert {place_of(example) < 0.1 for example in held_out} == {True}


def test_the_held_out_examples_that_are_measured_hardly_change_while_others_come(open_data: Any) -> None:
    data = open_data(None, LocalDataSettings(held_out=0.5))
    data.add("http", [Example(prompt=f"lamp {number}", completion="on") for number in range(100)])
    some = data.held_out(5)
    data.add("http", [DOOR])
    assert len(some) == 5
    assert len(set(some) & set(data.held_out(5))) >= 4
    assert data.held_out(0) == ()


def test_the_place_of_an_example_is_the_same_everywhere() -> None:
    assert place_of(LAMP) == place_of(LAMP.model_copy(update={"completion": "TurnOff"}))
    assert place_of(LAMP) == pytest.approx(0.64331, abs=1e-5)


def test_examples_that_are_all_held_out_are_an_error_that_says_what_to_do(open_data: Any) -> None:
    few = [Example(prompt=f"lamp {number}", completion="on") for number in range(100)]
    data = open_data(None, LocalDataSettings(held_out=0.5))
    data.add("http", [min(few, key=place_of)])
    with pytest.raises(InvalidExamples, match="all 1 examples are held out: add more, or lower"):
        data.examples()


def test_lines_of_a_message_are_examples_or_counted(open_data: Any) -> None:
    data = open_data(None)
    assert data.add_lines("mqtt", line(LAMP) + b"{\n\n" + line(FAN)) == 1
    assert data.examples() == (LAMP, FAN)
    assert refused(data) == {"not JSON": 1}


def test_a_look_changes_nothing_on_disk_and_sees_what_the_node_has(tmp_path: Path, path: Path, open_data: Any) -> None:
    data = open_data(path)
    data.add("http", [LAMP])
    path.write_bytes(line(FAN))
    looked = LocalData.look(path, tmp_path / "node", EVERYTHING)
    looked.refresh()
    assert looked.training() == (LAMP, FAN)
    assert data.training() == (LAMP,)


def test_only_the_owner_may_read_the_store_and_what_is_forgotten_is_overwritten(tmp_path: Path, path: Path) -> None:
    database = tmp_path / "node" / "examples.db"
    path.write_bytes(line(Example(prompt="my secret word is xyzzy", completion="TurnOn")))
    with ExampleStore(database, 1 << 20, 0) as store:
        LocalData(store, path).refresh()
    assert b"xyzzy" in database.read_bytes()
    assert database.stat().st_mode & 0o077 == 0
    path.write_bytes(line(LAMP))
    with ExampleStore(database, 1 << 20, 0) as store:
        LocalData(store, path).refresh()
    assert b"xyzzy" not in database.read_bytes()


def test_a_damaged_store_is_moved_aside_and_the_files_are_read_again(
    tmp_path: Path, path: Path, open_data: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_bytes(line(LAMP))
    with ExampleStore(tmp_path / "node" / "examples.db", 1 << 20, 0) as store:
        LocalData(store, path).refresh()
    (tmp_path / "node" / "examples.db").write_bytes(b"this is not a database" * 1000)
    assert open_data(path).examples() == (LAMP,)
    assert "examples.db.damaged-1" in caplog.text

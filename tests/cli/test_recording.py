"""`alignfed recording` and the ways of `alignfed replay`, on what a real federation has left behind."""

import csv
import json
import re

import pytest

from broker.client import Client
from broker.embedded import EmbeddedBroker
from broker.events import Message, Subscribed
from broker.recording import Row, read_rows, write_recording
from coordinator.journal import read_versions


@pytest.fixture
def journal(federated):
    return federated.data_dir / "journal.db"


def rows(path):
    return [{**vars(row), "seq": 0} for row in read_rows(path)]


def test_info_counts_what_there_is_by_type(journal, alignfed):
    shown = json.loads(alignfed("recording", "info", journal, "--json").stdout)
    assert (shown["journal"], shown["versions"]) == (True, [0, 1, 2])
    assert shown["types"]["update/manifest"]["messages"] >= 2
    assert sum(kind["messages"] for kind in shown["types"].values()) == len(rows(journal))
    table = alignfed("recording", "info", journal).stdout
    assert "a journal" in table and "update/manifest" in table
    assert "alignfed/v1/cli/update/kitchen" in alignfed("recording", "info", journal, "--topics").stdout


def test_ls_finds_messages_and_show_decodes_one(journal, alignfed):
    listed = alignfed("recording", "ls", journal, "--type", "update/manifest", "--node", "kitchen", "--json")
    lines = [json.loads(line) for line in listed.stdout.splitlines()]
    assert {line["node"] for line in lines} == {"kitchen"}
    number = lines[0]["number"]
    shown = json.loads(alignfed("recording", "show", journal, number).stdout)
    assert shown["content"]["base_version"] == shown["version"] == 0
    assert "fault" not in shown
    asked = alignfed("recording", "show", journal, number, "--json")
    assert json.loads(asked.stdout) == shown
    assert alignfed("recording", "show", journal, number, "--json", "--raw").returncode == 2
    assert f"{number}  " in alignfed("recording", "ls", journal, "--version", "0").stdout
    assert alignfed("recording", "ls", journal, "--node", "nobody").stdout == ""


def test_show_of_a_message_that_is_not_there(journal, alignfed):
    refused = alignfed("recording", "show", journal, 99_999)
    assert (refused.returncode, "has no message 99999" in refused.stderr) == (1, True)


@pytest.mark.parametrize("name", ["out.jsonl", "out.mcap"])
def test_what_is_exported_is_imported_again_bit_for_bit(journal, alignfed, tmp_path, name):
    assert alignfed("recording", "export", journal, "--out", name).returncode == 0
    done = alignfed("recording", "import", name, "--out", "again.rec", "--json")
    assert json.loads(done.stdout)["messages"] == len(rows(journal))
    assert rows(tmp_path / "again.rec") == rows(journal)


def test_other_programs_files_are_imported(alignfed, tmp_path):
    with (tmp_path / "messages.csv").open("w", newline="") as file:
        csv.writer(file).writerow(["a/b", "aGk=", 1, False, 1700000000.0, 0.0])
    (tmp_path / "messages.txt").write_text("1700000000.000000001 a b/c 1 0 6869\n")
    assert alignfed("recording", "import", "messages.csv", "--format", "csv-base64", "--out", "1").returncode == 0
    assert alignfed("recording", "import", "messages.txt", "--out", "2").returncode == 0
    found = [(row.topic, row.payload) for name in "12" for row in read_rows(tmp_path / name)]
    assert found == [("a/b", b"hi"), ("a b/c", b"hi")]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("export", "r", "--out", "out.zip"), 2, "ends in .jsonl or .mcap"),
        (("import", "r", "--out", "new"), 2, "give --format"),
        (("import", "bad.txt", "--out", "new"), 1, "bad.txt, line 1: not what mosquitto_sub"),
        (("ls", "r", "--since", "yesterday"), 2, "is no time"),
        (("cut", "r", "--to-version", "3", "--out", "new"), 1, "has no version 3; it has none"),
        (("info", "nowhere"), 1, "does not exist"),
    ],
)
def test_what_cannot_be_done_is_said_and_leaves_nothing(alignfed, tmp_path, words, code, said):
    write_recording(tmp_path / "r", [Row(1, "a", b"")])
    (tmp_path / "bad.txt").write_text("no such format\n")
    refused = alignfed("recording", *words)
    assert refused.returncode == code
    assert said in refused.stderr
    assert not (tmp_path / "new").exists()


def test_a_cut_journal_replays_up_to_its_end(journal, alignfed, tmp_path):
    assert alignfed("recording", "cut", journal, "--to-version", 1, "--out", "short.db").returncode == 0
    replayed = alignfed("replay", "short.db", "--json")
    assert replayed.returncode == 0, replayed.stderr
    assert [version["agrees"] for version in json.loads(replayed.stdout)] == [True, True]
    assert [m.version for m in read_versions(tmp_path / "short.db")] == [0, 1]


def test_replay_stops_where_it_is_told_and_leaves_the_state(journal, alignfed, tmp_path):
    replayed = alignfed("replay", journal, "--until", 1, "--state", "state.json")
    assert replayed.returncode == 0
    assert len(replayed.stdout.splitlines()) == 2
    state = json.loads((tmp_path / "state.json").read_text())
    assert (state["head"]["version"], list(state["nodes"])) == (1, ["kitchen"])


def test_a_what_if_shows_a_table_and_says_what_it_is_not(journal, alignfed):
    shown = alignfed("replay", journal, "--strategy", "fedasync")
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"staleness +step +nodes", shown.stdout)
    assert "the base model is not asked" in shown.stderr
    alone = json.loads(alignfed("replay", journal, "--without", "kitchen", "--json").stdout)
    assert [version["nodes"] for version in alone["versions"]] == [[]]


def test_a_fuzzed_replay_reports_what_was_done_and_what_held(journal, alignfed):
    shown = alignfed("replay", journal, "--fuzz", 3, "--json")
    assert shown.returncode == 0, shown.stdout
    report = json.loads(shown.stdout)
    assert (report["seed"], report["violations"]) == (3, [])


def test_what_nodes_sent_goes_through_a_broker_again(journal, alignfed):
    with EmbeddedBroker() as broker, Client(broker.settings, "listening", subscriptions=["alignfed/#"]) as client:
        while not isinstance(client.next_event(30), Subscribed):
            pass
        address = broker.settings.address
        sent = json.loads(alignfed("replay", journal, "--through", address, "--lockstep", "--json").stdout)
        came = []
        while len(came) < sent["messages"]:
            event = client.next_event(30)
            assert event is not None
            if isinstance(event, Message):
                came.append((event.topic, event.payload))
                client.ack(event)
    updates = [(row.topic, row.payload) for row in read_rows(journal) if "/update/" in row.topic]
    assert came == updates
    assert sent["senders"] == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--fuzz 1 --without a", "--without and --fuzz exclude each other"),
        ("--fuzz 0 --recompute", "--fuzz and --recompute exclude each other"),
        ("--fuzz 0 --state s", "--fuzz and --state exclude each other"),
        ("--recompute --journal j", "--recompute and --journal exclude each other"),
        ("--strategy fedavg --through h", "--through and --strategy exclude each other"),
        ("--through h:1 --until 0", "--through and --until exclude each other: a recording is sent as it is"),
        ("--through h:1 --speed 2 --lockstep", "--lockstep and --speed exclude each other"),
        ("--through h --lockstep --coordinator c --everything", "--coordinator and --everything exclude each other"),
        ("--through h --coordinator c", "--coordinator needs --lockstep"),
        ("--coordinator c", "--coordinator needs --through and --lockstep"),
        ("--lockstep", "--lockstep needs --through"),
        ("--speed 2", "--speed goes with --through"),
        ("--config f", "--config goes with --through or --recompute"),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage_and_named(alignfed, words, said):
    refused = alignfed("replay", "never.rec", *words.split())
    assert refused.returncode == 2
    assert said in refused.stderr

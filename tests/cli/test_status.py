"""`alignfed status` and `trace` on what a federation of one node left behind, and with nobody to ask."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from coordinator.journal import read_updates
from coordinator.watch.status import Status


def test_status_reads_a_data_folder(alignfed, federated):
    shown = alignfed("status", "--config", federated.config, "--data-dir", federated.data_dir, "--json")
    status = Status.model_validate_json(shown.stdout)
    assert (status.head, status.finished, status.process) == (2, True, None)
    assert [(node.node, node.participation, node.liveness) for node in status.nodes] == [("kitchen", 2, "unknown")]
    assert [version.updates for version in status.versions] == [0, 1, 1]
    assert status.model_seconds["anchor"] > 0 and status.model_seconds["gate"] > 0
    assert sum(status.gate.values()) >= 1


def test_status_in_words_shows_nodes_and_versions(alignfed, federated):
    shown = alignfed("status", "--config", federated.config, "--data-dir", federated.data_dir)
    assert shown.returncode == 0
    assert "version 2" in shown.stdout and "kitchen" in shown.stdout and "100.0%" in shown.stdout


def test_settings_without_an_address_are_told_in_one_line_how_to_see_more(alignfed, federated):
    shown = alignfed("status", "--config", federated.config, ALIGNFED_COORDINATOR__DATA_DIR=str(federated.data_dir))
    assert shown.returncode == 0 and "version 2" in shown.stdout
    [line] = shown.stderr.splitlines()
    assert "--http HOST:PORT" in line and "coordinator.http" in line


def test_trace_follows_an_update_into_its_version(alignfed, federated):
    first, *_ = read_updates(federated.data_dir / "journal.db")
    folder = ("--config", federated.config, "--data-dir", federated.data_dir)
    told = json.loads(alignfed("trace", first.update_id, *folder, "--json").stdout)
    assert (told["node"], told["status"], told["went_into"]["version"]) == ("kitchen", "aggregated", 1)
    assert told["training_seconds"] > 0
    in_words = alignfed("trace", first.update_id[:8], *folder).stdout
    assert "trained from version 0: 1 steps" in in_words and "went into version 1" in in_words


def test_an_unknown_update_ends_with_what_to_do(alignfed, federated):
    folder = ("--config", federated.config, "--data-dir", federated.data_dir)
    assert alignfed("trace", "f" * 32, *folder).returncode == 1
    assert "hexadecimal digits" in alignfed("trace", "nonsense", *folder).stderr


def test_nobody_to_ask_is_said_with_the_way_out(alignfed, tmp_path):
    alone = alignfed("status", "--url", "http://127.0.0.1:1")
    assert alone.returncode == 1 and "nobody answers at 127.0.0.1:1" in alone.stderr and "--http" in alone.stderr
    empty = alignfed("status", "--data-dir", tmp_path)
    assert empty.returncode == 1 and "--data-dir" in empty.stderr
    assert alignfed("status", "--url", "ftp://x").returncode == 2


def test_an_answer_that_is_no_status_is_said_as_such(alignfed):
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:  # which knows no GET
        threading.Thread(target=other.handle_request).start()
        refused = alignfed("status", "--url", f"http://127.0.0.1:{other.server_port}")
    assert refused.returncode == 1
    assert f"what answers at 127.0.0.1:{other.server_port} says 501" in refused.stderr
    assert "nobody answers" not in refused.stderr

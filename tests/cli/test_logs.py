"""Logs are JSON for programs and lines for people, and say which update, node and version they are about."""

import json
import os
import pty
import subprocess
import sys

SPEAK = """
import logging, logs
logs.set_up("info", node="attic")
log = logging.getLogger("edge_node")
log.info("update %s accepted", "abcd", extra={"update": "abcdef", "version": 3})
log.debug("not said")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("it broke")
"""


def test_a_program_reads_json_with_ids():
    done = subprocess.run([sys.executable, "-c", SPEAK], capture_output=True, text=True, check=True)
    accepted, broke = map(json.loads, done.stderr.splitlines())
    assert accepted.pop("timestamp").endswith("Z")
    assert accepted == {
        "message": "update abcd accepted",
        "update": "abcdef",
        "version": 3,
        "node": "attic",
        "level": "info",
        "logger": "edge_node",
    }
    assert "ZeroDivisionError" in broke["exception"]


def test_a_person_reads_a_line():
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", SPEAK], stderr=theirs, check=True)
    os.close(theirs)
    said = os.read(ours, 10_000).decode()
    os.close(ours)
    assert "update abcd accepted" in said.splitlines()[0]
    assert "{" not in said.splitlines()[0]


def test_the_log_of_a_federation_names_nodes_updates_and_versions(federated):
    lines = [json.loads(line) for line in federated.log.splitlines() if line.startswith("{")]
    assert {"kitchen"} == {line["node"] for line in lines if "node" in line}
    assert any(len(line.get("update", "")) == 32 for line in lines)
    assert {1, 2} <= {line["version"] for line in lines if "version" in line}

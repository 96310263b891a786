"""The search itself: a million executions find nothing, and what should be found is."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("atheris", reason="atheris is there for Linux on x86-64 alone")

MILLION = 1_000_000
PATIENCE_S = 600

# a decoder with a fault behind one letter
FRAIL = """
import json, os, sys, time
from pathlib import Path
from fuzz.fleet import search_all
from fuzz.target import Target

def check(data: bytes) -> None:
    if data[:1] == b"!":
        {fault}

def plain(data, most, seed, mutate):
    return mutate(data, most)

folder = Path(sys.argv[1])
found = search_all([Target("frail", check, 1, plain), Target("sound", len, 1)], runs=100_000, seed=1, processes=2,
                   corpus=folder / "corpus", crashes=folder / "crashes")
print(json.dumps(found.summary()))
"""


def test_a_million_executions_find_nothing(tmp_path: Path) -> None:
    words = ("--runs", str(MILLION), "--seed", "1", "--out", str(tmp_path / "crashes"))
    done = subprocess.run(
        [sys.executable, "-m", "fuzz", *words], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr[-8000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["executions"] >= MILLION and found["crashes"] == 0
    assert all(found["targets"].values())
    assert not (tmp_path / "crashes").exists()


def search_of_the_frail(fault: str, folder: Path) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", FRAIL.format(fault=fault), str(folder)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_an_input_that_breaks_a_decoder_is_found_and_kept_and_how_to_run_it_again_is_said(tmp_path: Path) -> None:
    found, said = search_of_the_frail("raise KeyError('surprise')", tmp_path)
    assert (found["crashes"], list(found["inputs"])) == (1, ["frail"])
    kept = Path(found["inputs"]["frail"])
    assert kept.read_bytes().startswith(b"!")
    assert f"python -m fuzz --again frail {kept}" in said and "KeyError: 'surprise'" in said
    assert found["targets"]["sound"] == 50_000 > found["targets"]["frail"]


@pytest.mark.parametrize("fault", ["os.abort()", "hog = b'x' * (900 << 20); time.sleep(4)"])
def test_a_decoder_that_ends_the_process_or_takes_its_memory_is_found_too(tmp_path: Path, fault: str) -> None:
    found, _ = search_of_the_frail(fault, tmp_path)
    assert list(found["inputs"]) == ["frail"]


def test_an_interrupted_search_says_how_far_it_came_and_leaves_nothing_running(tmp_path: Path) -> None:
    words = ("--runs", "1000000000", "--only", "topic", "gguf", "--out", str(tmp_path / "crashes"))
    search = subprocess.Popen(
        [sys.executable, "-m", "fuzz", *words], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    children = Path(f"/proc/{search.pid}/task/{search.pid}/children")
    deadline = time.monotonic() + PATIENCE_S
    while len(searching := children.read_text().split()) < 2:
        assert search.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1)
    os.killpg(search.pid, signal.SIGINT)  # as a terminal does
    out, _ = search.communicate(timeout=PATIENCE_S)
    found = json.loads(out.splitlines()[-1])
    assert search.returncode == 130 and found["interrupted"] and found["crashes"] == 0
    assert found["executions"] > 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in searching)
    assert not any(Path(f"/dev/shm/alignfed-fuzz-{pid}").exists() for pid in searching)


def test_one_input_is_run_again_with_its_outcome(tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(b"alignfed/v1/home/global/head")
    words = ("--again", "topic", str(tmp_path / "input"))
    done = subprocess.run([sys.executable, "-m", "fuzz", *words], capture_output=True, text=True, check=True)
    assert done.stdout == f"topic takes {tmp_path / 'input'} as it should\n"

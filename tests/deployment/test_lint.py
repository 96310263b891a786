"""What runs code that a file brings along does not pass `make check`, and the message says why."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "code",
    [
        'import torch\n\ntorch.load("weights.pt")\n',
        'from pickle import loads\n\nloads(b"")\n',
        'import pickle\n\npickle.load(open("state", "rb"))\n',
        'import numpy as np\n\nnp.load("deltas.npz", allow_pickle=True)\n',
    ],
)
def test_what_unpickles_is_refused_with_the_reason(code: str) -> None:
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--select",
        "TID251",
        "--stdin-filename",
        "coordinator/new.py",
        "-",
    ]
    ran = subprocess.run(command, input=code, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)
    assert ran.returncode == 1
    assert "code here" in ran.stdout

"""The systemd unit of a node is one that systemd takes, and that leaves little to an attacker."""

import shutil
import subprocess
from pathlib import Path

import pytest

from edge_node.unit import NAME, hidden, unit

PYTHON, CONFIG = Path("/opt/alignfed/bin/python3"), Path("/etc/alignfed/alignfed.toml")
MOST_EXPOSURE = 3.0

with_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


@with_systemd
def test_systemd_judges_the_service_to_be_well_protected(tmp_path):
    (tmp_path / NAME).write_text(unit(PYTHON, CONFIG))
    threshold = f"--threshold={10 * MOST_EXPOSURE:.0f}"
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", threshold, "--no-pager", tmp_path / NAME],
        capture_output=True,
        text=True,
        check=False,
    )
    assert judged.returncode == 0, judged.stdout[-500:] + judged.stderr


@with_systemd
def test_systemd_knows_every_word_of_the_unit(tmp_path):
    program = Path(shutil.which("true"))
    (tmp_path / NAME).write_text(unit(program, CONFIG))
    verified = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / NAME], capture_output=True, text=True, check=False
    )
    assert NAME not in verified.stderr  # it also speaks of the machine's other units


@pytest.mark.parametrize("config", ["alignfed.toml", "/etc/my node.toml", "/etc/%h.toml", "/etc/a\nExecStart=/bin/sh"])
def test_a_path_that_systemd_would_read_as_something_else_is_refused(config):
    with pytest.raises(ValueError, match="absolute path without spaces"):
        unit(PYTHON, Path(config))


def test_what_the_service_cannot_see_is_known_beforehand():
    assert hidden(Path("/home/ann/.venv/bin/python3")) == Path("/home")
    assert hidden(PYTHON) is None

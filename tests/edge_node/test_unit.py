"""The systemd unit of a node is one that systemd takes, and that leaves little to an attacker."""

import shutil
import subprocess
from pathlib import Path

import pytest

from broker.federation_keys import enrol, init
from edge_node.unit import NAME, hidden, unit

PYTHON, CONFIG = Path("/opt/alignfed/bin/python3"), Path("/etc/alignfed/alignfed.toml")
KEYS = Path("/etc/alignfed/kitchen")
MOST_EXPOSURE = 3.0

with_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


@with_systemd
def test_systemd_judges_the_service_to_be_well_protected(tmp_path):
    (tmp_path / NAME).write_text(unit(PYTHON, CONFIG, KEYS))
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
    (tmp_path / NAME).write_text(unit(program, CONFIG, KEYS))
    verified = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / NAME], capture_output=True, text=True, check=False
    )
    assert NAME not in verified.stderr  # it also speaks of the machine's other units


@pytest.mark.parametrize("config", ["alignfed.toml", "/etc/my node.toml", "/etc/%h.toml", "/etc/a\nExecStart=/bin/sh"])
def test_a_path_that_systemd_would_read_as_something_else_is_refused(config):
    with pytest.raises(ValueError, match="absolute path without spaces"):
        unit(PYTHON, Path(config))


def test_systemd_hands_the_service_every_file_of_a_bundle_and_says_where(tmp_path):
    init(tmp_path, "home", ["localhost"], days=2)
    bundle = enrol(tmp_path, "kitchen", days=2)
    text = unit(PYTHON, CONFIG, KEYS)
    assert all(f"LoadCredential={file.name}:{KEYS / file.name}\n" in text for file in bundle.iterdir())
    assert f"Environment=ALIGNFED_SECURITY__KEYS=/run/credentials/{NAME}\n" in text
    assert "LoadCredential" not in unit(PYTHON, CONFIG)


def test_what_the_service_cannot_see_is_known_beforehand():
    assert hidden(Path("/home/ann/.venv/bin/python3")) == Path("/home")
    assert hidden(PYTHON) is None

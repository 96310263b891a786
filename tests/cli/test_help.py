"""Help is there for every command, and comes without loading what it does not need."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = (
    "demo",
    "broker",
    "coordinator",
    "edge",
    "edge data",
    "edge install",
    "stack",
    "health",
    "adapters",
    "adapters list",
    "adapters show",
    "adapters export",
    "adapters verify",
    "adapters rollback",
    "keys",
    "keys init",
    "keys enrol",
    "keys home-assistant",
    "keys revoke",
    "keys rotate",
    "keys list",
    "nodes",
    "nodes list",
    "nodes show",
    "nodes quarantine",
    "nodes forgive",
    "codec",
    "codec list",
    "codec encode",
    "codec decode",
    "codec info",
    "record",
    "recording",
    "recording info",
    "recording ls",
    "recording show",
    "recording cut",
    "recording export",
    "recording import",
    "replay",
    "doctor",
    "simulate",
    "compare",
    "chat",
    "status",
    "trace",
)

REPORTING = (
    "edge data",
    "adapters list",
    "adapters show",
    "adapters verify",
    "adapters rollback",
    "keys init",
    "keys enrol",
    "keys revoke",
    "keys rotate",
    "keys list",
    "nodes list",
    "nodes show",
    "nodes quarantine",
    "nodes forgive",
    "codec list",
    "codec info",
    "record",
    "recording info",
    "recording ls",
    "recording show",
    "recording cut",
    "recording export",
    "recording import",
    "replay",
    "doctor",
    "status",
    "trace",
)


def test_help_lists_every_command(alignfed):
    shown = alignfed("--help")
    listed = re.findall(r"^  ([a-z]+) ", shown.stdout.partition("Commands:\n")[2], flags=re.MULTILINE)
    assert shown.returncode == 0
    assert set(listed) == {command.split()[0] for command in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_an_example_and_its_exit_codes(command, alignfed):
    shown = alignfed(*command.split(), "--help")
    assert shown.returncode == 0
    assert f"Example:\n    alignfed {command}" in shown.stdout
    assert "Exit codes:\n    0  " in shown.stdout


@pytest.mark.parametrize("command", REPORTING)
def test_every_command_that_reports_takes_json(command, alignfed):
    assert "  --json " in alignfed(*command.split(), "--help").stdout


@pytest.mark.parametrize(
    "command", [name for name in COMMANDS if name not in ("adapters", "codec", "keys", "nodes", "recording")]
)
def test_the_example_of_every_command_is_understood(command, alignfed):
    example = re.search(r"Example:\n +alignfed (.*)", alignfed(*command.split(), "--help").stdout)
    assert alignfed(*example[1].split(), "--help").returncode == 0


def test_help_loads_nothing_but_the_command_line_itself():
    loaded = modules_loaded_by("import alignfed; alignfed.main()") - modules_loaded_by("pass")
    assert loaded - sys.stdlib_module_names == {"alignfed", "annotated_doc", "commands", "shellingham", "typer"}


def test_the_version_is_that_of_the_package(alignfed):
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    version = re.search(r'^version = "(.*)"', pyproject, flags=re.MULTILINE)[1]
    assert alignfed("--version").stdout == f"alignfed {version}\n"


def test_the_module_is_the_same_program_as_the_command(alignfed):
    module = subprocess.run([sys.executable, "-m", "alignfed", "--help"], capture_output=True, text=True, check=True)
    assert module.stdout == alignfed("--help").stdout


@pytest.mark.parametrize(
    "words",
    [("no-such-command",), ("broker", "--no-such-flag"), ("demo", "--nodes", "1"), ("demo", "--http", "nowhere")],
)
def test_wrong_usage_exits_with_2_and_points_to_the_help(words, alignfed):
    refused = alignfed(*words)
    assert refused.returncode == 2
    assert "--help" in refused.stderr


def modules_loaded_by(code: str) -> set[str]:
    """Top-level names of all that `alignfed --help` has loaded at its end, when `code` is what it runs."""
    listing = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); "
    ran = subprocess.run([sys.executable, "-c", listing + code, "--help"], capture_output=True, text=True, check=True)
    return {module.partition(".")[0] for module in ran.stderr.split()}

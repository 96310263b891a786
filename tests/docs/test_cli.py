"""docs/cli.md is what the commands say of themselves."""

import os
import re
import subprocess
import sys
from functools import cache


def test_the_help_of_every_command_is_in_the_document(generated):
    parts = [f"## {' '.join(words)}\n\n```text\n{_help(words)}\n```" for words in _commands(("alignfed",))]
    generated("cli.md", "commands", "\n\n".join(parts))


def _commands(words):
    """The command and all below it, as they are listed in its help."""
    yield words
    _, _, listed = _help(words).partition("\nCommands:\n")
    for name in re.findall(r"^  ([a-z-]+) ", listed.partition("\n\n")[0], flags=re.MULTILINE):
        yield from _commands((*words, name))


@cache
def _help(words):
    environment = {**os.environ, "COLUMNS": "80"}
    command = [sys.executable, "-m", *words, "--help"]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return "\n".join(line.rstrip() for line in shown.strip().splitlines())

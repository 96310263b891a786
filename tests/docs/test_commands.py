"""What a person copies from README.md and docs/ works: every command line parses, every settings file is accepted."""

import re
import shlex
import textwrap
import tomllib
from itertools import groupby
from pathlib import Path

import pytest
import typer

import alignfed
from broker.security import refuse_open_broker
from configuration import Configuration, from_flags, load

ROOT = Path(__file__).parents[2]
MADE_BY_A_TEST = "cli.md"  # of what the commands say of themselves
PAGES = [ROOT / "README.md", *(path for path in sorted((ROOT / "docs").glob("*.md")) if path.name != MADE_BY_A_TEST)]
STARTED_WITH_A_BROKER = {"coordinator", "edge"}

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@every_page
def test_every_command_line_parses_and_starts_nothing_that_refuses_its_broker(page, monkeypatch):
    for environment, words in command_lines(page):
        context = parsed(words)
        if context.command.name in STARTED_WITH_A_BROKER:
            with monkeypatch.context() as patched:
                for name, value in environment.items():
                    patched.setenv(name, value)
                settings = load(None, from_flags(None, context.params["broker"]))
            refuse_open_broker(settings.security, settings.broker)


@every_page
def test_every_command_that_prose_names_is_there_with_its_options(page):
    named = [code.split() for code in re.findall(r"`alignfed ([^`]+)`", page.read_text(encoding="utf-8"))]
    assert [words for words in named if unknown_options(words)] == []


@every_page
def test_every_settings_file_is_accepted_with_the_broker_that_it_names(page, tmp_path):
    for number, text in enumerate(settings_files(page)):
        file = tmp_path / f"{number}.toml"
        file.write_text(text, encoding="utf-8")
        settings = load(file, _what_a_part_leaves_out(tomllib.loads(text)))
        refuse_open_broker(settings.security, settings.broker)


def test_there_is_something_to_look_at():
    assert sum(len(list(command_lines(page))) for page in PAGES) > 45
    assert sum(len(list(settings_files(page))) for page in PAGES) > 10
    with pytest.raises(Exception, match="No such option: --nonsense"):
        parsed(["keys", "enrol", "kitchen", "--nonsense"])
    assert unknown_options(["keys", "enrol", "NODE", "--nonsense"]) == {"--nonsense"}
    assert unknown_options(["nonsense"]) == {"nonsense"}


def command_lines(page):
    """(environment, words) of every `alignfed` command in the code of a page."""
    for block in code_blocks(page):
        for line in block.replace("\\\n", " ").splitlines():
            code, *_explained = re.split(r" {2,}(?=\w+ \w+)", line)  # trust.md says beside a command what it does
            if re.search(r"(^|[ /])alignfed ", code):
                yield from _commands_of(code)


def _commands_of(line):
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    for is_separator, group in groupby(lexer, lambda word: set(word) <= set("();<>|&")):
        words = list(group)
        if not is_separator and (found := [n for n, word in enumerate(words) if Path(word).name == "alignfed"]):
            environment = dict(word.split("=", 1) for word in words[: found[0]] if word.startswith("ALIGNFED_"))
            yield environment, words[found[0] + 1 :]


def parsed(words):
    """The last command of these words, with its options; an exception where there is none such."""
    command = typer.main.get_command(alignfed.app)
    context = command.make_context("alignfed", list(words))
    while hasattr(command, "resolve_command") and (rest := [*context._protected_args, *context.args]):
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)
    return context


def unknown_options(words):
    """What is among these words, a command cut short, that the command does not have."""
    command = typer.main.get_command(alignfed.app)
    rest = list(words)
    while rest and (below := getattr(command, "commands", {}).get(rest[0])) is not None:
        command = below
        rest.pop(0)
    if rest == list(words):
        return {words[0]}
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    return {word for word in rest if word.startswith("--")} - known


def settings_files(page):
    """Every block of settings, and every settings file that a command writes."""
    sections = "|".join(Configuration.model_fields)
    for block in code_blocks(page):
        written = re.findall(r"<<'END'\n(.*?)^END$", block, flags=re.DOTALL | re.MULTILINE)
        for text in written or [block]:
            if re.match(rf"\[({sections})[\].]|({sections})(\.\w+)* = ", text):
                yield text


def _what_a_part_leaves_out(values):
    """The two settings without which there is no node, where a section of one is shown alone."""
    edge = values.get("edge", {})
    missing = {name: "kitchen" for name in ("node", "data") if name not in edge}
    return {"edge": missing} if edge and missing else {}


def code_blocks(page):
    """The code of a page, fenced or indented, without what is around it."""
    text, fence = page.read_text(encoding="utf-8"), r"^( *)```\w*\n(.*?)^ *```"
    yield from (textwrap.dedent(code) for _, code in re.findall(fence, text, flags=re.DOTALL | re.MULTILINE))
    prose = re.sub(fence, "", text, flags=re.DOTALL | re.MULTILINE)
    for block in re.findall(r"(?:^ {4,}\S.*\n|^\n(?= {4,}\S))+", prose, flags=re.MULTILINE):
        yield textwrap.dedent(block).strip("\n") + "\n"

"""`alignfed replay`: make versions again from what was recorded, as it was, otherwise, or through a broker."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from commands import replay_modes
from commands.console import USAGE, Config, Json, ending, fail
from commands.replay_modes import Options

app = typer.Typer()


@app.command(
    epilog=ending(
        "alignfed replay alignfed-data/coordinator/journal.db",
        "1  a version differs, there is none, or the fuzzed core broke a promise",
    )
)
def replay(
    recording: Annotated[Path, typer.Argument(metavar="RECORDING", help="A coordinator's journal, or a recording.")],
    journal: Annotated[
        Path | None, typer.Option(metavar="FILE", help="For a recording: the journal that has the terms.")
    ] = None,
    until: Annotated[int | None, typer.Option(metavar="VERSION", min=0, help="Stop at this version.")] = None,
    without: Annotated[
        list[str] | None, typer.Option("--without", metavar="NODE", help="What if it had not been there? Repeatable.")
    ] = None,
    strategy: Annotated[str | None, typer.Option(metavar="NAME", help="What if this had been the strategy?")] = None,
    fuzz: Annotated[
        int | None, typer.Option(metavar="SEED", help="Duplicate, drop, reorder and cut messages short on the way.")
    ] = None,
    through: Annotated[
        str | None, typer.Option(metavar="HOST[:PORT]", help="Publish what nodes sent to this broker, each as itself.")
    ] = None,
    speed: Annotated[
        float | None, typer.Option(min=0.001, metavar="X", help="With --through: so many times as fast.")
    ] = None,
    lockstep: Annotated[
        bool, typer.Option("--lockstep", help="With --through: the next when the last is acknowledged.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--everything", help="With --through: also what the coordinator published.")
    ] = False,
    coordinator: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="With --lockstep: be the coordinator too, there, and compare."),
    ] = None,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Ask the base model again, and say how far its answers are.")
    ] = False,
    config: Config = None,
    state: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the coordinator's state at the end there, as JSON.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make every version again.

    From a coordinator's journal: exactly, with the base model's recorded answers; every digest is compared. From a
    recording of topics: each version is checked against the updates in it, and made again where the base model had no
    part in it; what cannot be checked is said.

    --without and --strategy show other versions, made without the base model: good for finding causes, not for results.
    --through HOST --lockstep --coordinator FOLDER lets a coordinator's service take in what is sent through the
    broker, while all else that happened, the base model's answers too, comes from the journal in its place.
    --fuzz checks that the coordinator's core never fails, whatever the network does.
    --recompute asks the base model of the coordinator's settings (--config) every recorded question again; from a
    recording of topics it makes the versions again with the answers of now.
    """
    options = Options(
        recording=recording,
        journal=journal,
        until=until,
        without=tuple(without or ()),
        strategy=strategy,
        fuzz=fuzz,
        through=through,
        speed=speed,
        lockstep=lockstep,
        everything=everything,
        coordinator=coordinator,
        recompute=recompute,
        config=config,
        state=state,
        as_json=as_json,
    )
    mode_of(options).run(options)


@dataclass(frozen=True)
class Mode:
    """One way to replay: the options that ask for it, those that it needs and those that it takes besides."""

    asked_by: tuple[str, ...]
    needs: tuple[str, ...]
    takes: tuple[str, ...]
    why: str  # it takes no others
    run: Callable[[Options], None]


MODES = (  # the first that is asked for
    Mode(
        asked_by=("coordinator",),
        needs=("through", "lockstep"),
        takes=("until", "config"),
        why="the coordinator takes in what nodes sent through the broker, one after the other, and publishes the rest",
        run=replay_modes.in_step,
    ),
    Mode(
        asked_by=("lockstep",),
        needs=("through",),
        takes=("everything", "config"),
        why="a recording is sent as it is, the next message when the broker has the last",
        run=replay_modes.through,
    ),
    Mode(
        asked_by=("through",),
        needs=(),
        takes=("speed", "everything", "config"),
        why="a recording is sent as it is",
        run=replay_modes.through,
    ),
    Mode(
        asked_by=("without", "strategy"),
        needs=(),
        takes=("journal", "until", "state"),
        why="other versions are made, without broker and base model",
        run=replay_modes.what_if,
    ),
    Mode(
        asked_by=("fuzz",),
        needs=(),
        takes=("journal", "until"),
        why="what is damaged on the way is only looked at for broken promises, and has no state to write",
        run=replay_modes.fuzz,
    ),
    Mode(
        asked_by=("recompute",),
        needs=(),
        takes=("until", "config"),
        why="the recorded questions are asked again by the settings, and there is no state to write",
        run=replay_modes.recompute,
    ),
)
AS_IT_WAS = Mode((), (), ("journal", "until", "state"), "versions are made again as they were", replay_modes.as_it_was)


def mode_of(options: Options) -> Mode:
    """The way to replay that these options ask for; options that do not belong to it end the process."""
    given = [field.name for field in fields(Options) if field.name not in ("recording", "as_json")]
    given = [name for name in given if _is_given(getattr(options, name))]
    mode = next((mode for mode in MODES if set(mode.asked_by) & set(given)), AS_IT_WAS)
    asking = [name for name in mode.asked_by if name in given]
    if missing := [name for name in mode.needs if name not in given]:
        fail(f"--{asking[0]} needs {_named(missing)}: {mode.why}", USAGE)
    for name in given:
        if name not in (*mode.asked_by, *mode.needs, *mode.takes):
            _refuse(name, asking, mode)
    return mode


def _refuse(name: str, asking: list[str], mode: Mode) -> NoReturn:
    if asking:
        fail(f"--{asking[0]} and --{name} exclude each other: {mode.why}", USAGE)
    others = [other.asked_by[0] for other in MODES if name in other.takes and not other.needs]
    fail(f"--{name} goes with {_named(others, ' or ')}: without, {mode.why}", USAGE)


def _is_given(value: object) -> bool:
    return value is not None and value is not False and value != ()


def _named(names: list[str], between: str = " and ") -> str:
    return between.join(f"--{name}" for name in names)

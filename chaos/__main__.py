"""`make chaos KILLS=1000 SEED=1`: kill, hinder, check, and print what was found as JSON on the last line.

Exit codes: 0 every promise held and the control lost updates; 1 not so, and the folder is kept; 130 interrupted.
"""

import json
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from broker.embedded import find_mosquitto
from chaos.checker import Findings, summary_of, together
from chaos.plan import Fault
from chaos.run import Options, Round, make_model, rounds


def main(
    kills: Annotated[int, typer.Option(min=1, help="Processes to kill in all.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the plan of faults.")] = 1,
    minutes: Annotated[float, typer.Option(min=1, help="No fault begins after so long.")] = 120,
    kills_per_round: Annotated[int, typer.Option(min=10, help="After so many, a new federation.")] = 50,
    keep: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Keep all files there, whatever happens.")] = None,
) -> None:
    """Kill and hinder a federation of real processes, and check what it has left behind."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if find_mosquitto() is None:
        print("chaos needs mosquitto: apt install mosquitto", file=sys.stderr)
        sys.exit(2)
    folder = keep or Path(tempfile.mkdtemp(prefix="alignfed-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    options = Options(kills, seed, kills_per_round, until=time.monotonic() + 60 * minutes)
    done, code = list[Round](), 130
    try:
        _run(options, folder, done)
        code = 0 if _holds(done, kills) else 1
    except KeyboardInterrupt:
        print(f"interrupted; the files are in {folder}", file=sys.stderr)
    if code == 1:
        print(f"NOT SOUND with seed {seed}; the files are in {folder}", file=sys.stderr)
    if code == 0 and keep is None:
        shutil.rmtree(folder)
    if done:
        print(json.dumps(summary(done, seed)))
    sys.exit(code)


def summary(done: list[Round], seed: int) -> dict[str, object]:
    """What a run has shown, for programs."""
    all_ = together([one.findings for one in done])
    return {
        "seed": seed,
        "kills": all_.kills | {"all": sum(all_.kills.values())},
        "kills_by_way": all_.ways,
        "updates": all_.updates,
        "versions": all_.versions,
        "lost": all_.lost,
        "used_twice": all_.used_twice,
        "gaps": all_.gaps,
        "forks": all_.forks,
        "chain_faults": all_.chain_faults,
        "poisoned": all_.poisoned,
        "replay_faults": all_.replay_faults,
        "published_frozen": all_.published_frozen,
        "recovery_seconds": summary_of([one for times in all_.recoveries.values() for one in times]),
        "recovery_seconds_by_target": {target: summary_of(times) for target, times in all_.recoveries.items()},
        "control_updates": all_.control_updates,
        "control_lost": all_.control_lost,
        "dropped": all_.dropped,
        "ended_by_itself": all_.ended,
        "stalled": [one.stalled for one in done if one.stalled],
        "left_out": sorted({words for one in done for words in one.left_out}),
        "because": all_.because,
    }


def _run(options: Options, folder: Path, done: list[Round]) -> None:
    """Add round after round to what is done, so that an interrupt leaves something to tell."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("kills", total=options.kills)

        def progress(fault: Fault, kills: int, seconds: float) -> None:
            before = sum(sum(one.findings.kills.values()) for one in done)
            bar.update(task, completed=before + kills)
            if not console.is_terminal:
                print(
                    f"{before + kills}/{options.kills} kills, {seconds:.1f} s for {fault}", file=sys.stderr, flush=True
                )

        for one in rounds(options, folder, make_model(folder / "model"), progress):
            done.append(one)
            bar.console.print(
                f"round {len(done)}: {_line(one.findings)}{f'; STALLED: {one.stalled}' if one.stalled else ''}"
            )
            if one.stalled or not one.findings.is_sound:
                break


def _line(found: Findings) -> str:
    times = [one for times in found.recoveries.values() for one in times]
    return (
        f"{sum(found.kills.values())} kills, {found.updates} updates, {found.versions} versions, lost {found.lost}, "
        f"used twice {found.used_twice}, gaps {found.gaps}, forks {found.forks}, recovery {summary_of(times)}, "
        f"the control lost {found.control_lost} of {found.control_updates}"
    )


def _holds(done: list[Round], kills: int) -> bool:
    all_ = together([one.findings for one in done])
    went_through = sum(all_.kills.values()) >= kills and not any(one.stalled for one in done)
    return went_through and all_.is_sound and all_.control_lost > 0


if __name__ == "__main__":
    typer.run(main)

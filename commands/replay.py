"""`alignfed replay`: make every version again from what was recorded."""

import json
from pathlib import Path

import typer

from commands.console import FAILED, Json, ending, fail

app = typer.Typer()


@app.command(
    epilog=ending("alignfed replay alignfed-data/coordinator/journal.db", "1  a digest differs, or there is no version")
)
def replay(journal: Path, as_json: Json = False) -> None:
    """Make every version again, from a journal.

    Prints one line per version: the recorded digest, the replayed one, and whether they agree.
    """
    from coordinator.replay import replay as replay_journal

    versions = []
    for one in replay_journal(journal):
        versions.append({**vars(one), "agrees": one.agrees})
        if not as_json:
            verdict = "ok" if one.agrees else "differs"
            print(f"version {one.version}  recorded {one.recorded}  replayed {one.replayed}  {verdict}", flush=True)
    if as_json:
        print(json.dumps(versions, indent=2))
    if not versions:
        fail(f"{journal} holds no version", FAILED)
    differing = sum(not version["agrees"] for version in versions)
    if differing:
        fail(f"{differing} of {len(versions)} versions differ", FAILED)

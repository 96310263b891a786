"""The folder of one run: where everything lies, and each process's configuration file, written from real settings.

| below runs/2026-11-22T14-03-05/ | |
|---|---|
| coordinator.toml, home-1.toml ... | what each process was started with |
| data/home-1.jsonl ... | the homes' private commands |
| data/calibration.jsonl, data/held_out.jsonl | the coordinator's own commands, and those of the examination |
| coordinator/journal.db, coordinator/adapters/ | what the coordinator was told, and what it published |
| nodes/home-1/ ... | each node's own folder |
| keys/ | certificates and signing keys of this run, where mosquitto is the broker |
| logs/home-1.log ... | what each process said |
| adapter/ | what the nodes serve in the end, as a PEFT folder |
| report.json, report.html | what came of it |
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

FEDERATION = "home"


@dataclass(frozen=True)
class Workplace:
    """Paths below the folder of one run."""

    root: Path

    @property
    def coordinator(self) -> Path:
        """The coordinator's data folder."""
        return self.root / "coordinator"

    @property
    def journal(self) -> Path:
        """Everything the coordinator was told, in order."""
        return self.coordinator / "journal.db"

    @property
    def adapters(self) -> Path:
        """The registry of global versions."""
        return self.coordinator / "adapters"

    @property
    def held_out(self) -> Path:
        """The commands that no home has."""
        return self.root / "data" / "held_out.jsonl"

    @property
    def calibration(self) -> Path:
        """The coordinator's own commands: of no node, and not held out."""
        return self.root / "data" / "calibration.jsonl"

    @property
    def broker(self) -> Path:
        """What the broker keeps."""
        return self.root / "broker"

    @property
    def keys(self) -> Path:
        """The federation's keys, made for this run."""
        return self.root / "keys"

    def data(self, node: str) -> Path:
        """A home's private commands."""
        return self.root / "data" / f"{node}.jsonl"

    def node(self, node: str) -> Path:
        """A node's own folder."""
        return self.root / "nodes" / node

    def config(self, name: str) -> Path:
        """The configuration file of one process."""
        return self.root / f"{name}.toml"

    def log(self, name: str) -> Path:
        """What one process says."""
        return self.root / "logs" / f"{name}.log"


def make_workplace(runs: Path, now: datetime) -> Workplace:
    """A new folder below `runs` named after the time, with `runs/latest` pointing to it."""
    stem = f"{now:%Y-%m-%dT%H-%M-%S}"
    root, number = runs / stem, 1
    while root.exists():  # another run began in the same second
        number += 1
        root = runs / f"{stem}-{number}"
    for folder in ("data", "logs", "coordinator", "nodes"):
        (root / folder).mkdir(parents=True)
    _point_latest(runs, root.name)
    return Workplace(root)


def write_config(path: Path, federation: str, sections: Mapping[str, BaseModel]) -> None:
    """Write an alignfed.toml that says exactly these settings; ValueError for a None that a default would replace."""
    values = {}
    for name, settings in sections.items():
        values[name] = settings.model_dump(mode="json", exclude_none=True)  # TOML has no word for None
        if type(settings).model_validate(values[name]) != settings:
            raise ValueError(f"[{name}] cannot be written: a setting is None and its default is not")
    write_sections(path, federation, values)


def write_sections(path: Path, federation: str, sections: Mapping[str, Mapping[str, Any]]) -> None:
    """Write an alignfed.toml with these sections, whose values JSON could hold."""
    lines = [f"federation = {_toml(federation)}"]
    for name, values in sections.items():
        lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in values.items())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        entries = ", ".join(f"{key} = {_toml(entry)}" for key, entry in value.items())
        return f"{{{entries}}}"
    if isinstance(value, list):
        return f"[{', '.join(_toml(entry) for entry in value)}]"
    return json.dumps(value, ensure_ascii=False)  # texts, numbers and truth values are written alike in both


def _point_latest(runs: Path, name: str) -> None:
    latest, new = runs / "latest", runs / f".latest-{name}"
    if latest.is_symlink() or not latest.exists():
        new.symlink_to(name)
        new.replace(latest)

"""What the machine is at, read from the system: load, temperature, battery, the local clock.

Drivers are many, and their files may be missing, empty or absurd: what cannot be read is a reading that there is
not. It decides nothing.
"""

import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

from edge_node.policy import Conditions

SYS = Path("/sys")
COLDEST_C, HOTTEST_C = -50.0, 200.0  # a sensor that says more is broken, and some are


def conditions(examples: int | None, system: Path = SYS) -> Conditions:
    """Everything there is to read now; `examples` are the node's own to count."""
    local = time.localtime()
    return Conditions(
        load=_load(),
        temperature_c=max(_temperatures(system), default=None),
        battery_percent=min(_discharging(system), default=None),
        minute=60 * local.tm_hour + local.tm_min,
        examples=examples,
    )


def _load() -> float | None:
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except OSError:  # this system has none
        return None


def _temperatures(system: Path) -> Iterator[float]:
    for path in sorted(system.glob("class/thermal/thermal_zone*/temp")):
        celsius = _number(path) / 1000
        if COLDEST_C < celsius < HOTTEST_C:
            yield celsius


def _discharging(system: Path) -> Iterator[float]:
    for supply in sorted(system.glob("class/power_supply/*")):
        percent = _number(supply / "capacity")
        if _text(supply / "type") == "Battery" and _text(supply / "status") == "Discharging" and 0 <= percent <= 100:
            yield percent


def _number(path: Path) -> float:
    """A file's number; NaN, which is within no bounds, where there is none."""
    try:
        return float(_text(path))
    except ValueError:
        return math.nan


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):  # drivers answer a read with errors of all kinds
        return ""

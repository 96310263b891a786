"""Readings from files as drivers write them."""

from pathlib import Path

import pytest

from edge_node.machine import conditions


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """An empty /sys."""
    return tmp_path


def sensor(system: Path, number: int, text: str) -> None:
    folder = system / "class" / "thermal" / f"thermal_zone{number}"
    folder.mkdir(parents=True)
    (folder / "temp").write_text(text)


def supply(system: Path, name: str, **files: str) -> None:
    folder = system / "class" / "power_supply" / name
    folder.mkdir(parents=True)
    for file, text in files.items():
        (folder / file).write_text(text)


def test_a_machine_without_sensors_and_battery_reports_none(system: Path) -> None:
    read = conditions(7, system)
    assert (read.temperature_c, read.battery_percent, read.examples) == (None, None, 7)
    assert read.load is not None and read.load >= 0
    assert read.minute is not None and 0 <= read.minute < 24 * 60


def test_the_hottest_sensor_counts_and_absurd_ones_do_not(system: Path) -> None:
    for number, text in enumerate(["41000\n", "67500\n", "-274000\n", "99999999\n", "", "nan", "hot"]):
        sensor(system, number, text)
    assert conditions(None, system).temperature_c == 67.5


def test_a_battery_counts_while_it_discharges(system: Path) -> None:
    supply(system, "AC", type="Mains\n", online="0\n")
    supply(system, "BAT0", type="Battery\n", status="Discharging\n", capacity="64\n")
    supply(system, "BAT1", type="Battery\n", status="Full\n", capacity="3\n")
    supply(system, "BAT2", type="Battery\n", status="Discharging\n", capacity="-1\n")
    supply(system, "BAT3", type="Battery\n", status="Discharging\n")
    assert conditions(None, system).battery_percent == 64.0


def test_a_file_that_is_no_text_is_no_reading(system: Path) -> None:
    sensor(system, 0, "")
    (system / "class" / "thermal" / "thermal_zone0" / "temp").write_bytes(b"\xff\xfe")
    assert conditions(None, system).temperature_c is None

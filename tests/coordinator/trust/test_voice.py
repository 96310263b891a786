"""The coordinator's keys are read again while it runs; a file that is damaged meanwhile changes nothing."""

import logging
from pathlib import Path

import pytest

from broker.federation_keys import enrol, init, revoke, rotate
from coordinator.trust import voice
from coordinator.trust.voice import CoordinatorKeys


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The keys of a federation of one node; they are looked at whenever a test asks."""
    monkeypatch.setattr(voice, "LOOK_EVERY_S", 0.0)
    init(tmp_path / "keys", "test", ("localhost",), days=100)
    enrol(tmp_path / "keys", "kitchen", days=100)
    return tmp_path / "keys"


def test_a_change_is_told_once(folder: Path) -> None:
    keys = CoordinatorKeys(folder / "coordinator", "test")
    assert keys.reload() == (None, None)
    revoke(folder, "kitchen")
    ring, online = keys.reload()
    assert ring is not None and ring.enrolled == frozenset() and online is None
    assert keys.reload() == (None, None)
    rotate(folder, days=100)
    ring, online = keys.reload()
    assert ring is None and online is not None and online.certificate.number == 2
    assert keys.reload() == (None, None)


def test_a_damaged_ring_is_said_once_and_the_old_one_goes_on_counting(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = CoordinatorKeys(folder / "coordinator", "test")
    path = folder / "coordinator" / "keyring.json"
    sound = path.read_bytes()
    path.write_bytes(sound[:20])
    assert [keys.reload() for _ in range(3)] == [(None, None)] * 3
    assert keys.ring.enrolled == {"kitchen"}
    assert caplog.text.count("going on with the keys as they were") == 1
    path.write_bytes(sound)
    assert keys.reload() == (None, None)


@pytest.mark.parametrize(("days", "warnings"), [(7, 1), (100, 0)])
def test_the_end_of_the_certificate_is_announced(
    tmp_path: Path, days: int, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    init(tmp_path / "keys", "test", ("localhost",), days=days)
    with caplog.at_level(logging.WARNING):
        CoordinatorKeys(tmp_path / "keys" / "coordinator", "test")
    assert caplog.text.count("run `alignfed keys rotate`") == warnings

"""Poison messages: what ends the process each time it is taken in is known after a few deaths, and set aside unread.

Such a message comes again after every start, since nobody acknowledged it, and nothing behind it would ever be taken
in. So the topic of each message is on disk before anything looks into it, and off it before the commit: a name that a
start finds there is that of what the last process died of. Nothing is synced: a process that dies leaves its writes to
the operating system, and a power cut is no message's fault.
"""

import json
import logging
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from broker.whole_file import write_whole

MOST_DEATHS = 3
LONGEST = 512  # bytes of a topic that tell it from others
REMEMBERED = 1_000  # topics, the latest

log = logging.getLogger("coordinator")


class PoisonGuard:
    """How often the process died of each topic's message; `at_hand` and `poison.json` in the coordinator's folder."""

    def __init__(self, folder: Path) -> None:
        self._counts = folder / "poison.json"
        self.deaths = _read(self._counts)
        self._file = os.open(folder / "at_hand", os.O_RDWR | os.O_CREAT, 0o600)
        weakref.finalize(self, os.close, self._file)
        died_of = os.pread(self._file, LONGEST, 0).partition(b"\0")[0].decode(errors="replace")
        os.pwrite(self._file, bytes(LONGEST), 0)  # from here on there is room for every topic, on a full disk too
        if died_of:  # cleared before it is counted: a death in between is forgotten, and none counts twice
            self.deaths[died_of] = count = self.deaths.pop(died_of, 0) + 1
            log.warning("the coordinator died while it took in %s, %d times so far", died_of, count)
            self._keep()

    def is_poison(self, topic: str) -> bool:
        """Whether the process has died of it so often that it should not be read again."""
        return self.deaths.get(_name(topic), 0) >= MOST_DEATHS

    @contextmanager
    def taking(self, topic: str) -> Iterator[None]:
        """While this lasts, a death counts as this message's; so does an exception that nobody expects."""
        name = _name(topic)
        os.pwrite(self._file, name.encode().ljust(LONGEST, b"\0"), 0)
        yield
        os.pwrite(self._file, b"\0", 0)
        if 0 < self.deaths.get(name, 0) < MOST_DEATHS:  # so it was something else that the process died of
            del self.deaths[name]
            self._keep()

    def _keep(self) -> None:
        latest = islice(self.deaths.items(), max(0, len(self.deaths) - REMEMBERED), None)
        write_whole(self._counts, json.dumps(dict(latest), indent=1).encode())


def set_aside(folder: Path) -> tuple[str, ...]:
    """The topics of messages that are not read any more, by what a coordinator has left in its folder."""
    return tuple(topic for topic, deaths in _read(folder / "poison.json").items() if deaths >= MOST_DEATHS)


def _name(topic: str) -> str:
    """As much of a topic as tells it from others, and as it comes back from the file."""
    return topic.encode(errors="replace")[:LONGEST].decode(errors="ignore")


def _read(path: Path) -> dict[str, int]:
    """What is there, as far as it makes sense: without the file nothing is lost but a few more deaths."""
    try:
        read = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        log.warning("%s is damaged and counts from nothing again", path)
        return {}
    known = read.items() if isinstance(read, dict) else ()
    return {topic: count for topic, count in known if isinstance(count, int)}

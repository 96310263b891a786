"""What a whole node does and needs, seen from outside: idle, serving, training, both; and swaps while it is asked.

Each mode is a node of its own (gateway.py). `starting` is up to the moment when it is connected, and answers if it is
to; `working` the most after that; `resting` what is left when nothing happens any more.
"""

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from gateway import Answer, Gateway, Memory
from serving import Spread, spread

from base_model.examples import Example
from base_model.reference import ResolvedModel
from schemas.adapter import Adapter

GIGABYTE = 1_000_000_000
GROUPS = Path("/sys/fs/cgroup/memory")
PROMPT = "turn on the lamp in the kitchen " * 16  # about 128 tokens
LONG = PROMPT * 8
ANSWER, LONG_ANSWER = 64, 32
VERSIONS = 4
REST_S = 2.0
SWAPS, CLIENTS, SHORT = 40, 4, 8
TURNS = 15


@dataclass(frozen=True)
class Mode:
    """Memory of the node's own process, and of all its processes together while it works."""

    starting: Memory
    working: Memory
    resting: Memory
    together: Memory


@dataclass(frozen=True)
class Limited:
    """A round of training while it serves, in a control group of a gigabyte; None where none can be made."""

    most_mb: float
    out_of_memory_kills: int
    round_completed: bool


@dataclass(frozen=True)
class Modes:
    """By what the node does; `serving_long` is asked prompts of about a thousand tokens."""

    idle: Mode
    serving: Mode
    serving_long: Mode
    training: Mode
    both: Mode
    limited: Limited | None


@dataclass(frozen=True)
class SwapsFromOutside:
    """Versions that came over MQTT while clients asked over HTTP, all compared with what their version says."""

    swaps: int
    clients: int
    different_answers: int
    requests: int
    versions_seen: int
    dropped: int
    mixed: int
    verified_to_serving_ms: float  # mean, as the node itself counts
    published_to_answered_ms: Spread  # from the pointer on the broker to the first answer begun with the version
    answer_ms: Spread  # of all of them
    first_piece_adapter_ms: float  # median without load, in turns
    first_piece_base_ms: float


@dataclass(frozen=True)
class Setting:
    """What all these nodes have."""

    resolved: ResolvedModel
    files: tuple[Path, ...]  # that are mapped while it serves and trains
    adapters: tuple[Adapter, ...]  # versions, in their order; the first is version 0
    examples: tuple[Example, ...]


def measure_modes(setting: Setting) -> Modes:
    """One node after the other."""
    return Modes(
        idle=_idle(setting),
        serving=_serving(setting, PROMPT, ANSWER),
        serving_long=_serving(setting, LONG, LONG_ANSWER),
        training=_training(setting),
        both=_both(setting),
        limited=_limited(setting),
    )


@contextmanager
def _node(setting: Setting, **options: Any) -> Iterator[Gateway]:
    with (
        tempfile.TemporaryDirectory() as folder,
        Gateway(Path(folder), setting.resolved, setting.adapters[0], setting.examples, **options) as gateway,
    ):
        gateway.coordinator.until_state(lambda state: state.online)
        if options.get("serves"):
            gateway.until_log("answering on http://")
        yield gateway


def _never() -> dict[str, str]:
    """Hours of training that are not now."""
    hour = (time.localtime().tm_hour + 12) % 24
    return {"policy.hours": f"{hour:02}:00-{hour:02}:30"}


def _mode(gateway: Gateway, starting: Memory) -> Mode:
    time.sleep(REST_S)
    return Mode(starting, gateway.watch.node, gateway.now(), gateway.watch.together)


def _idle(setting: Setting) -> Mode:
    with _node(setting, **_never()) as gateway:
        starting = _started(gateway)
        for number, adapter in enumerate(setting.adapters):
            _take(gateway, number, adapter)
        return _mode(gateway, starting)


def _serving(setting: Setting, prompt: str, tokens: int) -> Mode:
    with _node(setting, serves=True, **_never()) as gateway:
        starting = _started(gateway)
        for number, adapter in enumerate(setting.adapters):
            _take(gateway, number, adapter)
            _serve(gateway, number)
            _ask_together(gateway, prompt, tokens)
        return _mode(gateway, starting)


def _training(setting: Setting) -> Mode:
    with _node(setting, **{"training.steps": 4, "training.batch_size": 4}) as gateway:
        starting = _started(gateway)
        gateway.coordinator.publish(0, setting.adapters[0])
        gateway.coordinator.take_update()
        return _mode(gateway, starting)


def _both(setting: Setting, group: Path | None = None) -> Mode:
    options = {"training.steps": 4, "training.batch_size": 4}
    with _node(setting, group=group, serves=True, **options) as gateway:
        starting = _started(gateway)
        with _asking(gateway):
            gateway.coordinator.publish(0, setting.adapters[0])
            gateway.coordinator.take_update()
        return _mode(gateway, starting)


def _limited(setting: Setting) -> Limited | None:
    group = GROUPS / f"alignfed-benchmark-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        return None
    try:
        (group / "memory.limit_in_bytes").write_text(str(GIGABYTE))
        (group / "memory.swappiness").write_text("0")
        _forget_pages(setting.files)
        _both(setting, group)
        kills = (group / "memory.oom_control").read_text().rpartition("oom_kill ")[2]
        most = int((group / "memory.max_usage_in_bytes").read_text()) / 1e6
        return Limited(most, int(kills), round_completed=True)
    finally:
        time.sleep(1)
        group.rmdir()


def _forget_pages(files: tuple[Path, ...]) -> None:
    """Those that another has read would be counted as that one's."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _started(gateway: Gateway) -> Memory:
    time.sleep(REST_S)
    starting = gateway.watch.node
    gateway.watch.forget()
    return starting


def _take(gateway: Gateway, number: int, adapter: Adapter) -> None:
    gateway.coordinator.publish(number, adapter)
    gateway.coordinator.until_state(lambda state: state.version == number)


def _serve(gateway: Gateway, number: int) -> None:
    """Until it serves the version, and has measured it."""
    gateway.until_log(f"serving the head of version {number},")
    gateway.until_figure('alignfed_edge_held_out_version{of="served"}', number)


def _ask_together(gateway: Gateway, prompt: str, tokens: int) -> None:
    """As many at once as a node answers by default, two times."""
    for _ in range(2):
        threads = [threading.Thread(target=gateway.ask, args=(prompt, tokens)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


@contextmanager
def _asking(gateway: Gateway) -> Iterator[None]:
    """One client after another is answered all the time."""
    ended, faults = threading.Event(), list[Exception]()

    def ask() -> None:
        while not ended.wait(0.1):
            try:
                gateway.ask(PROMPT, ANSWER)
            except Exception as fault:
                faults.append(fault)
                return

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if faults:
        raise faults[0]


def swaps_from_outside(setting: Setting) -> SwapsFromOutside:
    """Two adapters that answer otherwise, in turns, each as a new version, while clients ask all the time."""
    pair, question = setting.adapters[-2:], setting.examples[0].prompt
    with _node(setting, serves=True, **_never(), **{"local_data.measured": 0, "serving.probe.examples": 0}) as gateway:
        expected = []
        for number, adapter in enumerate(pair):
            _take(gateway, number, adapter)
            gateway.until_log(f"serving the head of version {number},")
            expected.append(gateway.ask(question, SHORT).text)
        adapted, base = [], []
        for _ in range(TURNS):
            adapted.append(1e3 * gateway.ask(question, 1).first_s)
            base.append(1e3 * gateway.ask(question, 1, model="base").first_s)
        clients = [_Client(gateway, question) for _ in range(CLIENTS)]
        published = {}
        for number in range(2, 2 + SWAPS):
            published[number] = time.monotonic()
            _take(gateway, number, pair[number % 2])
            gateway.until_log(f"serving the head of version {number},")
        for client in clients:
            client.end()
        answers = [answer for client in clients for answer in client.answers]
        mean_s = (gateway.figure("alignfed_edge_swap_seconds_sum") or 0.0) / (2 + SWAPS)
    return SwapsFromOutside(
        swaps=SWAPS,
        clients=CLIENTS,
        different_answers=len(set(expected)),
        requests=sum(client.asked for client in clients),
        versions_seen=len({answer.version for answer in answers}),
        dropped=sum(client.asked for client in clients) - len(answers),
        mixed=sum(answer.text != expected[_number(answer) % 2] for answer in answers),
        verified_to_serving_ms=1e3 * mean_s,
        published_to_answered_ms=spread(_delays(published, answers)),
        answer_ms=spread([1e3 * answer.whole_s for answer in answers]),
        first_piece_adapter_ms=median(adapted),
        first_piece_base_ms=median(base),
    )


def _delays(published: dict[int, float], answers: list[Answer]) -> list[float]:
    """Milliseconds from a version's publication to its first answer, of those that had one."""
    first = dict[int, float]()
    for answer in answers:
        number = _number(answer)
        first[number] = min(first.get(number, np.inf), answer.begun_at)
    return [1e3 * (at - published[number]) for number, at in first.items() if number in published]


def _number(answer: Answer) -> int:
    return int(answer.version)


class _Client:
    """Asks one question after the other, on a thread of its own."""

    def __init__(self, gateway: Gateway, question: str) -> None:
        self.asked, self.answers = 0, list[Answer]()
        self._gateway, self._question, self._ended = gateway, question, threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._ended.is_set():
            self.asked += 1
            self.answers.append(self._gateway.ask(self._question, SHORT))

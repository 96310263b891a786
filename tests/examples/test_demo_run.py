"""The whole demo with a model of two random layers: every process is real, only the language model is tiny."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from base_model.examples import load_examples
from coordinator.journal import fold
from coordinator.registry import Registry
from coordinator.replay.inside import replay
from coordinator.watch.status import Status
from tests.browser import CHROMIUM, Browser
from tests.page_figures import SHOWN, on_page

VERSIONS = 6
DEMO = f"""
import sys
from pathlib import Path
from base_model.settings import BaseModelSettings, TrainingConfig
from coordinator.strategies import AlignFed
from examples.smart_home.demo import DemoOptions, run_demo
from examples.smart_home.recipe import Recipe
from schemas.adapter import LoraConfig

model, folder = sys.argv[1], Path(sys.argv[2])
recipe = Recipe(
    lora=LoraConfig(rank=2, alpha=4),
    training=TrainingConfig(steps=4, batch_size=2, learning_rate=0.01),
    # waiting for each other's version, so that no node is left out however unevenly they get the processor
    strategy=AlignFed(buffer_size=2, wait=True),
    private_examples=8,
    anchor_examples=4,
    gate_examples=4,
    held_out_examples=4,
    loss_examples=2,
    asked_examples=2,
    ask_every_s=0.2,
)
base_model = BaseModelSettings(name=model, cache_dir=folder / "cache")
sys.exit(run_demo(DemoOptions(2, {VERSIONS}, 0, None, folder / "copy.json", base_model, folder / "runs", recipe)))
"""
PATIENCE_S = 300
# Whether the newest status on the page is what the coordinator tells just now, but for what moves with the clock.
AGREES = """fetch('/api/status').then((answer) => answer.json()).then((told) => {
    const still = ({at_ns, process, alarms, ...rest}) => JSON.stringify(rest);
    return still(told) === still(newest);
})"""


@pytest.fixture
def demo(tiny_model_dir: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A running demo that writes into tmp_path, its output in tmp_path/out."""
    command = [sys.executable, "-c", DEMO, str(tiny_model_dir), str(tmp_path)]
    with (tmp_path / "out").open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def onlooker(request: pytest.FixtureRequest) -> Browser | None:
    """A browser where there is one; all else of the demo is tested without, too."""
    return request.getfixturevalue("browser") if CHROMIUM else None


def wait_until(condition: Callable[[], bool], demo: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert demo.poll() is None, "the demo ended"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_for(text: str, tmp_path: Path, demo: subprocess.Popen[bytes]) -> None:
    wait_until(lambda: text in (tmp_path / "out").read_text(), demo)


def run_of(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "latest"


def look(onlooker: Browser, epoch: int, least: int) -> None:
    """See in the browser what the coordinator tells, all of it, once that many versions are there."""
    onlooker.until(f"newest.epoch === {epoch} && newest.head >= {least}")
    onlooker.until(AGREES)
    onlooker.see("document.querySelector('details').open = true")
    newest, shown = onlooker.see(f"[JSON.stringify(newest), {SHOWN}]")
    told = Status.model_validate_json(newest)
    assert shown == on_page(told, told.at_ns)


def anchor_waits(run: Path) -> bool:
    """Whether the next version will have an anchor, by the journal."""
    *_, (state, _) = fold(run / "coordinator" / "journal.db")
    return state.anchor is not None


def prompts_of(path: Path) -> set[str]:
    return {example.prompt for example in load_examples(path)}


def children(demo: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(demo.pid).children(recursive=True)


def running(processes: list[psutil.Process], which: Callable[[psutil.Process], bool] = lambda _: True) -> list[str]:
    alive = [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    return [" ".join(p.cmdline()) for p in alive if which(p)]


# PEFT asks for an attribute that transformers has renamed; nothing here can change that
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_coordinator_killed_in_the_middle_costs_nothing_and_a_browser_sees_it_all(
    onlooker, demo, tmp_path, tiny_model_dir
):
    wait_for(f"version 1 of {VERSIONS}", tmp_path, demo)
    if onlooker:
        onlooker.open(re.search("http://(\\S+) shows", (tmp_path / "out").read_text())[1])
        look(onlooker, epoch=1, least=1)
        assert onlooker.faults == []
    wait_for(f"version 2 of {VERSIONS}", tmp_path, demo)
    [coordinator] = [child for child in children(demo) if "coordinator" in child.cmdline()]
    [node] = [child for child in children(demo) if any(word.endswith("home-1.toml") for word in child.cmdline())]
    coordinator.kill()
    # so small a model's nodes would be done before the coordinator's own model is loaded again
    node.suspend()
    wait_until(lambda: anchor_waits(run_of(tmp_path)), demo)
    if onlooker:
        look(onlooker, epoch=2, least=2)
    node.resume()
    wait_for(f"version 3 of {VERSIONS}", tmp_path, demo)
    if onlooker:
        look(onlooker, epoch=2, least=3)
        assert [fault for fault in onlooker.faults if "net::ERR" not in fault] == []

    output = (tmp_path / "out").read_text
    assert demo.wait(PATIENCE_S) == 0, output()
    assert "coordinator was killed by SIGKILL; started it again" in output()

    run = run_of(tmp_path)
    report = json.loads((run / "report.json").read_text())
    assert (tmp_path / "copy.json").read_text() == (run / "report.json").read_text()
    assert [version["version"] for version in report["versions"]] == list(range(VERSIONS + 1))
    used = [entry["update_id"] for version in report["versions"] for entry in version["inputs"]]
    assert len(used) == len(set(used)) == 2 * VERSIONS
    assert [node["updates_used"] for node in report["nodes"]] == [VERSIONS, VERSIONS]
    assert report["restarts"] == {"coordinator": 1}
    assert report["held_out"]["after"]["loss"] < report["held_out"]["before"]["loss"]
    assert 0 < report["wire"]["bytes"] < report["wire"]["bytes_fp32"]

    interview = report["interview"]
    assert interview["node"] == "home-1"
    assert {answer["prompt"] for answer in interview["answers"]} <= prompts_of(run / "data" / "held_out.jsonl")
    assert max(answer["version"] or 0 for answer in interview["answers"]) > 0  # it took up versions while it learned

    recorded = [version["digest"] for version in report["versions"]]
    assert [version.replayed for version in replay(Path(report["journal"]))] == recorded

    anchored = [version for version in report["versions"] if version["anchor"]]
    assert anchored
    assert all(version["anchor"]["base_version"] < version["version"] for version in anchored)
    judged = [version for version in report["versions"][1:] if version["decision"]]
    assert judged[-1]["version"] == report["release"]["judged"] == VERSIONS
    assert judged[-1]["decision"] == report["release"]
    for version in judged:
        decision = version["decision"]
        assert version["model_seconds"]["gate"] > 0
        assert version["served"] == ("average" if decision["candidate"] <= decision["before"] else "before")

    calibration, *others = (prompts_of(path) for path in sorted((run / "data").glob("*.jsonl")))
    assert len(calibration) == 8
    assert calibration.isdisjoint(set().union(*others))

    release = report["release"]
    served = Registry(run / "coordinator" / "adapters").body(release["version"], release["variant"])
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == served
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_dir), run / "adapter")
    assert any("lora_B" in name and bool(values.any()) for name, values in adapted.named_parameters())
    assert re.search("no home had", (run / "report.html").read_text())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_running(demo, tmp_path, number):
    wait_for(f"version 1 of {VERSIONS} published", tmp_path, demo)
    started = children(demo)
    assert len(running(started, lambda child: "alignfed" in child.cmdline())) == 3
    assert len(running(started, lambda child: "--multiprocessing-fork" in child.cmdline())) == 1  # the base model's
    demo.send_signal(number)
    assert demo.wait(PATIENCE_S) == 130
    # Python's own helper of a process that has a child ends when it notices that the process is gone
    psutil.wait_procs(started, timeout=2)
    assert running(started) == []

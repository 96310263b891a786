"""The picture in the terminal stays within its height; without a terminal there are lines."""

import io
import re

import pytest
from rich.console import Console

from examples.smart_home.closing import show_closing
from examples.smart_home.fleet_view import FleetView, first_view, observe
from examples.smart_home.live import Setting, picture, shown
from examples.smart_home.stages import of_count, stage
from schemas import topics
from schemas.messages import GlobalPointer, NodeMetrics, Receipt

SETTING = Setting("mosquitto on 127.0.0.1:1884", "fedbuff", 0)
BOOT = "a" * 32


@pytest.fixture
def busy(send, manifest) -> FleetView:
    """Twenty nodes, thirty versions, of which the last but one is served, and a refused update."""
    view = first_view("home", 40, {f"home-{number}": float(number) for number in range(1, 21)})
    for version in range(30):
        made = manifest(version, ("home-1", 0, 0.5))
        view = observe(view, send(topics.GlobalManifestOf(version), made))
    pointer = GlobalPointer(epoch=1, version=29, digest="b" * 64, parent=None, size=10, chunks=0)
    view = observe(view, send(topics.GlobalHead(), pointer))
    served = pointer.model_copy(update={"version": 28, "variant": "average", "judged": 29})
    view = observe(view, send(topics.GlobalRelease(), served))
    metrics = NodeMetrics(boot_id=BOOT, base_version=27, step=3, steps=8, loss=0.5)
    view = observe(view, send(topics.NodeMetricsOf("home-1"), metrics))
    receipt = Receipt(update_id=BOOT, status="rejected", reason="the delta holds NaN")
    return observe(view, send(topics.ReceiptFor("intruder"), receipt))


def drawn(view: FleetView, width: int, height: int) -> str:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    console.print(picture(view, SETTING, 65 * 10**9, height))
    return console.file.getvalue()


@pytest.mark.parametrize("height", [11, 24, 60])
@pytest.mark.parametrize("width", [60, 120])
def test_the_picture_is_lower_than_the_terminal(busy, width, height):
    lines = drawn(busy, width, height).splitlines()
    assert len(lines) < height
    assert all(len(line) <= width for line in lines)


def test_the_picture_shows_version_nodes_lineage_and_refusal(busy):
    text = drawn(busy, 140, 40)
    for expected in (
        "version 29 of 40",
        "1:05",
        "home-20",
        "home-1 @0",
        "5 %",
        "intruder: rejected: the delta holds NaN",
    ):
        assert expected in text


def test_the_picture_marks_the_version_that_nodes_serve(busy):
    lines = [line.split() for line in drawn(busy, 140, 40).splitlines()]
    assert [next(cell for cell in line if cell.isdecimal()) for line in lines if "average" in line] == ["28"]


def test_what_does_not_fit_is_counted(busy):
    assert re.search(r"and \d+ more", drawn(busy, 120, 20))


def test_without_a_terminal_every_event_is_one_line_whatever_its_length(send):
    console = Console(file=io.StringIO(), width=20)
    first = first_view("home", 3, {"home-1": 1.0})
    receipt = Receipt(update_id=BOOT, status="rejected", reason="[bold]its layout is that of another federation[/bold]")
    with shown(console, SETTING, first) as show:
        show(first, 0)
        show(observe(first, send(topics.ReceiptFor("home-1"), receipt)), 61 * 10**9)
    assert console.file.getvalue() == f"1:01  home-1: update rejected: {receipt.reason}\n"


def test_a_stage_without_a_terminal_is_one_line_when_it_is_done():
    console = Console(file=io.StringIO(), width=80)
    with stage(console, "load", of_count) as shown_stage:
        shown_stage.advance(1, 2)
        shown_stage.result = "135 million parameters"
    assert console.file.getvalue().split() == ["load", "135", "million", "parameters"]


def test_the_ending_says_what_changed_what_it_cost_and_what_to_try_next(report):
    console = Console(file=io.StringIO(), width=100)
    show_closing(console, report)
    text = re.sub(" +", " ", console.file.getvalue())
    for expected in (
        "16 commands that no home had",
        "answer token 3.250 0.750",
        "intent accuracy 12 % 88 %",
        "4.1 MB for 4 updates; 16.4 MB as fp32, 4.0 times as much",
        "the average of version 1; choices on the way: average 1, what was served before 1",
        "alignfed replay runs/2026-11-22T14-03-05/coordinator/journal.db\n",
    ):
        assert expected in text


def test_the_ending_names_what_is_missing(report):
    silent = report.nodes[1].model_copy(update={"updates_accepted": 0})
    console = Console(file=io.StringIO(), width=100)
    show_closing(console, report.model_copy(update={"nodes": (report.nodes[0], silent)}))
    assert "Not complete: no update of home-2 was accepted." in console.file.getvalue()

"""The end of a run in the terminal: what changed, who contributed, what it cost, what to try next."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from examples.smart_home.answers import change
from examples.smart_home.live import ACCENT
from examples.smart_home.outcome import Report
from examples.smart_home.stages import LABEL_WIDTH
from examples.smart_home.wording import duration, megabytes, percent, speed, verdict

_GOOD = ("exact", "right intent")
SAMPLES_SHOWN = 3
ANSWER_LENGTH = 160


def show_closing(console: Console, report: Report) -> None:
    """Print the whole ending."""
    _heading(console, f"{report.held_out.after.examples} commands that no home had")
    console.print(_scores(report))
    _heading(console, "Sample answers")
    console.print(_samples(report))
    _heading(console, "What each home contributed")
    console.print(_contributions(report))
    console.print()
    for name, fact in _facts(report):
        console.print(Text.assemble((f" {name:<{LABEL_WIDTH}} ", "dim"), fact), soft_wrap=True)
    _heading(console, "Try next")
    for command in next_commands(report):
        console.print(Text(f"   {command}", style=ACCENT), soft_wrap=True)
    console.print()
    for sentence in report.missing:
        console.print(Text(f" Not complete: {sentence}.", style="bold red"), soft_wrap=True)


def next_commands(report: Report) -> tuple[str, ...]:
    """Commands that make sense after this run, ready to paste."""
    data_dir = report.folder / "coordinator"
    return (
        f"alignfed replay {data_dir / 'journal.db'}",
        f"alignfed adapters list --data-dir {data_dir}",
        f"alignfed adapters show {report.versions[-1].version} --data-dir {data_dir}",
    )


def _heading(console: Console, text: str) -> None:
    console.print()
    console.print(Text(f" {text}", style="bold"), soft_wrap=True)


def _scores(report: Report) -> Table:
    before, after = report.held_out.before, report.held_out.after
    table = _table("", "before", "after")
    rows = (
        ("loss, nats per answer token", f"{before.loss:.3f}", f"{after.loss:.3f}"),
        ("intent accuracy", percent(before.intent_accuracy), percent(after.intent_accuracy)),
        ("exact match", percent(before.exact_match), percent(after.exact_match)),
    )
    for name, old, new in rows:
        table.add_row(name, Text(old, style="dim"), Text(new, style=f"bold {ACCENT}"))
    return table


def _samples(report: Report) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=10, justify="right", style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(no_wrap=True)
    for sample in report.samples[:SAMPLES_SHOWN]:
        table.add_row("", Text(sample.prompt, style="bold"))
        for when, answer in (("before", sample.before), ("after", sample.after)):
            how = verdict(answer, sample.expected)
            table.add_row(when, Text(_short(answer)), Text(how, style="green" if how in _GOOD else "yellow"))
        if sample.after != sample.expected:
            table.add_row("expected", Text(sample.expected, style="dim"))
    return table


def _contributions(report: Report) -> Table:
    table = _table("home", "speed", "examples", "sent", "accepted", "staleness", "updates", "weight")
    for node in report.nodes:
        staleness = "-" if node.mean_staleness is None else f"{node.mean_staleness:.1f}"
        counts = (str(node.examples), str(node.updates_sent), str(node.updates_accepted), staleness)
        table.add_row(node.node, speed(node.slowdown), *counts, percent(node.update_share), percent(node.weight_share))
    return table


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    wire = report.wire
    less = f", {wire.bytes_fp32 / wire.bytes:.1f} times as much" if wire.bytes else ""
    yield "wire", f"{megabytes(wire.bytes)} for {wire.updates} updates; {megabytes(wire.bytes_fp32)} as fp32{less}"
    if report.is_weighed:
        yield "served", _decisions(report)
    yield "answers", _answers(report)
    yield "time", duration(report.seconds)
    yield "memory", f"{report.peak_rss_mb:,.0f} MB at the peak, all processes together ({report.peak_memory_is})"
    yield "report", str(report.folder / "report.html")
    yield "adapter", f"{report.folder / 'adapter'}  (for PeftModel.from_pretrained)"


def _answers(report: Report) -> str:
    """What the serving home answered during the run."""
    told = change(report.interview.answers)
    if not told.commands:
        return f"{report.interview.node} answered nothing in so short a run"
    count, lost = len(report.interview.answers), report.interview.unanswered
    right = f"of {told.commands} commands {told.at_first} exact when first asked, {told.at_last} when last asked"
    return f"{count} over MQTT by {report.interview.node} while it learned, {lost} unanswered; {right}"


def _decisions(report: Report) -> str:
    """What nodes serve now, and how the coordinator decided on the way."""
    release, counts = report.release, report.choices
    names = {"average": "average", "head": "new head", "before": "what was served before"}
    times = ", ".join(f"{names[choice]} {count}" for choice, count in counts.most_common())
    return f"the {release.variant} of version {release.version}; choices on the way: {times}"


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=True, padding=(0, 2, 0, 1), header_style="dim")
    table.add_column(first, no_wrap=True)
    for title in others:
        table.add_column(title, justify="right")
    return table


def _short(answer: str) -> str:
    one_line = " ".join(answer.split()) or "(nothing)"
    return one_line if len(one_line) <= ANSWER_LENGTH else one_line[: ANSWER_LENGTH - 1] + "…"

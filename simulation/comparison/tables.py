"""The columns in which methods are set side by side, the same on the page and in the document."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from simulation.comparison.statistics import Interval
from simulation.comparison.summary import MethodSummary, TimeTo
from simulation.comparison.wording import number, span, with_range

Measured = Interval | TimeTo | None


@dataclass(frozen=True)
class Column:
    """What stands in one column, and in which unit."""

    heading: str
    unit: str
    of: Callable[[MethodSummary], Measured]

    def median(self, summary: MethodSummary) -> str:
        """The median over seeds."""
        measured = self.of(summary)
        return with_range(None, self.unit) if measured is None else number(measured.median, self.unit)

    def range(self, summary: MethodSummary) -> str:
        """The ends of the interval; of a time also in how many seeds it was reached, unless in all."""
        measured = self.of(summary)
        if measured is None:
            return ""
        if isinstance(measured, TimeTo) and measured.reached < len(measured.seeds):
            return f"{measured.reached} of {len(measured.seeds)} seeds"
        return "" if measured.low == measured.high else span(measured.low, measured.high, self.unit)

    def seed(self, summary: MethodSummary, seed: int) -> str:
        """The value of one seed."""
        measured = self.of(summary)
        values = {} if measured is None else measured.seeds if isinstance(measured, TimeTo) else measured.values
        return number(values[seed], self.unit) if seed in values else with_range(None, self.unit)


def learning(targets: Sequence[str]) -> list[Column]:
    """How well and how fast a method learns, in a regime with these targets."""
    return [
        Column("loss at equal time", "nats", lambda summary: summary.loss_at_equal_time),
        Column("loss at the end", "nats", lambda summary: summary.final_loss),
        *(Column(f"time to {target}", "time", _time_to(target)) for target in targets),
        Column("worst quarter", "nats", lambda summary: summary.worst_quarter),
        Column("harmful", "share", lambda summary: summary.harmful),
        Column("intent", "share", lambda summary: summary.intent_accuracy),
        Column("exact", "share", lambda summary: summary.exact_match),
    ]


PARTS = (
    Column("slow quarter: weight", "share", lambda summary: summary.slow_share),
    Column("slow quarter: uploads", "share", lambda summary: summary.slow_upload_share),
    Column("slow quarter: loss", "nats", lambda summary: summary.slowest_quarter),
    Column("worst tenth", "nats", lambda summary: summary.worst_tenth),
    Column("Jain", "number", lambda summary: summary.jain),
    Column("staleness", "jobs", lambda summary: summary.staleness),
    Column("server, jobs", "jobs", lambda summary: summary.server_in_jobs),
    Column("sent", "bytes", lambda summary: summary.bytes),
)  # who has what part, and what it costs


def _time_to(target: str) -> Callable[[MethodSummary], Measured]:
    return lambda summary: summary.time_to[target]

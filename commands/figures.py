"""How times and losses are written for people, the same in every command."""

from datetime import datetime


def to_the_second(ns: int) -> str:
    """A moment, in ns since 1970, as local time."""
    return datetime.fromtimestamp(ns / 1e9).isoformat(sep=" ", timespec="seconds")


def to_the_millisecond(ns: int) -> str:
    """The same, where the order of messages counts."""
    return datetime.fromtimestamp(ns / 1e9).isoformat(sep=" ", timespec="milliseconds")


def loss_if_measured(loss: float | None) -> str:
    """A loss, of which None says that there is none to show."""
    return "-" if loss is None else f"{loss:.3f}"


def measured_loss(loss: float | None) -> str:
    """A loss that was measured: None is how messages say that it is infinite."""
    return "infinite" if loss is None else f"{loss:.3f}"

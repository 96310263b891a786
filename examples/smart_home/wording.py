"""Figures and answers in words, the same on the page and in the terminal."""

from schemas.messages import ReleaseReport
from simulation.scoring import intent_of


def verdict(answer: str, expected: str) -> str:
    """How right an answer is: `exact`, `right intent`, `wrong intent`, or `no command` when it names none."""
    if answer == expected:
        return "exact"
    intent = intent_of(answer)
    if intent is None:
        return "no command"
    return "right intent" if intent == intent_of(expected) else "wrong intent"


def served_in_words(decision: ReleaseReport | None) -> str:
    """What nodes served after a version: its `head`, its `average`, or what they did before, as `still 7`."""
    if decision is None:
        return "passed over"
    return decision.variant if decision.is_taken else f"still {decision.version}"


def percent(share: float) -> str:
    """A share of 1 as whole percent."""
    return f"{100 * share:.0f} %"


def megabytes(count: int) -> str:
    """Bytes for people: MB from half a megabyte on, else kB."""
    return f"{count / 1e6:.1f} MB" if count >= 5e5 else f"{count / 1e3:.0f} kB"


def duration(seconds: float) -> str:
    """Seconds as minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def speed(slowdown: float) -> str:
    """A node's pace in percent of full speed."""
    return f"{100 / slowdown:.0f} %"


def in_clock(seconds: float) -> str:
    """Seconds as `m:ss`."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"

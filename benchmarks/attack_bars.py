"""What must hold of the product under attack, and whether it did: from the rows of attacks.py, and nothing else.

Each bar is looked at by the attack that comes nearest to it or beyond, medians over seeds. `kept` is compared with the
same rule without any attack: robustness must not be bought with learning less.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

OURS, NONE = "ours", "none"
Row = Mapping[str, Any]


class Bar(NamedTuple):
    """At most `most` of a figure, with up to this share of the nodes lying; `form` is how it is written."""

    what: str
    figure: str
    share: float
    most: float
    form: str


class Verdict(NamedTuple):
    """One bar, and the worst that was found, over attacks; None where there is no run to say."""

    bar: Bar
    found: float | None
    attack: str | None

    @property
    def held(self) -> bool:
        return self.found is not None and self.found <= self.bar.most

    @property
    def word(self) -> str:
        return "not measured" if self.found is None else "held" if self.held else "missed"

    def as_json(self) -> dict[str, Any]:
        """The bar and what was found, for programs."""
        found = self.found if self.found is not None and math.isfinite(self.found) else None
        return {**self.bar._asdict(), "found": found, "attack": self.attack, "verdict": self.word}

    def said(self, figure: float | None) -> str:
        """A figure of this bar's as it is written."""
        if figure is None:
            return "-"
        return format(figure, self.bar.form) if math.isfinite(figure) else "lost"


BARS = (
    Bar("share of the loss improvement given up, against no attack", "given_up", 0.2, 0.03, ".1%"),
    Bar("share of the loss improvement given up, against no attack", "given_up", 0.4, 0.07, ".1%"),
    Bar("worst step of what nodes serve, beyond 5 % + 0.01", "rise", 0.2, 0.0, ".3f"),
    Bar("worst step of what nodes train from, beyond 5 % + 0.01", "head_rise", 0.2, 0.0, ".3f"),
    Bar("honest updates refused", "honest_rejected", 0.0, 0.15, ".1%"),
    Bar("honest updates refused", "honest_rejected", 0.2, 0.15, ".1%"),
    Bar("honest updates refused of the node that fares worst", "honest_rejected_worst", 0.0, 0.20, ".1%"),
    Bar("honest updates refused of the node that fares worst", "honest_rejected_worst", 0.2, 0.20, ".1%"),
)


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """Every bar with what was found."""
    ours = [row for row in rows if row["rule"] == OURS]
    return [_judged(bar, ours) for bar in BARS]


def _judged(bar: Bar, rows: Sequence[Row]) -> Verdict:
    by_attack: dict[str, list[float]] = {}
    for row in rows:
        if row["share"] == bar.share and (figure := _figure(bar.figure, row, rows)) is not None:
            by_attack.setdefault(row["attack"], []).append(figure)
    if not by_attack:
        return Verdict(bar, None, None)
    found, attack = max((median(figures), attack) for attack, figures in by_attack.items())
    return Verdict(bar, found, attack)


def _figure(name: str, row: Row, rows: Sequence[Row]) -> float | None:
    """A row's figure, endless where a loss was; None where what it is compared with was not run."""
    if name != "given_up":
        value: float | None = row.get(name)
        return math.inf if value is None else value
    same = (one for one in rows if one["attack"] == NONE and one["seed"] == row["seed"])
    calm = next(same, None)
    if calm is None or calm["loss"] is None or calm["loss"] >= calm["start"]:
        return None
    return math.inf if row["loss"] is None else (row["loss"] - calm["loss"]) / (calm["start"] - calm["loss"])


def table(rows: Sequence[Row]) -> str:
    """The verdicts as Markdown."""
    lines = ["| what must hold of `ours` | liars | at most | found | by | |", "|---|---|---|---|---|---|"]
    for one in verdicts(rows):
        found = (one.said(one.found), one.attack or "-", f"**{one.word}**" if one.word == "missed" else one.word)
        lines.append(f"| {one.bar.what} | {one.bar.share:.0%} | {one.said(one.bar.most)} | {' | '.join(found)} |")
    return "\n".join(lines) + "\n"

"""docs/attacks.md: the tables of attacks.py, from its rows and nothing else."""

import math
from collections.abc import Sequence
from statistics import median

from attack_bars import NONE, OURS, Row, table
from robust_rules import rules

from simulation.attacks import ATTACKS

HEAD = """# Attacks, and rules against them

Written by `benchmarks/attacks.py --write` from {runs} runs: {nodes} nodes of the {task} task, LoRA on the last {layers}
layers, {updates} updates, commit {commits}. What must hold is judged by medians over seeds {seeds} of `ours`; rules are
compared by medians over what all of them were run with, seeds {common}.{caution}

Liars are the same nodes for every rule. All rules but `ours` are published ones in the same pipeline, with anchor and
averaged release but without gate, guard and cap ([simulation.md](simulation.md#attacks)); `ours` is the product as it
comes ([trust.md](trust.md)).
"""
SHORT = "\n**These runs are short: no answer is right to the letter yet, so shares of a loss stand for accuracy.**"
FIGURES = (
    ("Held-out loss", "loss", ".3f", "In nats per answer token, of what nodes serve at the end."),
    ("What is kept", "kept", ".0%", "The share of the loss improvement that the plain mean has without attack."),
    (
        "Worst step of what nodes serve",
        "rise",
        ".2f",
        "The largest rise of the gate fold's loss from one release to the next, beyond 5 % + 0.01 nats.",
    ),
    (
        "Worst step of what nodes train from",
        "head_rise",
        ".2f",
        "The same of the head, from version to version. Nobody serves it; a guard takes it back.",
    ),
    ("Honest updates refused", "honest_rejected", ".0%", "Or given no weight, of all that were decided."),
    ("The same of the honest node that fares worst", "honest_rejected_worst", ".0%", "Of its own updates."),
    ("Updates of liars refused", "liars_rejected", ".0%", "Or given no weight."),
)
ALIKE = 0.001  # of a loss
NEAREST = "The attack that comes nearest to each bar, or goes beyond it."


def page(size: Row, nodes: int, is_short: bool, done: Sequence[Row]) -> str:
    """The tables, from the runs and nothing else: medians over seeds."""
    seeds = {rule: {one["seed"] for one in done if one["rule"] == rule} for rule in {one["rule"] for one in done}}
    common = set.intersection(*seeds.values()) or set.union(*seeds.values())
    compared = [one for one in done if one["seed"] in common]
    parts = [
        HEAD.format(
            runs=len(done),
            task=size["task"],
            layers=size["layers"],
            updates=size["updates"],
            nodes=nodes,
            seeds=", ".join(map(str, sorted(seeds.get(OURS, set())))),
            common=", ".join(map(str, sorted(common))),
            commits=", ".join(sorted({one["commit"][:7] for one in done if "commit" in one})) or "unknown",
            caution=SHORT if is_short else "",
        )
    ]
    parts.append(_alike(compared))
    parts.append(f"\n## What must hold\n\n{NEAREST}\n\n" + table(done))
    for title, name, form, why in FIGURES:
        parts.append(f"\n## {title}\n\n{why}\n\n" + _table(compared, name, form))
    parts.append("\n## What the attacks are\n\n| attack | what a liar sends |\n|---|---|\n")
    parts.append("".join(f"| {attack} | {what} |\n" for attack, what in ATTACKS.items()))
    return "".join(parts)


def _alike(done: Sequence[Row]) -> str:
    """Under which attacks `ours` ends where the plain mean does: there its checks found nothing to hold on to."""
    loss = {(one["attack"], one["share"], one["rule"]): one["loss"] for one in done if one["loss"] is not None}
    ends = {(attack, share): end for (attack, share, rule), end in loss.items() if rule == OURS and attack != NONE}
    better = {at for at, end in ends.items() if not math.isclose(end, loss.get((*at, "mean"), math.inf), rel_tol=ALIKE)}
    attacks = [attack for attack in ATTACKS if attack in {a for a, _ in ends} - {a for a, _ in better}]
    if not attacks:
        return ""
    return (
        f"\nUnder {', '.join(attacks)} `ours` ends where the plain mean does: their deltas are\n"
        "no longer than honest ones and do not turn against the anchor, so that nothing is clipped or left out.\n"
        "What is withstood there, averaging withstands.\n"
    )


def _table(done: Sequence[Row], name: str, form: str) -> str:
    """One figure: a row for each attack and share, a column for each rule, in the order of the runs' table."""
    columns = [rule for rule in rules() if any(one["rule"] == rule for one in done)]
    lines = [f"| attack | liars | {' | '.join(columns)} |\n", f"|---|---|{'---|' * len(columns)}\n"]
    shares = sorted({one["share"] for one in done} - {0.0})
    rows = [(NONE, 0.0), *((attack, share) for share in shares for attack in ATTACKS)]
    for attack, share in rows:
        cells = [_cell(done, (attack, share, rule), name, form) for rule in columns]
        if any(cells):
            lines.append(f"| {attack} | {share:.0%} | {' | '.join(cells)} |\n")
    return "".join(lines)


def _cell(done: Sequence[Row], of: tuple[str, float, str], name: str, form: str) -> str:
    """The median over seeds; a run whose figure is no finite number counts as endlessly bad."""
    worst = -math.inf if name == "kept" else math.inf
    runs = [one for one in done if (one["attack"], one["share"], one["rule"]) == of]
    values = [worst if one[name] is None else one[name] for one in runs if name in one]
    if not values:
        return ""
    middle = median(values)
    return format(middle, form) if math.isfinite(middle) else "lost"

"""What the comparison is asked to show, and what the runs say of it. Every figure is computed from a summary.

A bar is met by the median over seeds, except where it speaks of the interval. None: this preset does not measure it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from simulation.comparison.presets import (
    ABLATIONS,
    CEILING,
    FEDAVG,
    FEDAVG_DROPPING,
    FEDBUFF,
    OURS,
    STRONGEST,
    UNGATED,
    WITH_OUR_STAGES,
    Ablation,
)
from simulation.comparison.regimes import BASE, CALIBRATION, LONG, THOUSAND
from simulation.comparison.statistics import Interval, difference, paired, times_less
from simulation.comparison.summary import MethodSummary, Regimes

Unit = Literal["times", "difference", "share", "points", "jobs", "nodes"]
Methods = Mapping[str, MethodSummary]
Value = Callable[[MethodSummary], Interval]
HOMES = 1000


class Verdict(BaseModel):
    """One bar: what is asked, what was measured, and whether it holds. None is asked of a figure shown beside a bar."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bar: str
    asked: str
    regime: str
    unit: Unit
    measured: Interval | None = None
    met: bool | None = None
    note: str = ""


def verdicts(regimes: Regimes) -> tuple[Verdict, ...]:
    """Every bar in the order in which a reader asks."""
    return (
        *_speed(regimes),
        *_fairness(regimes),
        *_harm(regimes),
        *_long_run(regimes),
        *_calibration(regimes),
        *_modules(regimes),
        *_cost(regimes),
    )


# --- time to the targets ---


def _speed(regimes: Regimes) -> Iterator[Verdict]:
    yield from _times_less(regimes, "FedAvg that waits for every node", (FEDAVG,), 8)
    yield from _times_less(regimes, "FedAvg that drops stragglers", (FEDAVG_DROPPING,), None)
    yield from _times_less(regimes, "FedBuff at its best server step", FEDBUFF, 1.3)
    yield from _times_less(regimes, "FedAsync", ("fedasync",), 2)
    for whom, method in WITH_OUR_STAGES.items():
        yield from _times_less(regimes, whom, (method,), None)


def _times_less(regimes: Regimes, whom: str, candidates: Sequence[str], factor: float | None) -> Iterator[Verdict]:
    """One row for each target: how many times less simulated time than the best of the candidates."""
    methods = regimes.get(BASE.name, {})
    asked = f"at least {factor:g} times less" if factor else "shown beside"
    targets = methods[OURS].time_to if OURS in methods else {}
    rivals = [name for name in candidates if name in methods]
    if not rivals or not targets:
        yield Verdict(bar=f"time to target against {whom}", asked=asked, regime=BASE.name, unit="times")
        return
    for target in targets:
        best = min(rivals, key=lambda name: (methods[name].time_to[target].median, rivals.index(name)))
        ours, theirs = methods[OURS].time_to[target], methods[best].time_to[target]
        measured = paired(ours.seeds, theirs.seeds, times_less)
        yield Verdict(
            bar=f"time to loss {target} against {whom}",
            asked=asked,
            regime=BASE.name,
            unit="times",
            measured=measured,
            met=None if factor is None or measured is None else measured.median >= factor,
            note=f"{best} reached it in {theirs.reached} of {len(theirs.seeds)} seeds, its runs ending at "
            f"{methods[best].end_time.median:.0f}; {OURS} in {ours.reached} of {len(ours.seeds)}",
        )


# --- fairness ---


def _fairness(regimes: Regimes) -> Iterator[Verdict]:
    for whom, candidates, gap in (("FedBuff", FEDBUFF, 0.2), ("FedBuff with EMA release", (STRONGEST,), 0.1)):
        yield _below(
            regimes.get(BASE.name, {}), BASE.name, f"worst-quarter node loss against {whom}", candidates,
            lambda summary: summary.worst_quarter, gap,
        )  # fmt: skip
    ours = regimes.get(BASE.name, {}).get(OURS)
    bar = "weight share of the slowest quarter, less its upload share"
    row = Verdict(bar=bar, asked="at least 0", regime=BASE.name, unit="points")
    if ours is None:
        yield row
        return
    weight, uploads = ours.slow_share, ours.slow_upload_share
    note = f"{100 * weight.median:.1f} % of the weight, {100 * uploads.median:.1f} % of the uploads"
    yield _judged(row, paired(weight.values, uploads.values, difference), lambda m: m.median >= 0, note)


def _below(methods: Methods, regime: str, bar: str, candidates: Sequence[str], value: Value, gap: float) -> Verdict:
    """Ours minus the best candidate's is at most -gap."""
    row = Verdict(bar=bar, asked=f"lower by at least {gap:g}", regime=regime, unit="difference")
    best = _best(methods, candidates, value)
    if best is None or OURS not in methods:
        return row
    measured = paired(value(methods[OURS]).values, value(methods[best]).values, difference)
    longer = methods[best].end_time.median / methods[OURS].end_time.median
    note = f"{value(methods[OURS]).median:.3f} against {value(methods[best]).median:.3f} of {best}, "
    return _judged(row, measured, lambda m: m.median <= -gap, note + f"which ended after {longer:.2f} of the time")


# --- harm ---


def _harm(regimes: Regimes) -> Iterator[Verdict]:
    # where versions between the measured ones are left out, a step is not one version's
    short = {
        name: methods[OURS]
        for name, methods in regimes.items()
        if OURS in methods and name != LONG.name and methods[OURS].every == 1
    }
    row = Verdict(bar="harmful releases in short runs", asked="at most 2 %", regime="every", unit="share")
    worst = max(short, key=lambda name: short[name].harmful.median, default=None)
    note = f"the most of {len(short)} regimes"
    measured = None if worst is None else short[worst].harmful
    yield _judged(row.model_copy(update={"regime": worst or "every"}), measured, lambda m: m.median <= 0.02, note)
    ours = regimes.get(LONG.name, {}).get(OURS)
    row = Verdict(bar="harmful releases in long runs", asked="at most 5 %", regime=LONG.name, unit="share")
    yield _judged(row, ours.harmful if ours else None, lambda m: m.median <= 0.05)
    yield from _speed_of_the_head(regimes.get(BASE.name, {}))


def _speed_of_the_head(methods: Methods) -> Iterator[Verdict]:
    """What is served reaches the targets no later than the head of the same method without a release stage."""
    plain = methods.get(UNGATED)
    row = Verdict(
        bar="time to target as served, against the head without a release stage",
        asked="not longer, within the interval", regime=BASE.name, unit="times",
    )  # fmt: skip
    if OURS not in methods or plain is None:
        yield row
        return
    for target, ours in methods[OURS].time_to.items():
        measured = paired(ours.seeds, plain.head_time_to[target].seeds, times_less)
        named = row.model_copy(update={"bar": row.bar.replace("target", f"loss {target}")})
        yield _judged(named, measured, lambda m: m.high >= 1)


# --- long runs ---


def _long_run(regimes: Regimes) -> Iterator[Verdict]:
    methods = regimes.get(LONG.name, {})
    ours, ceiling = methods.get(OURS), methods.get(CEILING)
    improvement = None
    if ours and ceiling:
        start, end, least = ours.start_loss.values, ours.final_loss.values, ceiling.final_loss.values
        gained = {seed: start[seed] - end[seed] for seed in end}
        possible = {seed: start[seed] - least[seed] for seed in end.keys() & least.keys()}
        improvement = paired(gained, possible, lambda got, most: got / most)
    row = Verdict(
        bar="share of centralised training's loss improvement", asked="at least 95 %", regime=LONG.name, unit="share"
    )
    yield _judged(row, improvement, lambda m: m.median >= 0.95)
    yield _lead_at_the_end(methods)
    row = Verdict(
        bar="intent accuracy, less that of centralised training", asked="at least -5", regime=LONG.name, unit="points"
    )
    gap = None
    if ours and ceiling and ours.intent_accuracy and ceiling.intent_accuracy:
        gap = paired(ours.intent_accuracy.values, ceiling.intent_accuracy.values, difference)
    yield _judged(row, gap, lambda m: m.median >= -0.05)


def _lead_at_the_end(methods: Methods) -> Verdict:
    row = Verdict(
        bar="loss against the best FedBuff", asked="lower, outside the interval", regime=LONG.name, unit="difference"
    )
    best = _best(methods, (*FEDBUFF, STRONGEST), lambda summary: summary.final_loss)
    if best is None or OURS not in methods:
        return row
    ours, theirs = methods[OURS].final_loss, methods[best].final_loss
    note = f"{ours.median:.3f} against {theirs.median:.3f} of {best}"
    return _judged(row, paired(ours.values, theirs.values, difference), lambda m: m.high < 0, note)


# --- calibration unlike the fleet ---


def _calibration(regimes: Regimes) -> Iterator[Verdict]:
    for regime in (regime.name for regime in CALIBRATION):
        methods = regimes.get(regime, {})
        row = Verdict(
            bar=f"loss with {regime.replace('-', ' ', 1)} against FedBuff with EMA release",
            asked="not higher, outside the interval", regime=regime, unit="difference",
        )  # fmt: skip
        best = _best(methods, (STRONGEST,), lambda summary: summary.loss_at_equal_time)
        measured, note = None, ""
        if best and OURS in methods:
            ours, theirs = methods[OURS].loss_at_equal_time, methods[best].loss_at_equal_time
            measured = paired(ours.values, theirs.values, difference)
            note = f"{ours.median:.3f} against {theirs.median:.3f} of {best}"
        yield _judged(row, measured, lambda m: m.low <= 0, note)


# --- the method's modules ---


def _modules(regimes: Regimes) -> Iterator[Verdict]:
    """A module may be on by default only if it does what it is for: less loss, or fairer weights at no more loss."""
    methods = regimes.get(BASE.name, {})
    for ablation in ABLATIONS:
        is_fairness = ablation.purpose == "fairness"
        yield _module(
            ablation,
            effect(methods, ablation),
            Verdict(
                bar=f"{ablation.module}: loss with it less loss without it",
                asked=f"{'not above' if is_fairness else 'below'} 0 outside the interval, or off by default",
                regime=BASE.name,
                unit="difference",
            ),
            (lambda m: m.low <= 0) if is_fairness else (lambda m: m.high < 0),
        )
        if is_fairness:
            yield _module(
                ablation,
                effect(methods, ablation, lambda summary: summary.slow_share),
                Verdict(
                    bar=f"{ablation.module}: the slowest quarter's weight share with it less without it",
                    asked="above 0 outside the interval, or off by default",
                    regime=BASE.name,
                    unit="points",
                ),
                lambda m: m.low > 0,
            )
    yield from _modules_elsewhere(regimes)


def _modules_elsewhere(regimes: Regimes) -> Iterator[Verdict]:
    """What a module is worth under other conditions, by the loss at the end: between, few versions are measured."""
    for regime, methods in regimes.items():
        for ablation in ABLATIONS if regime != BASE.name else ():
            if (measured := effect(methods, ablation, lambda summary: summary.final_loss)) is not None:
                bar = f"{ablation.module}: loss at the end with it less loss without it"
                state = "on" if ablation.is_default else "off"
                yield Verdict(
                    bar=bar,
                    asked="shown beside",
                    regime=regime,
                    unit="difference",
                    measured=measured,
                    note=f"{state} by default",
                )


def _module(ablation: Ablation, measured: Interval | None, row: Verdict, helps: Callable[[Interval], bool]) -> Verdict:
    state = "on" if ablation.is_default else "off"
    return _judged(row, measured, helps if ablation.is_default else lambda m: True, f"{state} by default")


def effect(methods: Methods, ablation: Ablation, value: Value | None = None) -> Interval | None:
    """With the module less without it, paired by seed; of the loss at equal time unless another value is named."""
    if ablation.present not in methods or ablation.absent not in methods:
        return None
    of = value or (lambda summary: summary.loss_at_equal_time)
    return paired(of(methods[ablation.present]).values, of(methods[ablation.absent]).values, difference)


# --- cost ---


def _cost(regimes: Regimes) -> Iterator[Verdict]:
    ours = regimes.get(BASE.name, {}).get(OURS)
    row = Verdict(bar="server time per version", asked="at most 4 of a node's jobs", regime=BASE.name, unit="jobs")
    note = ""
    if ours:
        stages = {stage: seconds.median for stage, seconds in ours.server_seconds.stages.items()}
        note = "CPU seconds: " + ", ".join(f"{stage} {seconds:.3f}" for stage, seconds in stages.items())
    yield _judged(row, ours.server_in_jobs if ours else None, lambda m: m.median <= 4, note)
    many = regimes.get(THOUSAND.name, {}).get(OURS)
    row = Verdict(bar="simulated nodes on this machine", asked="a thousand", regime=THOUSAND.name, unit="nodes")
    if many is None:
        yield row
        return
    note = f"{many.updates.median:.0f} updates in {many.seconds.median:.0f} s of the wall clock"
    nodes = Interval(median=many.nodes, low=many.nodes, high=many.nodes, values={})
    yield _judged(row, nodes, lambda m: m.median >= HOMES, note)


# --- judging ---


def _judged(row: Verdict, measured: Interval | None, holds: Callable[[Interval], bool], note: str = "") -> Verdict:
    """The row with what was measured and whether that is enough; as it is when nothing was."""
    if measured is None:
        return row
    return row.model_copy(update={"measured": measured, "met": holds(measured), "note": note})


def _best(methods: Methods, candidates: Sequence[str], value: Value) -> str | None:
    """The candidate with the lowest median; the strictest rival to be measured against."""
    there = [name for name in candidates if name in methods]
    return min(there, key=lambda name: value(methods[name]).median, default=None)

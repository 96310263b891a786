"""How much is compared: which methods meet which regimes, over which seeds, and at what size.

Every method does not meet every regime: a preset is a budget. Its estimates are of CPU seconds on a common 2-core
machine, for the plan that is printed before anything runs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from simulation.comparison.regimes import CALIBRATION, LONG, REGIMES, THOUSAND, Regime
from simulation.methods import CENTRALISED
from simulation.settings import Measuring

ALL = 1_000  # seeds, however many there are
CLOSELY = Measuring(every=1, generated=64, own_tests=16)
OURS = "alignfed"
FEDBUFF = ("fedbuff_1", "fedbuff_2", "fedbuff_3")  # by server step
STRONGEST = "fedbuff_ema"  # of the baselines
CEILING = CENTRALISED
FEDAVG = "fedavg"
FEDAVG_DROPPING = "fedavg_dropping"
UNGATED = "alignfed_no_release"
FALLING_BACK = "alignfed_fall_back"
WITH_OUR_STAGES = {
    "FedBuff with anchor and EMA release": "fedbuff_ema_anchor",
    "FedAvg with anchor and EMA release": "fedavg_anchor_ema",
}


@dataclass(frozen=True)
class Ablation:
    """A module of the method: the run with it, the run without, what it is for, and which of the two is the default."""

    module: str
    present: str
    absent: str
    purpose: Literal["loss", "fairness"] = "loss"

    @property
    def is_default(self) -> bool:
        """Whether the method has the module unless told otherwise."""
        return self.present == OURS


ABLATIONS = (
    Ablation("alignment by transplant", "alignfed_transplant", OURS),
    Ablation("alignment on activations", "alignfed_semantic", OURS),
    Ablation("participation weights", OURS, "alignfed_no_participation", purpose="fairness"),
    Ablation("anchor", OURS, "alignfed_no_anchor"),
    Ablation("release stage", OURS, "alignfed_no_release"),
)


@dataclass(frozen=True)
class Entry:
    """Methods that meet a regime, over its first so many seeds.

    Measured closely, every decision what nodes serve is measured: harm can be counted. Else the regime says how often.
    """

    methods: tuple[str, ...]
    seeds: int = ALL
    closely: bool = False


Meeting = tuple[Entry, ...]


@dataclass(frozen=True)
class Preset:
    """A budget: methods by regime, seeds, and the size that its regimes are cut to."""

    name: str
    about: str
    seeds: tuple[int, ...]
    meetings: Mapping[str, Meeting]
    sized: Callable[[Regime], Regime]

    def regime(self, name: str) -> Regime:
        """A regime at this preset's size. Raises KeyError for a name that there is not."""
        return self.sized(REGIMES[name])

    def meeting(self, regime: str) -> Meeting:
        """The methods that meet a regime; ours and the strongest baseline where the preset has none for it."""
        return self.meetings.get(regime, (Entry((OURS, STRONGEST)),))

    def is_measured_closely(self, regime: str, method: str) -> bool:
        """Whether every decision of this method's runs is measured."""
        return any(entry.closely and method in entry.methods for entry in self.meeting(regime))


def _small(regime: Regime) -> Regime:
    """A regime cut to a run of a minute or two, on the same kinds of data."""
    task = replace(
        regime.task,
        name="narrow",
        homes=min(regime.task.homes, 64),
        examples_per_home=min(regime.task.examples_per_home, 64),
    )
    measuring = regime.measuring.model_copy(update={"every": 1, "own_tests": 8})
    return replace(regime, task=task, updates=min(regime.updates, 40), targets=(), measuring=measuring)


CI = Preset(
    name="ci",
    about="whether everything runs, and the direction of the large effects; two seeds decide nothing",
    seeds=(10, 11),
    meetings={"base": (Entry((OURS, STRONGEST, "fedbuff_2", FEDAVG)),)},
    sized=_small,
)

FULL = Preset(
    name="full",
    about="every figure that is claimed, but those of long runs",
    seeds=(10, 11, 12, 13, 14),
    meetings={
        # every version of every method: who is looked at more often would be seen to arrive earlier
        "base": (
            Entry((OURS, STRONGEST, "fedbuff_1", "fedbuff_2", "fedasync", "fedbuff_ema_anchor"), closely=True),
            Entry(("alignfed_no_anchor", UNGATED, "alignfed_no_participation", "alignfed_transplant"), closely=True),
            Entry((FEDAVG,)),  # its rounds are all measured anyhow
            Entry((FEDAVG_DROPPING, "fedavg_anchor_ema"), seeds=2),
            Entry((FALLING_BACK, "alignfed_semantic", "alignfed_patient", "alignfed_literal"), seeds=2, closely=True),
            Entry(("calibration_only", "ffa_lora", "fedsa_lora", "fedex"), seeds=2, closely=True),
        ),
        "calibration-wrong": (Entry((OURS, STRONGEST, FALLING_BACK), seeds=2),),
        # what never asks the base model is not computed again for another calibration set
        **{regime.name: (Entry((OURS,)), Entry((STRONGEST,), closely=True)) for regime in CALIBRATION},
        **dict.fromkeys(("slow-server", "wide-speed", "easier"), (Entry((OURS, STRONGEST), seeds=2),)),
        # where updates are furthest from the head, alignment has most to gain
        **dict.fromkeys(
            ("high-staleness", "long-jobs"), (Entry((OURS, "alignfed_transplant")), Entry((STRONGEST,), seeds=2))
        ),
        "mixed-ranks": (Entry((OURS, STRONGEST, "alignfed_transplant"), seeds=2),),
    },
    sized=lambda regime: regime,
)

END_POINT = Preset(
    name="long",
    about="the end point: 2,000 updates and the ceiling; and a thousand homes",
    seeds=FULL.seeds,
    meetings={LONG.name: (Entry((OURS, STRONGEST, CEILING)),), THOUSAND.name: (Entry((OURS,), seeds=1),)},
    sized=lambda regime: regime,
)

PRESETS = {preset.name: preset for preset in (CI, FULL, END_POINT)}

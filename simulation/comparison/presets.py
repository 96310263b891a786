"""How much is compared: which methods meet which regimes, over which seeds, and at what size.

Every method does not meet every regime: a preset is a budget. Its estimates are of CPU seconds on a common 2-core
machine, for the plan that is printed before anything runs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from simulation.comparison.regimes import CALIBRATION, REGIMES, SPEEDS_AND_DATA, Regime
from simulation.methods import CENTRALISED

FEW = 3  # seeds
OURS = "alignfed"
FEDBUFF = ("fedbuff_1", "fedbuff_2", "fedbuff_3")  # by server step
STRONGEST = "fedbuff_ema"  # of the baselines
CEILING = CENTRALISED
FEDAVG = "fedavg"
FEDAVG_DROPPING = "fedavg_dropping"
UNGATED = "alignfed_no_release"
WITH_OUR_STAGES = {
    "FedBuff with anchor and EMA release": "fedbuff_ema_anchor",
    "FedAvg with anchor and EMA release": "fedavg_anchor_ema",
}


@dataclass(frozen=True)
class Ablation:
    """A module of the method: the run with it, the run without, and which of the two is the default."""

    module: str
    present: str
    absent: str

    @property
    def is_default(self) -> bool:
        """Whether the method has the module unless told otherwise."""
        return self.present == OURS


ABLATIONS = (
    Ablation("alignment by transplant", "alignfed_transplant", OURS),
    Ablation("alignment on activations", "alignfed_semantic", OURS),
    Ablation("participation weights", OURS, "alignfed_no_participation"),
    Ablation("anchor", OURS, "alignfed_no_anchor"),
    Ablation("release stage", OURS, "alignfed_no_release"),
)


@dataclass(frozen=True)
class Meeting:
    """Which methods meet a regime: over all seeds, and over the first few, where only large effects matter."""

    methods: tuple[str, ...]
    seldom: tuple[str, ...] = ()

    def pairs(self, seeds: tuple[int, ...]) -> list[tuple[str, int]]:
        """Every method with every seed it is run with."""
        often = [(method, seed) for method in self.methods for seed in seeds]
        return often + [(method, seed) for method in self.seldom for seed in seeds[:FEW]]


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
        return self.meetings.get(regime, Meeting((OURS, STRONGEST)))


def _small(regime: Regime) -> Regime:
    """A regime cut to a run of a minute or two, on the same kinds of data."""
    task = replace(
        regime.task, homes=min(regime.task.homes, 64), examples_per_home=min(regime.task.examples_per_home, 64)
    )
    measuring = regime.measuring.model_copy(update={"generated": 16, "own_tests": 8})
    return replace(regime, task=task, updates=min(regime.updates, 40), measuring=measuring)


CI = Preset(
    name="ci",
    about="whether everything runs, and the direction of the large effects; two seeds decide nothing",
    seeds=(10, 11),
    meetings={"base": Meeting((OURS, STRONGEST, "fedbuff_2", FEDAVG))},
    sized=_small,
)

FULL = Preset(
    name="full",
    about="every figure that is claimed",
    seeds=(10, 11, 12, 13, 14),
    meetings={
        "base": Meeting(
            (
                OURS,
                *FEDBUFF,
                STRONGEST,
                "fedbuff_ema_anchor",
                "fedasync",
                FEDAVG,
                "alignfed_no_anchor",
                UNGATED,
                "alignfed_no_participation",
                "alignfed_transplant",
                "alignfed_semantic",
            ),
            seldom=(
                FEDAVG_DROPPING,
                "fedavg_anchor_ema",
                "alignfed_patient",
                "alignfed_no_gate",
                "alignfed_literal",
                "calibration_only",
                "ffa_lora",
                "fedsa_lora",
                "fedex",
            ),
        ),
        **{regime.name: Meeting((OURS, STRONGEST)) for regime in CALIBRATION},
        **{regime.name: Meeting((), seldom=(OURS, STRONGEST)) for regime in SPEEDS_AND_DATA},
        "long": Meeting((OURS, STRONGEST, CEILING)),
    },
    sized=lambda regime: regime,
)

PRESETS = {preset.name: preset for preset in (CI, FULL)}

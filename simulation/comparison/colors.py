"""Which method has which colour: the few that curves show have one of their own, all others are grey."""

from simulation.comparison.drawing import BLUE, INK, OCHRE, ORANGE, PURPLE, RED, SOFT, TEAL
from simulation.comparison.presets import CEILING, FEDAVG, FEDAVG_DROPPING, OURS, STRONGEST

COLORS = {
    OURS: TEAL,
    STRONGEST: ORANGE,
    "fedbuff_2": BLUE,
    FEDAVG: PURPLE,
    "fedasync": OCHRE,
    CEILING: INK,
    FEDAVG_DROPPING: RED,
}


def color_of(method: str) -> str:
    """The colour of a method's curve, bar or dot."""
    return COLORS.get(method, SOFT)

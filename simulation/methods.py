"""The methods that are compared, by name: what each is, and its settings for a fleet of so many nodes.

Methods share what is not their own: buffer size, how nodes train, the calibration set, timeouts that no healthy fleet
meets. FedBuff is here with several server steps, and with what is ours: an averaged release, and the anchor. Seconds in
a strategy's settings are jobs of the fastest node: that is how the core of a simulation counts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from coordinator.stages import AnchorStage, ReleaseStage
from coordinator.strategies import (
    AlignFed,
    AlignFedLiteral,
    CalibrationOnly,
    FedAsync,
    FedAvg,
    FedBuff,
    FedEx,
    FedSALora,
    FFALora,
    FLoRA,
    Strategy,
)
from schemas.messages import MAX_INPUTS

CENTRALISED = "centralised"
TIMEOUT = 30.0  # a buffer's first update waits no longer: only so long does a version need when most nodes are gone
ROUND_TIMEOUT = 300.0  # of a round: longer than the job of a node that is a hundred times slower than the fastest
OLDEST = 500  # versions: nobody is too late
AVERAGE = ReleaseStage(choose="average")


@dataclass(frozen=True)
class Method:
    """What a method is, and its settings for a number of nodes; None is training on the pooled data."""

    about: str
    strategy: Callable[[int], Strategy | None]


def buffer_size(nodes: int) -> int:
    """Updates per version: 4, in large fleets one for every 64 nodes, never more than there are nodes."""
    return min(nodes, max(4, nodes // 64))


def _alignfed(about: str, **settings: Any) -> Method:
    return Method(about, lambda nodes: AlignFed(**_buffer(nodes), **settings))


def _fedbuff(about: str, **settings: Any) -> Method:
    return Method(about, lambda nodes: FedBuff(**_buffer(nodes), **settings))


def _fedavg(about: str, share: float, **settings: Any) -> Method:
    return Method(
        about,
        lambda nodes: FedAvg(
            nodes_per_round=min(MAX_INPUTS, max(1, round(share * nodes))), timeout_s=ROUND_TIMEOUT, **settings
        ),
    )


def _buffer(nodes: int) -> dict[str, Any]:
    return {"buffer_size": buffer_size(nodes), "timeout_s": TIMEOUT, "max_staleness": OLDEST}


METHODS: Mapping[str, Method] = {
    "alignfed": _alignfed("ours: anchor, step 2, gated release"),
    "alignfed_patient": _alignfed(
        "ours, but nodes wait for the next version before they train again", preset="patient"
    ),
    "alignfed_unlabelled": _alignfed("ours without any use of calibration labels", preset="unlabelled"),
    "alignfed_no_anchor": _alignfed("ours without the anchor", anchor=None),
    "alignfed_no_gate": _alignfed("ours, but what is served is the average, always", release=AVERAGE),
    "alignfed_no_release": _alignfed("ours, but what is served is the head", release=ReleaseStage(choose="head")),
    "alignfed_fall_back": _alignfed("ours, and nodes can overrule the gate", release={"fall_back": {}}),
    "alignfed_no_participation": _alignfed("ours without weights by participation", participation=False),
    "alignfed_transplant": _alignfed("ours, and stale deltas are carried over by their products", align="transplant"),
    "alignfed_semantic": _alignfed("ours, and stale deltas keep what they do on calibration data", align="semantic"),
    "alignfed_literal": Method(
        "the paper's equations, read literally", lambda nodes: AlignFedLiteral(**_buffer(nodes))
    ),
    "fedavg": _fedavg("synchronous rounds of all nodes", share=1),
    "fedavg_dropping": _fedavg("synchronous rounds of the fastest three quarters; the rest is dropped", share=0.75),
    "fedavg_anchor_ema": _fedavg(
        "synchronous rounds of all nodes, with the anchor and the average",
        share=1,
        anchor=AnchorStage(),
        release=AVERAGE,
    ),
    "fedasync": Method(
        "every update is mixed in as it comes", lambda nodes: FedAsync(max_staleness=min(1000, 16 * nodes))
    ),
    "fedbuff_1": _fedbuff("a buffer, server step 1"),
    "fedbuff_2": _fedbuff("a buffer, server step 2", step=2),
    "fedbuff_3": _fedbuff("a buffer, server step 3", step=3),
    "fedbuff_ema": _fedbuff("a buffer, server step 2, the average is served", step=2, release=AVERAGE),
    "fedbuff_ema_anchor": _fedbuff(
        "a buffer, server step 2, with our anchor and the average", step=2, release=AVERAGE, anchor=AnchorStage()
    ),
    "ffa_lora": Method("a buffer, A is frozen", lambda nodes: FFALora(**_buffer(nodes), step=2)),
    "fedsa_lora": Method("a buffer of A, nodes keep their B", lambda nodes: FedSALora(**_buffer(nodes), step=2)),
    "fedex": Method("a buffer, products B A are averaged", lambda nodes: FedEx(**_buffer(nodes), step=2)),
    "flora": Method("a buffer, all factors stacked, cut to the rank", lambda nodes: FLoRA(**_buffer(nodes))),
    "calibration_only": Method("calibration alone, no update counts", lambda nodes: CalibrationOnly(**_buffer(nodes))),
    CENTRALISED: Method("the ceiling: one model trained on the data of all nodes", lambda nodes: None),
}


def strategy_of(method: str, nodes: int) -> Strategy | None:
    """A method's settings for a fleet; ValueError with the names there are for any other name."""
    if method not in METHODS:
        raise ValueError(f"there is no method {method!r}; choose one of {', '.join(METHODS)}")
    return METHODS[method].strategy(nodes)

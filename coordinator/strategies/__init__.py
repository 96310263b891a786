"""When to aggregate and how: one file per published method, each a frozen configuration that is the strategy.

A strategy says `is_ready(buffer)` and `aggregate(flush, ask)`, where `ask` lets the base model answer (questions.py).
It states some facts: `timeout_s` (aggregate anyway after this wait), `max_staleness` (what is older is refused),
`one_update_per_version` (nodes wait for the next version before they train again), `needs_base_adapters` (the flush
then has the adapter of each base version), `kept_anchors` (of how many versions, to compare updates with), `anchor`
and `release` (its stages, see stages.py), `trained_factors` and `shared_factors` (which of A and B nodes train, and
which of them are global). Deltas are averaged factor by factor, A and B each on its own, unless a strategy says
otherwise.
"""

from typing import Annotated

from pydantic import Field

from coordinator.strategies.alignfed import AlignFed
from coordinator.strategies.alignfed_literal import AlignFedLiteral
from coordinator.strategies.calibration_only import CalibrationOnly
from coordinator.strategies.fedasync import FedAsync
from coordinator.strategies.fedavg import FedAvg
from coordinator.strategies.fedbuff import FedBuff
from coordinator.strategies.fedex import FedEx
from coordinator.strategies.fedsa_lora import FedSALora
from coordinator.strategies.ffa_lora import FFALora
from coordinator.strategies.flora import FLoRA

Strategy = Annotated[
    AlignFed | AlignFedLiteral | CalibrationOnly | FedAsync | FedAvg | FedBuff | FedEx | FedSALora | FFALora | FLoRA,
    Field(discriminator="name"),
]

__all__ = [
    "AlignFed",
    "AlignFedLiteral",
    "CalibrationOnly",
    "FFALora",
    "FLoRA",
    "FedAsync",
    "FedAvg",
    "FedBuff",
    "FedEx",
    "FedSALora",
    "Strategy",
]

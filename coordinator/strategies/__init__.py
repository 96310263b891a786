"""When to aggregate and how: one file per published method, each a frozen configuration that is the strategy.

A strategy says `is_ready(buffer)` and `aggregate(head, buffer, bases)`, and states four facts: `timeout_s` (aggregate
anyway after this wait), `max_staleness` (what is older is refused), `one_update_per_version` (nodes wait for the next
version before they train again) and `needs_base_adapters` (`bases` then maps each base version to its adapter, else it
is empty). Deltas are averaged factor by factor, A and B each on its own: the mean of B·A is another thing.
"""

from typing import Annotated

from pydantic import Field

from coordinator.strategies.fedasync import FedAsync
from coordinator.strategies.fedavg import FedAvg
from coordinator.strategies.fedbuff import FedBuff

Strategy = Annotated[FedAvg | FedAsync | FedBuff, Field(discriminator="name")]

__all__ = ["FedAsync", "FedAvg", "FedBuff", "Strategy"]

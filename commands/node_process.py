"""A node's process once its settings are read: `alignfed edge` becomes it, and leaves the command line's memory behind.

On a gateway that is a quarter of what an idle node needs. The settings come through a file that has no name any more.
"""

import os
import sys
import tempfile
from typing import NoReturn

from pydantic import BaseModel, ConfigDict

import logs
from base_model.settings import BaseModelSettings
from broker.security import SecuritySettings
from broker.settings import BrokerSettings
from commands.faults import said_in_words
from edge_node.settings import EdgeSettings


class NodeOrder(BaseModel):
    """All that a node's process has to know."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    federation: str
    base_model: BaseModelSettings
    broker: BrokerSettings
    edge: EdgeSettings
    security: SecuritySettings
    log_level: str


def become(order: NodeOrder, *held: int) -> NoReturn:
    """Go on as the node: the same process, its standard streams, the open files `held`, and nothing else that was."""
    with tempfile.TemporaryFile() as file:
        file.write(order.model_dump_json().encode())
        file.seek(0)
        for descriptor in (file.fileno(), *held):
            os.set_inheritable(descriptor, True)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        # -P: what lies in the current folder must not be taken for a module. The last words are for those who look at
        # the machine's processes, and for nobody else
        command = [sys.executable, "-P", "-m", __name__, str(file.fileno())]
        os.execv(sys.executable, [*command, "alignfed", *sys.argv[1:]])


def main(descriptor: int) -> NoReturn:
    """Run the node; `descriptor` is of the open file with its order."""
    with open(descriptor, "rb") as file:
        order = NodeOrder.model_validate_json(file.read())
    logs.set_up(order.log_level, node=order.edge.node)
    with said_in_words():
        from edge_node import service

        service.run(order.federation, order.base_model, order.broker, order.edge, order.security)


if __name__ == "__main__":
    main(int(sys.argv[1]))

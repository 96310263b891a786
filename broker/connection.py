"""What the two services ask of their connection to the broker; broker/client.py is one, on a real network."""

from collections.abc import Callable, Sequence
from typing import Protocol, Self

from broker.events import Event, Message, Publication, Traffic


class Connection(Protocol):
    """A connection that is kept up by itself; see `Client`, which says what each of these does and raises."""

    def publish(self, publication: Publication) -> int:
        """Queue a publication; its token comes back in `Published`."""

    def ack(self, message: Message) -> None:
        """Tell the broker that a message is dealt with."""

    def subscribe(self, *filters: str) -> None:
        """Receive messages on these filters, and what is retained on them."""

    def unsubscribe(self, *filters: str) -> None:
        """No longer receive messages on these filters."""

    def next_event(self, timeout_s: float | None) -> Event | None:
        """The next event; None when there is none in this time."""

    @property
    def traffic(self) -> Traffic:
        """What has been carried so far."""

    def stop(self, timeout_s: float = 5) -> None:
        """End it, once all that is queued was acknowledged or the time has passed."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


Connect = Callable[[Publication, Sequence[str]], Connection]
"""Make a connection with this will and these subscriptions."""

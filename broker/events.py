"""The values that go into and come out of a client. Pure: no socket, no clock, no MQTT library.

A caller hands over a `Publication`; a client hands back events. What a payload means is not known here.
"""

from dataclasses import dataclass

_OBJECTS = 1024  # bytes of the objects that a message is, without its payload
_MAX_STRING = 65_535  # MQTT writes the length of a string in two bytes


class PayloadTooLarge(ValueError):
    """A publication is larger than the broker accepts; cut it into smaller ones."""


class QueueFull(RuntimeError):
    """Too many bytes wait for the broker; keep the publication and hand it over later."""


class NetworkThreadDied(RuntimeError):
    """The client can no longer talk to the broker; make a new one or stop."""


@dataclass(frozen=True)
class MessageProperties:
    """The MQTT 5 properties of one message: all that a publisher can give it, but the alias of a topic.

    An alias and the identifier of a subscription hold for one connection alone: we offer and ask for neither, so that
    no broker may send them.
    """

    user: tuple[tuple[str, str], ...] = ()
    content_type: str | None = None
    response_topic: str | None = None
    correlation_data: bytes | None = None
    expiry_s: int | None = None
    payload_format: int | None = None  # MQTT's payload format indicator: 0 is bytes, 1 is UTF-8 text


@dataclass(frozen=True)
class Publication:
    """One message to send. Raises ValueError when MQTT could not carry it."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False
    expiry_s: int | None = None
    user: tuple[tuple[str, str], ...] = ()
    response_topic: str | None = None
    correlation_data: bytes | None = None
    content_type: str | None = None
    payload_format: int | None = None  # as in MessageProperties

    def __post_init__(self) -> None:
        check_topic(self.topic)
        if self.response_topic is not None:
            check_topic(self.response_topic)
        if self.qos not in (0, 1):
            raise ValueError(f"qos must be 0 or 1, got {self.qos}")
        if self.expiry_s is not None and not 0 < self.expiry_s <= 0xFFFFFFFF:
            raise ValueError(f"expiry_s must be between 1 and 4294967295 seconds, got {self.expiry_s}")
        if self.payload_format not in (None, 0, 1):
            raise ValueError(f"payload_format must be 0 (bytes) or 1 (UTF-8 text), got {self.payload_format}")
        for text in (self.content_type or "", *(part for pair in self.user for part in pair)):
            _check_string(text, "a property")
        if len(self.correlation_data or b"") > _MAX_STRING:
            raise ValueError(f"correlation_data is longer than {_MAX_STRING} bytes")

    def packet_size(self) -> int:
        """The size in bytes of the PUBLISH packet that carries this, headers included."""
        properties = sum(5 + _utf8(key) + _utf8(value) for key, value in self.user)
        properties += 5 if self.expiry_s is not None else 0
        properties += 2 if self.payload_format is not None else 0
        properties += 3 + _utf8(self.content_type) if self.content_type is not None else 0
        properties += 3 + _utf8(self.response_topic) if self.response_topic is not None else 0
        properties += 3 + len(self.correlation_data) if self.correlation_data is not None else 0
        packet_id = 2 if self.qos else 0
        remaining = 2 + _utf8(self.topic) + packet_id + _varint(properties) + properties + len(self.payload)
        return 1 + _varint(remaining) + remaining


@dataclass(frozen=True)
class Message:
    """One message as it arrived. `generation` counts connections, `mid` is the packet id within one."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    duplicate: bool
    properties: MessageProperties
    received_at_ns: int
    generation: int
    mid: int

    @property
    def held(self) -> int:
        """About the bytes of memory that it takes, its objects included, so that many empty ones count too."""
        user = sum(len(key) + len(value) for key, value in self.properties.user)
        return _OBJECTS + len(self.topic) + len(self.payload) + user


@dataclass(frozen=True)
class Connected:
    """The broker answered. Without `session_present` it has forgotten the subscriptions and all that was queued."""

    session_present: bool
    max_packet_size: int | None
    receive_maximum: int | None


@dataclass(frozen=True)
class Disconnected:
    """The broker is away or refuses; the client keeps trying. `reason` says what a person can do about it."""

    reason: str


@dataclass(frozen=True)
class Subscribed:
    """The broker answered for one filter. `reason` is why it refused; None when the subscription stands."""

    filter: str
    reason: str | None


@dataclass(frozen=True)
class Published:
    """The broker answered for a QoS 1 publication. It is in the broker's memory, not on its disk.

    `reason` is why it was refused, None when it was taken. `heard` is False when nobody is subscribed to the topic.
    """

    token: int
    reason: str | None
    heard: bool = True


@dataclass(frozen=True)
class Traffic:
    """What a client has carried since it was made, payloads alone; how many publications wait for the broker, and how
    many messages were dropped because the caller fell behind."""

    messages_in: int = 0
    bytes_in: int = 0
    messages_out: int = 0
    bytes_out: int = 0
    waiting: int = 0
    dropped: int = 0


Event = Message | Connected | Disconnected | Subscribed | Published


def check_topic(topic: str) -> None:
    """Raise ValueError when a message cannot be published on `topic`."""
    _check_string(topic, "a topic")
    if not topic or "+" in topic or "#" in topic:
        raise ValueError(f"a topic to publish on must not be empty or contain + or #, got {topic!r}")


def check_filter(topic_filter: str) -> None:
    """Raise ValueError when `topic_filter` cannot be subscribed to."""
    _check_string(topic_filter, "a topic filter")
    levels = topic_filter.split("/")
    if not topic_filter or "#" in "".join(levels[:-1]) or any(len(x) > 1 and ("+" in x or "#" in x) for x in levels):
        raise ValueError(f"not a topic filter: {topic_filter!r}; + stands for one whole level, # for all that follow")


def _check_string(text: str, what: str) -> None:
    if _utf8(text) > _MAX_STRING or "\0" in text:
        raise ValueError(f"{what} must be at most {_MAX_STRING} bytes of UTF-8 without NUL, got {text[:80]!r}")


def _utf8(text: str) -> int:
    return len(text.encode("utf-8"))


def _varint(value: int) -> int:
    return 1 if value < 128 else 2 if value < 16_384 else 3 if value < 2_097_152 else 4

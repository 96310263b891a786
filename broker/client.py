"""The MQTT client, and the only file that imports paho. Knows nothing of what the messages mean.

One thread of our own drives one paho client: paho is touched by no other thread, its callbacks only put events into
the inbox, and callers only put publications, acknowledgements and subscriptions into queues that this thread empties.
MQTT 5 only: older versions answer a refused message with success.
"""

import contextlib
import logging
import math
import random
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from broker import reasons
from broker.events import (
    Connected,
    Disconnected,
    Event,
    Message,
    MessageProperties,
    Publication,
    Published,
    Subscribed,
    Traffic,
    check_filter,
)
from broker.inbox import Inbox
from broker.outgoing import Outgoing, OutgoingQueue
from broker.settings import BrokerSettings

log = logging.getLogger("broker")

MAX_IN_FLIGHT = 20  # unacknowledged messages in each direction
_RETRY_FIRST_S, _RETRY_LONGEST_S = 0.2, 30.0
_CONNECT_TIMEOUT_S = 10.0
_TURN_S = 1.0  # the network thread comes by at least this often
_STUCK_AFTER_S = 120.0  # longer than a connect with name lookup and TLS takes
_NO_MATCHING_SUBSCRIBERS, _REFUSED, _KEEPALIVE_TIMEOUT = 0x10, 0x80, 0x8D  # MQTT 5 reason codes


class Client:
    """A connection to the broker that is kept up in the background; events come out of `next_event`.

    `will` is published by the broker `will_delay_s` after the connection is lost without a farewell. With `clean_start`
    the broker forgets the earlier session of `client_id` at the first connect; reconnects always resume. What comes
    faster than the caller takes it waits in the broker, or with `drops_when_behind` is dropped and counted, QoS 1 too,
    so that the caller can answer all the while; see `Inbox`. Raises ValueError for a client id that not every broker
    accepts, and when the TLS files cannot be loaded.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        client_id: str,
        will: Publication | None = None,
        will_delay_s: int = 30,
        subscriptions: Sequence[str] = (),
        clean_start: bool = False,
        drops_when_behind: bool = False,
    ) -> None:
        if not client_id or any(mark in client_id for mark in "$+#/"):  # iotcore does not survive such a client
            raise ValueError(f"a client id must not be empty or contain $ + # or /, got {client_id!r}")
        self._settings = settings
        self._has_warned = False  # of what nobody asked for
        self._inbox = Inbox(drops_all=drops_when_behind)
        self._outgoing = OutgoingQueue(settings.max_packet_size, MAX_IN_FLIGHT)
        self._lock = threading.Lock()  # guards the three below
        self._filters: set[str] = set()
        self._to_subscribe: dict[str, int] = {}  # with its retain handling
        self._to_unsubscribe: set[str] = set()
        self._subscribing: dict[int, dict[str, int]] = {}  # by packet id, until the broker answers
        self._unsubscribing: dict[int, list[str]] = {}
        self._connected = False
        self._is_paused = False  # nothing is read: the caller has too much to take
        self._unwritten: deque[tuple[paho.MQTTMessageInfo, Outgoing]] = deque()  # of QoS 0, handed to paho
        self._answered_at: float | None = None  # when the broker took this connection
        self._traffic = Traffic()  # written by the network thread alone
        self._last_words: str | None = None  # why the connection ends, when the broker or paho said so
        self._reported: str | None = None
        self._seen_alive = time.monotonic()
        self._stopping = threading.Event()
        self._stop_at = math.inf
        self._thread = threading.Thread(target=self._run, name=f"mqtt {client_id}", daemon=True)
        self._paho = _new_paho(settings, client_id, clean_start)
        if will is not None:
            properties = _publish_properties(will, PacketTypes.WILLMESSAGE)
            properties.WillDelayInterval = will_delay_s
            self._paho.will_set(will.topic, will.payload, will.qos, will.retain, properties)
        self._paho.on_connect = self._on_connect
        self._paho.on_disconnect = self._on_disconnect
        self._paho.on_subscribe = self._on_subscribe
        self._paho.on_unsubscribe = self._on_unsubscribe
        self._paho.on_message = self._on_message
        self._paho.on_publish = self._on_publish
        # With this set paho leaves writing to our loop instead of writing in the midst of other calls.
        self._paho.on_socket_register_write = lambda *_: None
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self.subscribe(*subscriptions)

    # What callers do, from any thread.

    def start(self) -> None:
        """Connect in the background and keep trying; a broker that is away is not an error."""
        self._thread.start()

    def stop(self, timeout_s: float = 5) -> None:
        """Say farewell, so that no will is sent, once all that is queued was acknowledged or `timeout_s` has passed."""
        self._stop_at = time.monotonic() + timeout_s
        self._stopping.set()
        self._wake()
        if self._thread.ident is not None:
            self._thread.join(timeout_s + 2 * _TURN_S)  # the farewell to a broker that reads nothing takes one
        if not self._thread.is_alive():
            self._wake_receiver.close()
            self._wake_sender.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def next_event(self, timeout_s: float | None) -> Event | None:
        """The next event; None after `timeout_s`, or once stopped and empty. Raises NetworkThreadDied."""
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while True:
            running = self._check_alive()
            left_s = max(0.0, deadline - time.monotonic()) if running else 0.0
            event = self._inbox.get(min(left_s, _TURN_S))
            if self._is_paused:
                self._wake()  # there is room again, perhaps
            if event is not None or not running or time.monotonic() >= deadline:
                return event

    def publish(self, publication: Publication) -> int:
        """Queue a publication and return its token, which comes back in `Published` when the broker has answered.

        QoS 1 waits for a broker that is away and is sent again after a lost connection. QoS 0 has no `Published`, and
        is dropped (token 0) while disconnected. Raises PayloadTooLarge or QueueFull.
        """
        if publication.qos == 0 and not self._connected:
            return 0
        token = self._outgoing.add(publication, time.monotonic())
        self._wake()
        return token

    def ack(self, message: Message) -> None:
        """Tell the broker that a message is dealt with, in the order received; ignored after a reconnect.

        Raises ValueError when an earlier message is still unacknowledged.
        """
        self._inbox.acknowledge(message)
        self._wake()

    def subscribe(self, *filters: str) -> None:
        """Receive messages on these filters at QoS 1, and what is retained on them, now and on every new session."""
        for topic_filter in filters:
            check_filter(topic_filter)
        with self._lock:
            self._filters.update(filters)
            self._to_subscribe.update(dict.fromkeys(filters, SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE))
            self._to_unsubscribe.difference_update(filters)
        self._wake()

    def unsubscribe(self, *filters: str) -> None:
        """No longer receive messages on these filters."""
        with self._lock:
            self._filters.difference_update(filters)
            self._to_unsubscribe.update(filters)
            for topic_filter in filters:
                self._to_subscribe.pop(topic_filter, None)
        self._wake()

    @property
    def dropped(self) -> int:
        """How many messages were dropped because the caller fell behind."""
        return self._inbox.dropped

    @property
    def traffic(self) -> Traffic:
        """What has been carried so far."""
        return replace(self._traffic, waiting=len(self._outgoing), dropped=self._inbox.dropped)

    def _check_alive(self) -> bool:
        """Whether events may still come; a thread that died or hangs makes the inbox raise."""
        if self._thread.ident is None:
            raise ValueError("start the client before waiting for its events")
        if self._is_silent():
            time.sleep(2 * _TURN_S)  # the whole process may have been frozen: let the thread come by first
        if self._thread.is_alive() and not self._is_silent():
            return True
        if not self._stopping.is_set():
            self._inbox.fail(RuntimeError(f"no sign of life from the thread {self._thread.name!r}"))
        return False

    def _is_silent(self) -> bool:
        return time.monotonic() - self._seen_alive >= _STUCK_AFTER_S

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # a full pipe wakes as well, and behind a closed one nobody listens
            self._wake_sender.send(b"\0")

    # What the network thread does; nothing below here is called by any other.

    def _run(self) -> None:
        try:
            retry_s = _RETRY_FIRST_S
            while not self._finished():
                self._seen_alive, self._answered_at = time.monotonic(), None
                self._report_loss(self._connect_and_serve())
                self._seen_alive = now = time.monotonic()
                retry_s = next_wait_s(retry_s, served_s=now - (self._answered_at or now))
                self._pause(random.uniform(0, retry_s))  # full jitter: many clients must not come back in step
        except BaseException as failure:  # whatever it is, next_event raises it: a dead thread must not look alive
            self._inbox.fail(failure)

    def _pause(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            time.sleep(max(0.0, min(_RETRY_FIRST_S, self._stop_at - time.monotonic())))

    def _finished(self) -> bool:
        """Whether to end now: asked to, and either all is delivered or the time for it is over."""
        return self._stopping.is_set() and (len(self._outgoing) == 0 or time.monotonic() >= self._stop_at)

    def _report_loss(self, reason: str) -> None:
        if reason != self._reported and not self._finished():
            self._inbox.put(Disconnected(reason))
            self._reported = reason

    def _connect_and_serve(self) -> str:
        """Connect, serve the connection until it ends, and return why it ended."""
        self._last_words = None
        try:
            self._paho.username_pw_set(self._settings.username, self._settings.read_password())
            self._paho.reconnect()
        except OSError as failure:
            return reasons.unreachable(self._settings, failure)
        connection = self._paho.socket()
        assert isinstance(connection, socket.socket)
        # requests here wait for the answer to the one before: each must not wait for the broker's TCP as well
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, selectors.DefaultSelector() as selector:
            selector.register(self._wake_receiver, selectors.EVENT_READ)
            self._serve(selector, connection)
        while self._unwritten:
            self._outgoing.done(self._unwritten.popleft()[1])
        answered, self._connected = self._connected, False
        return self._last_words or reasons.lost(self._settings, answered)

    def _serve(self, selector: selectors.BaseSelector, connection: socket.socket) -> None:
        answer_by = time.monotonic() + _CONNECT_TIMEOUT_S
        while self._connected or time.monotonic() < answer_by:
            self._seen_alive = time.monotonic()
            if self._connected:
                self._hand_over()
            if self._finished():
                return self._say_farewell(connection)
            if self._turn(selector, connection) != MQTTErrorCode.MQTT_ERR_SUCCESS:
                return None

    def _turn(self, selector: selectors.BaseSelector, connection: socket.socket) -> MQTTErrorCode:
        """Wait for the network or a caller, then read, write and see to the keepalive."""
        # first set, then looked at: a caller who makes room in between wakes us
        self._is_paused = True
        self._is_paused = self._connected and self._inbox.is_full
        _watch(selector, connection, read=not self._is_paused, write=self._paho.want_write())
        # TLS may hold decrypted bytes that no select sees.
        decrypted = not self._is_paused and isinstance(connection, ssl.SSLSocket) and connection.pending() > 0
        ready = {key.fileobj: mask for key, mask in selector.select(0 if decrypted else _TURN_S)}
        if self._wake_receiver in ready:
            self._wake_receiver.recv(4096)
        code = MQTTErrorCode.MQTT_ERR_SUCCESS
        if decrypted or ready.get(connection, 0) & selectors.EVENT_READ:
            code = self._paho.loop_read()
        if code == MQTTErrorCode.MQTT_ERR_SUCCESS and ready.get(connection, 0) & selectors.EVENT_WRITE:
            code = self._paho.loop_write()
        return code or self._paho.loop_misc()

    def _hand_over(self) -> None:
        """Give paho what callers have queued."""
        for mid in self._inbox.take_acknowledged():
            self._paho.ack(mid, 1)
        with self._lock:
            filters, self._to_subscribe = self._to_subscribe, {}
            unwanted, self._to_unsubscribe = sorted(self._to_unsubscribe), set()
        if unwanted:
            self._unsubscribing[self._paho.unsubscribe(unwanted)[1] or 0] = unwanted
        if filters:
            wanted = [(f, SubscribeOptions(1, retainAsPublished=True, retainHandling=r)) for f, r in filters.items()]
            self._subscribing[self._paho.subscribe(wanted)[1] or 0] = filters
        while self._unwritten and self._unwritten[0][0].is_published():
            self._outgoing.done(self._unwritten.popleft()[1])
        while len(self._unwritten) < MAX_IN_FLIGHT:  # of QoS 0 no window but this bounds what paho holds
            if (ready := self._outgoing.next_to_send(time.monotonic())) is None:
                return
            if isinstance(ready, Published):
                self._inbox.put(ready)
            else:
                self._send(ready)

    def _send(self, outgoing: Outgoing) -> None:
        p = outgoing.publication
        properties = _publish_properties(p, PacketTypes.PUBLISH)
        info = self._paho.publish(p.topic, p.payload, p.qos, p.retain, properties)
        while info.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:  # the packet id came round while still in flight
            info = self._paho.publish(p.topic, p.payload, p.qos, p.retain, properties)
        before, size = self._traffic, len(p.payload)
        self._traffic = replace(before, messages_out=before.messages_out + 1, bytes_out=before.bytes_out + size)
        if p.qos:
            self._outgoing.sent(outgoing, info.mid)
        elif info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:  # lost with the connection
            self._outgoing.done(outgoing)
        else:
            self._unwritten.append((info, outgoing))

    def _say_farewell(self, connection: socket.socket) -> None:
        if self._connected:
            self._paho.disconnect()
            connection.settimeout(_TURN_S)
            while self._paho.want_write() and self._paho.loop_write() == MQTTErrorCode.MQTT_ERR_SUCCESS:
                pass

    # What paho calls, in the network thread.

    def _on_connect(self, _client: Any, _data: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        if reason.value >= _REFUSED:
            self._last_words = reasons.refused(self._settings, reason.value, reason.getName())
            return
        max_packet_size = getattr(properties, "MaximumPacketSize", None)
        receive_maximum = getattr(properties, "ReceiveMaximum", None)
        limit = self._settings.max_packet_size
        self._outgoing.max_packet_size = min(limit, max_packet_size or limit)
        self._outgoing.window = min(MAX_IN_FLIGHT, receive_maximum or MAX_IN_FLIGHT)
        if not self._outgoing.fits():  # else paho sends again what this broker will not take, for ever
            self._paho.drop_out_messages()
            self._outgoing.requeue()
        self._inbox.begin_generation(flags.session_present)
        self._renew_subscriptions()
        self._connected, self._reported, self._answered_at = True, None, time.monotonic()
        self._inbox.put(Connected(flags.session_present, max_packet_size, receive_maximum))

    def _renew_subscriptions(self) -> None:
        """Subscribe again on every connection: harmless when the broker remembers, needed when it does not.

        What is retained comes once in the life of this object and again when the broker has forgotten the
        subscription: a process that starts afresh needs it even in an old session, one that reconnects has it.
        """
        unanswered = {f: retain for lost in self._subscribing.values() for f, retain in lost.items()}
        with self._lock:
            resumed = dict.fromkeys(self._filters, SubscribeOptions.RETAIN_SEND_IF_NEW_SUB)
            asked = resumed | unanswered | self._to_subscribe
            self._to_subscribe = {f: asked[f] for f in asked if f in self._filters}
            self._to_unsubscribe.update(f for lost in self._unsubscribing.values() for f in lost)
            self._to_unsubscribe.difference_update(self._filters)
        self._subscribing.clear()
        self._unsubscribing.clear()

    def _on_disconnect(self, _client: Any, _data: Any, flags: Any, reason: ReasonCode, _properties: Any) -> None:
        if self._last_words is None and flags.is_disconnect_packet_from_server:
            self._last_words = reasons.closed(self._settings, reason.value, reason.getName())
        elif self._last_words is None and reason.value == _KEEPALIVE_TIMEOUT:
            self._last_words = (reasons.unread if self._is_paused else reasons.silent)(self._settings)

    def _on_subscribe(self, _client: Any, _data: Any, mid: int, reasons: list[ReasonCode], _properties: Any) -> None:
        for topic_filter, reason in zip(self._subscribing.pop(mid, {}), reasons, strict=False):
            self._inbox.put(Subscribed(topic_filter, reason.getName() if reason.value >= _REFUSED else None))

    def _on_unsubscribe(self, _client: Any, _data: Any, mid: int, _reasons: Any, _properties: Any) -> None:
        self._unsubscribing.pop(mid, None)

    def _on_publish(self, _client: Any, _data: Any, mid: int, reason: ReasonCode, _properties: Properties) -> None:
        token = self._outgoing.acknowledged(mid)
        if token is not None:
            refusal = reason.getName() if reason.value >= _REFUSED else None
            self._inbox.put(Published(token, refusal, heard=reason.value != _NO_MATCHING_SUBSCRIBERS))

    def _on_message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        before, size = self._traffic, len(message.payload)
        self._traffic = replace(before, messages_in=before.messages_in + 1, bytes_in=before.bytes_in + size)
        came = _message(message, self._inbox.generation)
        if came.topic.startswith("$") and not self._is_asked_for(came.topic):
            if not self._has_warned:
                log.warning("the broker sends what nobody asked it for, first on %r: it may be lying", came.topic[:100])
            self._has_warned = True
            return
        self._inbox.put(came)

    def _is_asked_for(self, topic: str) -> bool:
        """Whether we listen to this topic, which begins with a $: no wildcard takes it in."""
        with self._lock:
            return any(paho.topic_matches_sub(one, topic) for one in self._filters if one.startswith("$"))


def next_wait_s(last_s: float, served_s: float) -> float:
    """The longest wait before the next attempt: twice the last one, halved for every second of service since then.

    A broker that dies again and again is soon tried again; one that throws us out at once is left alone ever longer.
    """
    return max(_RETRY_FIRST_S, min(2 * last_s, _RETRY_LONGEST_S) * math.exp2(-served_s))


def _watch(selector: selectors.BaseSelector, connection: socket.socket, *, read: bool, write: bool) -> None:
    """Have the selector look at the connection for these, or not at all."""
    wanted = (selectors.EVENT_READ if read else 0) | (selectors.EVENT_WRITE if write else 0)
    if connection not in selector.get_map():
        if wanted:
            selector.register(connection, wanted)
    elif wanted:
        selector.modify(connection, wanted)
    else:
        selector.unregister(connection)


def _new_paho(settings: BrokerSettings, client_id: str, clean_start: bool) -> paho.Client:
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id, protocol=MQTTProtocolVersion.MQTTv5, manual_ack=True)
    client.max_inflight_messages_set(0)  # the window is kept by the outgoing queue, which knows the broker's
    client.connect_timeout = _CONNECT_TIMEOUT_S
    if settings.ca_file is not None:
        client.tls_set_context(settings.tls_context())
    properties = _properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = settings.session_expiry_s
    properties.ReceiveMaximum = MAX_IN_FLIGHT
    properties.MaximumPacketSize = settings.max_packet_size
    first_only = paho.MQTT_CLEAN_START_FIRST_ONLY if clean_start else False
    client.connect_async(
        settings.host, settings.port, settings.keepalive_s, clean_start=first_only, properties=properties
    )
    return client


def _properties(packet: int) -> Properties:
    return Properties(packet)  # type: ignore[no-untyped-call]  # paho types all but this


def _publish_properties(publication: Publication, packet: int) -> Properties:
    properties = _properties(packet)
    if publication.user:
        properties.UserProperty = list(publication.user)
    if publication.expiry_s is not None:
        properties.MessageExpiryInterval = publication.expiry_s
    if publication.response_topic is not None:
        properties.ResponseTopic = publication.response_topic
    if publication.correlation_data is not None:
        properties.CorrelationData = publication.correlation_data
    if publication.content_type is not None:
        properties.ContentType = publication.content_type
    if publication.payload_format is not None:
        properties.PayloadFormatIndicator = publication.payload_format
    return properties


def _message(message: paho.MQTTMessage, generation: int) -> Message:
    try:
        topic = message.topic
    except UnicodeDecodeError as failure:  # a broker should not let it through; the caller refuses it like any other
        topic = failure.object.decode("utf-8", errors="replace")
    properties = message.properties
    return Message(
        topic=topic,
        payload=bytes(message.payload),
        qos=message.qos,
        retain=message.retain,
        duplicate=message.dup,
        properties=MessageProperties(
            user=tuple((key, value) for key, value in getattr(properties, "UserProperty", ())),
            content_type=getattr(properties, "ContentType", None),
            response_topic=getattr(properties, "ResponseTopic", None),
            correlation_data=getattr(properties, "CorrelationData", None),
            expiry_s=getattr(properties, "MessageExpiryInterval", None),
            payload_format=getattr(properties, "PayloadFormatIndicator", None),
        ),
        received_at_ns=time.time_ns(),
        generation=generation,
        mid=message.mid,
    )

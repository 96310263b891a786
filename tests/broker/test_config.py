"""The generated mosquitto configuration, proven on a real mosquitto: TLS, client certificates, access rules, limits."""

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from broker.client import MAX_IN_FLIGHT, Client
from broker.config import AclRule, TlsFiles, acl, deployment_config, loopback_config
from broker.events import Connected, Disconnected, Message, Publication, Published, Subscribed
from broker.settings import BrokerSettings
from tests.ports import free_port

Expect = Callable[..., Any]

RULES = (
    AclRule("write", "root/up/%u/#"),
    AclRule("read", "root/down/%u/#"),
    AclRule("read", "root/all/#"),
    AclRule("readwrite", "root/#", user="boss"),
)


def test_the_limits_are_those_that_were_measured() -> None:
    lines = loopback_config(1883, Path("/data")).splitlines()
    for line in (
        "listener 1883 127.0.0.1",
        "max_packet_size 1048576",
        "max_queued_messages 100000",
        "max_queued_bytes 268435456",
        "max_inflight_messages 20",
        "persistent_client_expiration 14d",
        "persistence true",
        "autosave_interval 10",
    ):
        assert line in lines
    assert not any(line.startswith(("message_size_limit", "memory_limit")) for line in lines)


def test_the_access_rules_as_mosquitto_reads_them() -> None:
    assert acl(RULES) == (
        "pattern write root/up/%u/#\n"
        "pattern read root/down/%u/#\n"
        "pattern read root/all/#\n"
        "\n"
        "user boss\n"
        "topic readwrite root/#\n"
    )


@pytest.mark.parametrize(
    ("pattern", "user"), [("a\nuser boss", None), ("a/#/b", None), ("a", ""), ("a", "node\ntopic readwrite #")]
)
def test_a_rule_that_would_say_something_else_is_refused(pattern: str, user: str | None) -> None:
    with pytest.raises(ValueError):
        AclRule("read", pattern, user)


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def certificate(folder: Path, name: str, san: str = "") -> tuple[Path, Path]:
    """A key and a certificate for `name`, signed by the authority in `folder`."""
    key, request, signed = (folder / f"{name}.{suffix}" for suffix in ("key", "csr", "pem"))
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", request, "-subj", f"/CN={name}")
    (folder / "extensions").write_text(f"subjectAltName={san}\n" if san else "basicConstraints=CA:FALSE\n")
    openssl(
        *("x509", "-req", "-in", request, "-CA", folder / "ca.pem", "-CAkey", folder / "ca.key", "-CAcreateserial"),
        *("-out", signed, "-days", "2", "-extfile", folder / "extensions"),
    )
    return signed, key


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate authority of our own."""
    if shutil.which("openssl") is None:
        pytest.skip("OPENSSL IS NOT INSTALLED: the TLS tests do not run")
    folder = tmp_path_factory.mktemp("authority")
    openssl(
        *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", folder / "ca.key", "-out", folder / "ca.pem"),
        *("-subj", "/CN=test authority", "-days", "2"),
    )
    return folder


@contextmanager
def serving(program: str, folder: Path, text: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """mosquitto with this configuration, until the block ends."""
    (folder / "mosquitto.conf").write_text(text)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, "-c", str(folder / "mosquitto.conf")], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.01)
        yield process
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def deployment(mosquitto: str, authority: Path) -> Iterator[Callable[[str], BrokerSettings]]:
    """A deployed broker; call it with a name for the settings of a client with that certificate."""
    port = free_port()
    cert, key = certificate(authority, "broker", san="IP:127.0.0.1,DNS:localhost")
    (authority / "acl").write_text(acl(RULES))
    # The broker started as root becomes another user, who must be able to read these.
    authority.chmod(0o755)
    for parent in authority.parents[:3]:  # one more where several processes run the tests
        if parent != Path(tempfile.gettempdir()):
            parent.chmod(0o755)
    for file in authority.iterdir():
        file.chmod(0o644)
    text = deployment_config(port, authority, TlsFiles(authority / "ca.pem", cert, key), authority / "acl")

    def settings_of(name: str) -> BrokerSettings:
        cert_file, key_file = certificate(authority, name)
        return BrokerSettings(port=port, ca_file=authority / "ca.pem", cert_file=cert_file, key_file=key_file)

    with serving(mosquitto, authority, text, port):
        yield settings_of


@pytest.mark.mosquitto
def test_a_node_publishes_on_its_own_topics_and_no_others(
    deployment: Callable[[str], BrokerSettings], expect: Expect
) -> None:
    with (
        Client(deployment("boss"), "boss", subscriptions=("root/#",)) as boss,
        Client(deployment("node1"), "node1", subscriptions=("root/all/#", "root/down/#")) as node,
    ):
        expect(boss, Subscribed)
        refused = {
            topic: node.publish(Publication(topic, b""))
            for topic in ("root/up/node2/x", "root/all/x", "root/down/node1/x", "elsewhere")
        }
        allowed = node.publish(Publication("root/up/node1/x", b"mine"))
        answers = {answer.token: answer for answer in (expect(node, Published) for _ in range(5))}
        assert answers[allowed].reason is None
        assert {topic: answers[token].reason for topic, token in refused.items()} == dict.fromkeys(
            refused, "Not authorized"
        )
        assert expect(boss, Message).topic == "root/up/node1/x"


@pytest.mark.mosquitto
def test_a_node_reads_what_is_for_all_or_for_itself_and_nothing_else(
    deployment: Callable[[str], BrokerSettings], expect: Expect
) -> None:
    with (
        Client(deployment("boss"), "boss2") as boss,
        Client(deployment("node1"), "reader", subscriptions=("root/#",)) as node,
    ):
        expect(node, Subscribed)
        for topic in ("root/down/node2/x", "root/up/node1/x", "root/down/node1/x", "root/all/x"):
            boss.publish(Publication(topic, b"", retain=True))
        assert [expect(node, Message).topic for _ in range(2)] == ["root/down/node1/x", "root/all/x"]


@pytest.mark.mosquitto
def test_large_messages_pass_through_tls_both_ways(
    deployment: Callable[[str], BrokerSettings], expect: Expect, receive: Callable[..., list[Message]]
) -> None:
    with Client(deployment("boss"), "bulk", subscriptions=("root/bulk",)) as client:
        expect(client, Subscribed)
        for i in range(30):
            client.publish(Publication("root/bulk", bytes([i]) * 1_000_000))
        assert [message.payload for message in receive(client, 30)] == [bytes([i]) * 1_000_000 for i in range(30)]


@pytest.mark.mosquitto
def test_nobody_enters_without_a_certificate(
    deployment: Callable[[str], BrokerSettings], authority: Path, expect: Expect
) -> None:
    anonymous = BrokerSettings(port=deployment("node1").port, ca_file=authority / "ca.pem")
    with Client(anonymous, "anonymous") as client:
        assert not isinstance(expect(client, Connected | Disconnected), Connected)
    plain = BrokerSettings(port=anonymous.port)
    with Client(plain, "plain") as client:
        assert "does this port expect TLS" in expect(client, Disconnected).reason


# paho leaves the socket of a failed handshake to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.mosquitto
def test_a_broker_that_another_authority_signed_is_not_trusted(
    deployment: Callable[[str], BrokerSettings], tmp_path: Path, expect: Expect
) -> None:
    openssl(
        *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", tmp_path / "ca.key"),
        *("-out", tmp_path / "ca.pem", "-subj", "/CN=somebody else", "-days", "2"),
    )
    with Client(BrokerSettings(port=deployment("node1").port, ca_file=tmp_path / "ca.pem"), "client") as client:
        assert "check ca_file" in expect(client, Disconnected).reason


@pytest.mark.mosquitto
def test_a_wrong_password_is_said(mosquitto: str, tmp_path: Path, expect: Expect) -> None:
    port = free_port()
    subprocess.run(["mosquitto_passwd", "-b", "-c", tmp_path / "users", "node", "right"], check=True)
    text = loopback_config(port, tmp_path).replace(
        "allow_anonymous true", f"allow_anonymous false\npassword_file {tmp_path / 'users'}"
    )
    (tmp_path / "right").write_text("right\n")
    (tmp_path / "wrong").write_text("wrong\n")
    with serving(mosquitto, tmp_path, text, port):
        settings = BrokerSettings(port=port, username="node", password_file=tmp_path / "right")
        with Client(settings, "right") as client:
            expect(client, Connected)
        with Client(settings.model_copy(update={"password_file": tmp_path / "wrong"}), "wrong") as client:
            assert "check username, password" in expect(client, Disconnected).reason
        with Client(settings.model_copy(update={"password_file": tmp_path / "missing"}), "missing") as client:
            assert "cannot read password_file" in expect(client, Disconnected).reason


@pytest.mark.mosquitto
def test_a_broker_that_comes_back_with_a_smaller_limit_gets_nothing_larger(
    mosquitto: str, tmp_path: Path, expect: Expect
) -> None:
    port = free_port()
    text = loopback_config(port, tmp_path)
    with Client(BrokerSettings(port=port), "client") as client:
        with serving(mosquitto, tmp_path, text, port) as process:
            expect(client, Connected)
            process.send_signal(signal.SIGSTOP)
            in_flight = client.publish(Publication("t", b"x" * 100_000))
            assert client.next_event(0.2) is None
            process.kill()
        queued = client.publish(Publication("t", b"x" * 100_000))
        small = client.publish(Publication("t", b"x"))
        with serving(mosquitto, tmp_path, text.replace("max_packet_size 1048576", "max_packet_size 50000"), port):
            answers = {answer.token: answer for answer in (expect(client, Published) for _ in range(3))}
    for large in (in_flight, queued):
        assert answers[large].reason is not None and "too large" in answers[large].reason
    assert answers[small].reason is None


@pytest.mark.mosquitto
def test_a_broker_with_a_larger_window_keeps_to_ours(mosquitto: str, tmp_path: Path, expect: Expect) -> None:
    port = free_port()
    text = loopback_config(port, tmp_path).replace("max_inflight_messages 20", "max_inflight_messages 100")
    with (
        serving(mosquitto, tmp_path, text, port),
        Client(BrokerSettings(port=port), "subscriber", subscriptions=("t",)) as subscriber,
        Client(BrokerSettings(port=port), "publisher") as publisher,
    ):
        expect(subscriber, Subscribed)
        for _ in range(MAX_IN_FLIGHT + 1):
            publisher.publish(Publication("t", b""))
        for _ in range(MAX_IN_FLIGHT + 1):
            expect(publisher, Published)
        held = [expect(subscriber, Message) for _ in range(MAX_IN_FLIGHT)]
        assert subscriber.next_event(0.3) is None
        subscriber.ack(held[0])
        expect(subscriber, Message)

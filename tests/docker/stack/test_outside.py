"""The stack with somebody else's broker: it goes on there with the versions that it has."""

import secrets

import pytest

from broker.certificates import issue_server, make_authority
from broker.settings import BrokerSettings

# paho leaves the socket of a TLS handshake that fails, as it does while no broker is there, to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

OVERLAYS = (
    "docker/compose.yaml",
    "docker/compose.external-broker.yaml",
    "tests/docker/stack/compose.test.yaml",
    "tests/docker/stack/compose.outside.yaml",
)
CONFIGURATION = """\
listener 8883
certfile /outside/server.crt
keyfile /outside/server.key
allow_anonymous false
password_file /outside/passwords
"""


@pytest.fixture
def outside(built, docker, mosquitto, tmp_path):
    """How to reach a broker with a certificate of an authority of its own, which asks for name and password."""
    folder = tmp_path / "outside"
    authority = make_authority(folder / "ca.crt", tmp_path / "ca.key", "somebody else")
    issue_server(authority, folder / "server.crt", folder / "server.key", ("outside", "127.0.0.1"), days=2)
    (folder / "password").write_text(secrets.token_hex() + "\n")
    (folder / "mosquitto.conf").write_text(CONFIGURATION)
    password = (folder / "password").read_text().strip()
    tool = ("--entrypoint", "mosquitto_passwd", mosquitto, "-b", "-c", "/outside/passwords", "plant", password)
    docker("run", "--rm", "-v", f"{folder}:/outside", *tool)
    for file in folder.iterdir():
        file.chmod(0o644)
    built.variables.update(
        BROKER_HOST="outside",
        BROKER_FILES=str(folder),
        BROKER_CA_FILE="/outside/ca.crt",
        BROKER_USERNAME="plant",
        BROKER_PASSWORD_FILE="/outside/password",
    )
    return BrokerSettings(
        port=int(built.variables["OUTSIDE_PORT"]),
        username="plant",
        password_file=folder / "password",
        ca_file=folder / "ca.crt",
    )


def test_the_federation_goes_on_at_a_broker_of_somebody_else(stack, outside):
    stack.files, before = OVERLAYS, stack.version
    assert before >= 0
    stack.leave()
    stack.heads.clear()
    stack.compose("up", "-d", "--no-build", "--remove-orphans", "--scale", "edge=3")
    with stack.observed(outside):
        stack.until(lambda: stack.version >= before, f"version {before} is on the broker outside")
        stack.until(lambda: stack.version > before, f"a version after {before}")
        asked = stack.containers("broker", "coordinator")  # a health check may come later than the version
        stack.until(lambda: all(map(stack.is_well, asked)), "broker and coordinator are healthy")
    for service in ("edge", "coordinator"):
        stack.stop(service)

"""`alignfed health` answers whether a coordinator is there, as a health check wants it: by its exit code."""

import pytest

from broker.client import Client
from broker.events import Publication, Published
from schemas.adapter import LoraConfig
from schemas.messages import CoordinatorState
from schemas.topics import CoordinatorStateOf, route


@pytest.fixture
def keep(broker):
    """keep("fleet", payload): what a coordinator has left on the broker."""

    def publish(federation, payload):
        topic = route(federation, CoordinatorStateOf()).topic
        with Client(broker, "coordinator-of-a-test", clean_start=True) as client:
            client.publish(Publication(topic, payload, retain=True))
            while not isinstance(client.next_event(10), Published):
                continue

    return publish


@pytest.fixture
def health(alignfed, broker):
    return lambda federation: alignfed("health", "--broker", broker.address, "--federation", federation)


def state(online):
    return CoordinatorState(
        online=online,
        boot_id="0" * 32,
        epoch=3,
        base_model="1" * 64,
        base_model_name="model",
        lora=LoraConfig(),
        layout="2" * 64,
        strategy="fedbuff",
        one_update_per_version=False,
        codecs=("fp32",),
    ).to_bytes()


def test_a_coordinator_that_is_there_is_healthy(health, keep):
    keep("there", state(online=True))
    answer = health("there")
    assert (answer.returncode, answer.stdout) == (0, "the coordinator is there\n")


def test_its_will_says_that_it_is_away(health, keep):
    keep("away", state(online=False))
    answer = health("away")
    assert answer.returncode == 1
    assert "is away" in answer.stderr


def test_a_broker_without_a_coordinator_and_a_state_that_is_none(health, keep):
    assert "no coordinator has been" in health("nobody").stderr
    keep("garbage", b"{}")
    answer = health("garbage")
    assert answer.returncode == 1
    assert "is none" in answer.stderr


def test_a_broker_is_healthy_before_any_coordinator_comes(alignfed, broker):
    answer = alignfed("health", "--of", "broker", "--broker", broker.address, "--federation", "nobody")
    assert (answer.returncode, answer.stdout) == (0, "the broker is there\n")


@pytest.mark.parametrize("of", ["broker", "coordinator"])
def test_no_broker_is_said_so(of, alignfed):
    answer = alignfed("health", "--of", of, "--broker", "127.0.0.1:1")
    assert answer.returncode == 1
    assert "127.0.0.1:1" in answer.stderr

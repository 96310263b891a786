"""What the tests of the demo share: messages as a bystander gets them, and a small report."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from broker.events import Message, MessageProperties
from coordinator.strategies import AlignFed
from examples.smart_home.outcome import (
    BaseModelFacts,
    HeldOut,
    HeldOutScore,
    Interview,
    LiveAnswer,
    NodeFacts,
    Report,
    Sample,
    UpdateOutcome,
    VersionLoss,
    Wire,
    node_outcomes,
    version_outcomes,
)
from examples.smart_home.recipe import RECIPE
from schemas import topics
from schemas.adapter import LoraConfig
from schemas.messages import AnchorReport, Body, GlobalManifest, GroupReport, ReleaseReport, VersionInput
from schemas.messages import Message as Payload

FEDERATION = "home"
LAMP = '{"intent":"TurnOn","name":"lamp"}'
START = datetime(2026, 11, 22, 14, 3, 5, tzinfo=UTC)

Send = Callable[[topics.Address, Payload | bytes], Message]
MakeManifest = Callable[..., GlobalManifest]


@pytest.fixture
def send() -> Send:
    """Makes the message that arrives when a payload is published to an address."""

    def message(address: topics.Address, payload: Payload | bytes) -> Message:
        content = payload if isinstance(payload, bytes) else payload.to_bytes()
        topic = topics.route(FEDERATION, address).topic
        return Message(topic, content, 1, False, False, MessageProperties(), 0, 1, 1)

    return message


@pytest.fixture
def manifest() -> MakeManifest:
    """Makes a version of (node, base version, weight) inputs, so many seconds after the start of the run."""
    return _manifest


def _manifest(version: int, *inputs: tuple[str, int, float], seconds: int = 0, **made: Any) -> GlobalManifest:
    return GlobalManifest(
        **made,
        epoch=1,
        version=version,
        parent=None,
        base_model="b" * 64,
        lora=LoraConfig(),
        layout="c" * 64,
        strategy="alignfed",
        release=ReleaseReport(version=0, variant="head", judged=0),
        inputs=tuple(
            VersionInput(node=node, update_id=f"{index:032x}", base_version=base, examples=8, weight=weight)
            for index, (node, base, weight) in enumerate(inputs)
        ),
        created_at_ns=int((START + timedelta(seconds=seconds)).timestamp()) * 10**9,
        body=Body(codec="safetensors", sha256=f"{version:064x}", size=100),
    )


@pytest.fixture
def report(tmp_path: Path) -> Report:
    """Two homes, two versions: home-2 was one version behind and weighs less, and the gate kept version 1's average."""
    decisions = [
        ReleaseReport(version=0, variant="head", judged=0),
        ReleaseReport(version=1, variant="average", judged=1, candidate=2.1, before=3.1, seconds=3),
        ReleaseReport(version=1, variant="average", judged=2, candidate=2.5, before=2.1, seconds=2),
    ]
    versions = version_outcomes(
        [
            _manifest(0),
            _manifest(
                1, ("home-1", 0, 0.5), ("home-1", 0, 0.5), seconds=10,
                groups=(GroupReport(base_version=0, updates=2, cosine=0.75),),
                anchor=AnchorReport(base_version=0, weight=1, loss_before=3.0, loss_after=2.0, seconds=4),
            ),
            _manifest(
                2, ("home-1", 1, 0.5), ("home-2", 0, 0.25), seconds=20,
                groups=(
                    GroupReport(base_version=0, updates=1, residual_before=0.5, residual_after=0.25, seconds=1),
                    GroupReport(base_version=1, updates=1, seconds=0.5),
                ),
                anchor=AnchorReport(base_version=0, weight=1, loss_before=2.0, loss_after=None, seconds=5),
            ),
        ],
        {decision.judged: decision for decision in decisions},
        AlignFed(),
    )  # fmt: skip
    facts = [
        NodeFacts(node="home-1", slowdown=1, intents={"TurnOn": 30, "TurnOff": 10}, updates_sent=4),
        NodeFacts(node="home-2", slowdown=2, intents={"GetState": 40}, updates_sent=1),
    ]
    return Report(
        held_out=HeldOut(
            before=HeldOutScore(loss=3.25, intent_accuracy=0.125, exact_match=0, examples=16),
            after=HeldOutScore(loss=0.75, intent_accuracy=0.875, exact_match=0.5, examples=16),
        ),
        nodes=node_outcomes(facts, {"home-1": 3, "home-2": 1}, versions),
        versions=versions,
        wire=Wire(bytes=4_100_000, bytes_fp32=16_400_000, updates=4),
        seconds=125,
        peak_rss_mb=2345.6,
        peak_memory_is="PSS",
        broker="mosquitto",
        strategy="alignfed",
        seed=7,
        journal=tmp_path / "coordinator" / "journal.db",
        folder=Path("runs/2026-11-22T14-03-05"),
        command="alignfed demo --nodes 2 --versions 2 --seed 7",
        created_at=START,
        base_model=BaseModelFacts(name="tiny", digest="b" * 64, adapter_parameters=1_025_000),
        recipe=RECIPE.model_copy(update={"versions": 2}),
        losses=(
            VersionLoss(version=0, loss=3.2, head_loss=3.2, examples=8),
            VersionLoss(version=2, loss=0.8, head_loss=0.9, examples=8),
        ),
        updates=(
            UpdateOutcome(node="home-1", base_version=0, version=1, loss=3.0, started=0, received=9),
            UpdateOutcome(node="home-2", base_version=0, version=2, loss=2.0, started=1, received=19),
        ),
        samples=(
            Sample(
                prompt="turn on the <lamp>",
                expected='{"intent":"TurnOn","name":"lamp"}',
                before="Sure! <b>Done</b>",
                after='{"intent":"TurnOn","name":"lamp"}',
            ),
        ),
        interview=Interview(
            node="home-1",
            answers=tuple(
                LiveAnswer(version=version, prompt=prompt, expected=LAMP, answer=answer, asked=1.0, waited=0.5)
                for version, prompt, answer in (
                    (None, "lights <on>", "Sure!"),
                    (0, "turn on the lamp", "Sure!"),
                    (0, "lights <on>", "Sure!"),
                    (1, "turn on the lamp", '{"intent":"TurnOn","name":"<fan>"}'),
                    (1, "lights <on>", LAMP),
                )
            ),
            unanswered=2,
        ),
        restarts={"coordinator": 1},
        late=1,
        rejected=0,
        release=decisions[-1],
    )

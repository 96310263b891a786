"""One full example of every message, how hypothesis runs here, and a process that gets only so much memory."""

import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import settings

from schemas.adapter import LoraConfig
from schemas.messages import (
    AnchorReport,
    Body,
    ChatTurn,
    CoordinatorState,
    GlobalManifest,
    GlobalPointer,
    GroupReport,
    InferenceAnswer,
    InferenceError,
    InferenceRequest,
    KeyCertificate,
    Message,
    NodeMetrics,
    NodeState,
    Receipt,
    ReleaseReport,
    UpdateManifest,
    VersionInput,
)

# two busy cores make any single example slow; under CI hypothesis itself derandomizes, and that stays as it is
settings.register_profile("no-deadline", settings(), deadline=None)
settings.load_profile("no-deadline")

SHA = "0123456789abcdef" * 4
ID = SHA[:32]
BODY = Body(codec="int8", sha256=SHA, size=2, chunks=(SHA, SHA))
LORA = LoraConfig(last_layers=3)
INPUT = VersionInput(node="a", update_id=ID, base_version=1, examples=2, weight=-0.5)
GROUP = GroupReport(base_version=1, updates=2, cosine=-0.5, residual_before=1.5, residual_after=0.5, seconds=1.5)
ANCHOR = AnchorReport(base_version=1, weight=0.25, loss_before=2.5, loss_after=1.5, seconds=2.5)
RELEASE = ReleaseReport(version=1, variant="average", judged=2, candidate=1.5, before=1.25, seconds=0.5)
TURN = ChatTurn(role="user", content="turn on the lamp")
ERROR = InferenceError(code="timeout", reason="took too long")
MESSAGES: list[Message] = [
    TURN,
    ERROR,
    InferenceRequest(messages=(TURN,), stream=True, max_tokens=8, temperature=0.5, top_p=0.9, seed=1, stop=("}",)),
    InferenceAnswer(
        index=1,
        last=True,
        text="on",
        base_model=SHA,
        epoch=1,
        version=2,
        digest=SHA,
        finish="stop",
        prompt_tokens=3,
        tokens=4,
        error=ERROR,
    ),
    BODY,
    INPUT,
    GROUP,
    ANCHOR,
    RELEASE,
    UpdateManifest(
        node="a",
        boot_id=ID,
        sequence=1,
        base_version=2,
        base_digest=SHA,
        base_model=SHA,
        layout=SHA,
        examples=3,
        steps=4,
        participation=5,
        loss=0.5,
        seconds=1.5,
        body=BODY,
    ),
    Receipt(update_id=ID, status="incomplete", reason="send it again", missing=(0, 1), version=1),
    GlobalPointer(
        epoch=1, version=2, digest=SHA, parent=SHA, size=3, chunks=1, variant="average", judged=3, expires_at_ns=9
    ),
    KeyCertificate(federation="home", number=1, key=SHA, issued_at_ns=1, expires_at_ns=2),
    GlobalManifest(
        epoch=1,
        version=2,
        parent=SHA,
        base_model=SHA,
        lora=LORA,
        layout=SHA,
        strategy="fedbuff",
        calibration=SHA,
        inputs=(INPUT,),
        groups=(GROUP,),
        anchor=ANCHOR,
        release=RELEASE,
        created_at_ns=1,
        body=BODY,
        average=BODY,
    ),
    CoordinatorState(
        online=True,
        boot_id=ID,
        epoch=1,
        base_model=SHA,
        base_model_name="tiny",
        lora=LORA,
        layout=SHA,
        strategy="fedbuff",
        one_update_per_version=False,
        trained_factors="B",
        codecs=("int8",),
        node_ranks=(4,),
        finished=True,
    ),
    NodeState(
        online=True,
        boot_id=ID,
        base_model=SHA,
        version=1,
        serves=True,
        rank=4,
        codecs=("int8",),
        limits="at most 70 °C",
    ),
    NodeMetrics(boot_id=ID, base_version=1, step=1, steps=2, loss=0.5, updates_sent=3, outbox=1),
]

LIMIT = """
import resource, sys
pages = int(open("/proc/self/statm").read().split()[0])
most = pages * resource.getpagesize() + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (most, most))
"""


@pytest.fixture(scope="session", params=MESSAGES, ids=lambda message: type(message).__name__)
def message(request: pytest.FixtureRequest) -> Message:
    """Each kind of message in turn, every field of it set."""
    assert isinstance(request.param, Message)
    return request.param


@pytest.fixture
def run_confined() -> Callable[[str, str, int], str]:
    """Run `before`, then `code` with at most `extra` bytes of memory more; its output. A crash fails the test."""

    def run(before: str, code: str, extra: int) -> str:
        done = subprocess.run(
            [sys.executable, "-", str(extra)],
            input=before + LIMIT + code,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return run

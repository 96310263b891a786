"""A node's figures: what was answered and swapped is counted, and what waits grows old."""

import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from base_model.chat_tokens import ChatTokens
from base_model.reference import ResolvedModel
from edge_node.core import initial_state
from edge_node.metrics import Metrics
from edge_node.policy import TrainingPolicy
from edge_node.serving.answering import Answering, Ended, News, Question
from edge_node.serving.generation import Sampling
from edge_node.serving.http import application
from edge_node.serving.inference import Inference
from edge_node.settings import EdgeSettings
from edge_node.state import HeldOutLoss, Identity, Memory, WaitingUpdate
from edge_node.watching import HttpServer


def samples(page: bytes) -> dict[str, float]:
    """Samples by name and labels."""
    families = text_string_to_metric_families(page.decode())
    return {" ".join((s.name, *s.labels.values())): s.value for family in families for s in family.samples}


@pytest.fixture
def answering(inference: Inference, resolved: ResolvedModel) -> Any:
    running = Answering(inference, ChatTokens(resolved.path), parallel=1, waiting=4, timeout_s=60)
    yield running
    running.stop()


def test_an_answer_is_counted_with_its_tokens(answering: Answering, inference: Inference, resolved: Any) -> None:
    heard: list[News] = []
    turns = [{"role": "user", "content": "turn on the lamp"}]
    answering.ask(Question(turns, Sampling(5, 0.0, 1.0, 0)), heard.append)  # type: ignore[arg-type]
    while not (heard and isinstance(heard[-1], Ended)):
        time.sleep(0.01)
    server = HttpServer(application(inference, answering, resolved, usual_tokens=8), "127.0.0.1", 0)
    server.start()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as page:
            told = samples(page.read())
    finally:
        server.stop()
    assert told["alignfed_edge_answers_total whole"] == told["alignfed_edge_answer_seconds_count"] == 1
    assert told["alignfed_edge_tokens_total answer"] == heard[-1].tokens
    assert told["alignfed_edge_tokens_total prompt"] > 0


def test_the_oldest_update_without_a_receipt_has_an_age(tmp_path: Path) -> None:
    identity = Identity("home", "b" * 32, "0" * 64, EdgeSettings(node="attic", data=tmp_path / "none"))
    state, _ = initial_state(identity, Memory(), 0.0)
    metrics = Metrics()
    metrics.show(state)
    assert samples(metrics.page())["alignfed_edge_outbox_oldest_seconds"] == 0
    waiting = replace(
        state,
        outbox=(WaitingUpdate("a" * 32, 0, size=7, base_version=0), WaitingUpdate("b" * 32, 1, size=5, base_version=0)),
    )
    metrics.show(waiting)
    first = samples(metrics.page())
    metrics.show(waiting)
    second = samples(metrics.page())
    assert (first["alignfed_edge_outbox_updates"], first["alignfed_edge_outbox_bytes"]) == (2, 12)
    assert 0 < first["alignfed_edge_outbox_oldest_seconds"] < second["alignfed_edge_outbox_oldest_seconds"]


def test_held_out_losses_are_samples_by_what_the_version_is_used_for(tmp_path: Path) -> None:
    identity = Identity("home", "b" * 32, "0" * 64, EdgeSettings(node="attic", data=tmp_path / "none"))
    state, _ = initial_state(identity, Memory(), 0.0)
    metrics = Metrics()
    metrics.show(replace(state, served_held_out=HeldOutLoss(3, 1.25, 16)))
    told = samples(metrics.page())
    assert told["alignfed_edge_held_out_loss served"] == 1.25
    assert told["alignfed_edge_held_out_version served"] == 3
    assert "alignfed_edge_held_out_loss head" not in told


def test_why_it_does_not_train_and_what_its_owner_wants_are_samples(tmp_path: Path) -> None:
    policy = TrainingPolicy(max_temperature_c=70)
    settings = EdgeSettings(node="attic", data=tmp_path / "none", policy=policy, rank=4)
    metrics = Metrics()
    metrics.show(initial_state(Identity("home", "b" * 32, "0" * 64, settings), Memory(), 0.0)[0])
    told = samples(metrics.page())
    assert told["alignfed_edge_idle no_terms"] == told["alignfed_edge_info kltp at most 70 °C 4"] == 1

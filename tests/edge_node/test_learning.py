"""When a node trains, and what it makes of the result."""

import math
from typing import Any

import numpy as np
import pytest

from edge_node.core import node_metrics
from edge_node.effects import AbortTraining, PublishMetrics, StoreUpdate, Train, Warn
from edge_node.events import BrokerLost, HeldOutMeasured, TrainingFailed, TrainingFinished
from edge_node.settings import EdgeSettings
from edge_node.state import Memory, named_base
from schemas.chunks import split
from schemas.codec import decode, encode
from schemas.messages import UpdateManifest, update_id
from schemas.topics import CoordinatorStateOf, GlobalHead


def jobs(effects: Any) -> list[Any]:
    return [effect.job for effect in effects if isinstance(effect, Train)]


def manifest_of(update: Any) -> UpdateManifest:
    return UpdateManifest.from_bytes(update.manifest)


def test_a_node_trains_as_soon_as_it_holds_a_version(member: Any, coordinator: Any) -> None:
    (job,) = jobs(member.receives(coordinator.version(3, value=2.0)))
    assert job.start.adapter == coordinator.adapter(2.0)


def test_nothing_is_trained_before_the_terms_are_known(node: Any, coordinator: Any) -> None:
    node.connects()
    assert jobs(node.receives(coordinator.version(3))) == []


def test_an_update_is_what_was_learnt_since_the_version_that_was_dispatched(member: Any, coordinator: Any) -> None:
    member.receives(coordinator.version(3, value=2.0))
    member.receives(coordinator.version(4, value=9.0))  # comes in the midst of the training
    update = member.learns(2.5)
    manifest = manifest_of(update)
    delta = decode(update.body, coordinator.adapter(0).layout, manifest.body.codec)
    assert delta.values.tolist() == [0.5] * 8
    assert (manifest.base_version, manifest.base_digest) == (3, coordinator.version(3, value=2.0).pointer.digest)
    assert (manifest.examples, manifest.steps, manifest.loss) == (5, 8, 1.25)
    assert update.update_id == update_id(update.manifest)


def test_each_version_is_measured_once_on_held_out_examples(start_node: Any, coordinator: Any) -> None:
    node = start_node(local_data={"measured": 12})
    node.joins(coordinator.terms())
    (first,) = jobs(node.receives(coordinator.version(3)))
    effects = node.tell(HeldOutMeasured(node.now, first.sequence, examples=7, loss=1.5))
    (metrics,) = [effect.metrics for effect in effects if isinstance(effect, PublishMetrics)]
    assert (metrics.held_out_version, metrics.held_out_loss, metrics.held_out_examples) == (3, 1.5, 7)
    (again,) = jobs(node.finishes(2.0))
    node.receives(coordinator.version(4))
    (next_one,) = jobs(node.finishes(2.0))
    assert [job.measured for job in (first, again, next_one)] == [12, 0, 12]


def test_an_update_says_how_good_its_own_base_version_is(start_node: Any, coordinator: Any) -> None:
    node = start_node(local_data={"measured": 12})
    node.joins(coordinator.terms())
    (job,) = jobs(node.receives(coordinator.version(3)))
    node.tell(HeldOutMeasured(node.now, job.sequence, examples=7, loss=1.5))
    assert manifest_of(node.learns(2.0)).held_out_loss == 1.5
    assert manifest_of(node.learns(2.5)).held_out_loss == 1.5  # of the same version, measured before
    node.receives(coordinator.version(4))
    node.learns(2.0)  # the job that was under way
    assert manifest_of(node.learns(2.0)).held_out_loss is None  # nobody has measured this one


def test_where_privacy_is_promised_an_update_says_nothing_of_versions(start_node: Any, coordinator: Any) -> None:
    node = start_node(local_data={"measured": 12})
    node.joins(coordinator.terms(clip_norm=0.5))
    (job,) = jobs(node.receives(coordinator.version(3)))
    node.tell(HeldOutMeasured(node.now, job.sequence, examples=7, loss=1.5))
    assert manifest_of(node.learns(2.0)).held_out_loss is None


def test_a_held_out_loss_that_is_no_number_is_not_published(member: Any, coordinator: Any) -> None:
    (job,) = jobs(member.receives(coordinator.version(3)))
    member.tell(HeldOutMeasured(member.now, job.sequence, examples=7, loss=math.nan))
    member.tell(HeldOutMeasured(member.now, job.sequence + 1, examples=7, loss=1.0))
    assert member.state.held_out is None


def test_after_an_update_the_node_trains_on_the_newest_version_it_holds(member: Any, coordinator: Any) -> None:
    member.receives(coordinator.version(3))
    member.receives(coordinator.version(4))
    (job,) = jobs(member.finishes(2.0))
    assert job.start.pointer.version == 4


def test_without_a_newer_version_it_trains_on_the_same_one_again_with_other_examples(
    member: Any, coordinator: Any
) -> None:
    (first,) = jobs(member.receives(coordinator.version(3)))
    (second,) = jobs(member.finishes(2.0))
    assert second.start.pointer.version == 3
    assert second.seed != first.seed


def test_the_same_node_version_and_sequence_give_the_same_seed(start_node: Any, coordinator: Any) -> None:
    seeds = []
    for name in ("home-1", "home-1", "home-2"):
        node = start_node(node=name)
        node.joins(coordinator.terms())
        seeds += [job.seed for job in jobs(node.receives(coordinator.version(3)))]
    assert seeds[0] == seeds[1] != seeds[2]


def test_a_rank_that_is_not_taken_is_said_at_once_and_nothing_is_trained_at_it(
    start_node: Any, coordinator: Any
) -> None:
    node = start_node(rank=1)
    effects = node.joins(coordinator.terms(node_ranks=(4,)))
    (warning,) = [effect.text for effect in effects if isinstance(effect, Warn)]
    assert "edge.rank is 1" in warning and "takes rank 2 or 4" in warning and "coordinator.node_ranks" in warning
    assert jobs(node.receives(coordinator.version(3))) == []
    assert node_metrics(node.state, node.now).idle == "rank_not_taken"
    (job,) = jobs(node.hears(CoordinatorStateOf(), coordinator.terms(node_ranks=(1, 4))))
    assert job.start.adapter.layout.lora.rank == 1


def test_a_rank_that_is_not_taken_is_said_again_after_a_restart(start_node: Any, coordinator: Any) -> None:
    terms = coordinator.terms(node_ranks=())
    node = start_node(rank=1, terms=terms, held=coordinator.held(3))
    assert any(isinstance(effect, Warn) and "edge.rank is 1" in effect.text for effect in node.first)
    assert jobs(node.waits(10)) == []


@pytest.mark.parametrize("announced", [None, (1,)])
def test_a_rank_is_trained_that_is_taken_or_of_which_nothing_is_announced(
    start_node: Any, coordinator: Any, announced: Any
) -> None:
    node = start_node(rank=1)
    node.joins(coordinator.terms(node_ranks=announced))
    (job,) = jobs(node.receives(coordinator.version(3)))
    assert job.start.adapter.layout.lora.rank == 1


def test_one_update_per_version_means_to_wait_for_the_next(start_node: Any, coordinator: Any) -> None:
    node = start_node()
    node.joins(coordinator.terms(one_update_per_version=True))
    node.receives(coordinator.version(3))
    assert jobs(node.finishes(2.0)) == []
    assert jobs(node.waits(10_000)) == []
    assert len(jobs(node.receives(coordinator.version(4, value=3.0)))) == 1


def test_a_version_with_the_adapter_of_the_one_before_is_another_version_to_train_on(
    start_node: Any, coordinator: Any
) -> None:
    node = start_node()
    node.joins(coordinator.terms(one_update_per_version=True))
    node.receives(coordinator.version(3, value=1.0))
    node.finishes(2.0)
    assert len(jobs(node.receives(coordinator.version(4, value=1.0)))) == 1


def test_a_version_whose_update_was_rejected_is_trained_on_again_after_a_pause(
    start_node: Any, coordinator: Any
) -> None:
    node = start_node()
    node.joins(coordinator.terms(one_update_per_version=True))
    node.receives(coordinator.version(3))
    update = node.learns(2.0)
    effects = node.is_told(update, "rejected", reason="train with smaller steps")
    assert not any(isinstance(effect, Train) for effect in effects)
    assert any(isinstance(effect, Train) for effect in node.waits(60))


def test_a_node_that_is_rejected_again_and_again_rests_longer_each_time_until_one_goes_into_a_version(
    start_node: Any, coordinator: Any
) -> None:
    node = start_node()
    node.joins(coordinator.terms())
    node.receives(coordinator.version(3))
    pauses = []
    for value in range(10):
        update = node.learns(float(value))
        node.is_told(update, "accepted")
        node.is_told(update, "rejected", reason="it turns against the others")
        pauses.append(node.state.rest_until - node.now)
        node.waits(pauses[-1])
    assert pauses[:5] == sorted(pauses[:5]) and pauses[4] > 100
    assert max(pauses) <= 600 * 1.25
    node.is_told(node.learns(20.0), "aggregated", version=4)
    node.is_told(node.learns(21.0), "rejected", reason="it turns against the others")
    assert node.state.rest_until - node.now < 13


def test_one_update_per_version_holds_after_a_restart_too(start_node: Any, coordinator: Any) -> None:
    held = coordinator.held(3)
    terms = coordinator.terms(one_update_per_version=True)
    base = named_base(3, held.pointer.digest)
    node = start_node(memory=Memory(sequence=1, last_base=base), terms=terms, held=held)
    node.connects()
    assert jobs(node.waits(10_000)) == []


def test_a_node_that_starts_without_a_broker_goes_on_from_what_it_held(start_node: Any, coordinator: Any) -> None:
    node = start_node(terms=coordinator.terms(), held=coordinator.held(3))
    assert jobs(node.waits(1)) == []  # the broker may answer any moment, with something newer
    assert [job.start.pointer.version for job in jobs(node.waits(10))] == [3]


def test_a_node_that_starts_and_hears_that_it_is_up_to_date_trains_at_once(start_node: Any, coordinator: Any) -> None:
    node = start_node(terms=coordinator.terms(), held=coordinator.held(3))
    node.connects()
    assert len(jobs(node.hears(GlobalHead(), coordinator.version(3).pointer))) == 1


def test_training_goes_on_without_broker_and_coordinator_until_the_outbox_is_full(
    start_node: Any, coordinator: Any
) -> None:
    node = start_node(outbox_updates=3)
    node.joins(coordinator.terms())
    node.receives(coordinator.version(3))
    node.hears(CoordinatorStateOf(), coordinator.terms(online=False))
    node.tell(BrokerLost(node.now, "the broker is away"))
    for _ in range(3):
        node.learns(2.0)
    assert node.state.training is None
    assert jobs(node.waits(10_000)) == []


def test_a_receipt_makes_room_for_the_next_training(start_node: Any, coordinator: Any) -> None:
    node = start_node(outbox_updates=1)
    node.joins(coordinator.terms())
    node.receives(coordinator.version(3))
    update = node.learns(2.0)
    assert node.state.training is None
    assert len(jobs(node.is_told(update, "accepted"))) == 1


def test_a_finished_federation_needs_no_more_training(member: Any, coordinator: Any) -> None:
    member.receives(coordinator.version(3))
    effects = member.hears(CoordinatorStateOf(), coordinator.terms(finished=True))
    assert AbortTraining() in effects
    assert jobs(member.receives(coordinator.version(4))) == []


def test_the_result_of_an_aborted_job_is_not_used(member: Any, coordinator: Any) -> None:
    member.receives(coordinator.version(3))
    sequence = member.state.training.job.sequence
    member.hears(CoordinatorStateOf(), coordinator.terms(finished=True))
    late = TrainingFinished(1.0, sequence, coordinator.adapter(2.0), examples=1, steps=1, loss=1.0, seconds=1.0)
    assert member.tell(late) == ()


@pytest.mark.parametrize(("value", "loss"), [(math.nan, 1.0), (math.inf, 1.0), (2.0, math.nan), (3e38, 1.0)])
def test_a_diverged_training_is_dropped_and_tried_again_later(
    member: Any, coordinator: Any, value: float, loss: float
) -> None:
    member.receives(coordinator.version(3, value=-3e38))
    with np.errstate(over="ignore"):
        effects = member.finishes(value, loss)
    assert not any(isinstance(effect, StoreUpdate) for effect in effects)
    assert any(isinstance(effect, Warn) and "smaller learning_rate" in effect.text for effect in effects)
    assert jobs(effects) == []
    assert len(jobs(member.waits(60))) == 1


def test_a_training_that_cannot_be_done_is_tried_again_ever_more_rarely(member: Any, coordinator: Any) -> None:
    member.receives(coordinator.version(3))
    pauses = []
    for _ in range(3):
        sequence = member.state.training.job.sequence
        (warning, *_) = member.tell(TrainingFailed(member.now, sequence, "examples.jsonl holds no examples"))
        assert "examples.jsonl holds no examples" in warning.text
        before = member.now
        while member.state.training is None:
            member.waits(1)
        pauses.append(member.now - before)
    assert pauses == sorted(pauses)
    assert pauses[0] < 60 < pauses[-1]


@pytest.mark.parametrize(
    ("preferred", "taken", "used"),
    [
        ("fp32", ("int8", "fp32"), "fp32"),
        ("fp32", ("int8",), "int8"),
        ("kltp", ("kltp", "int8", "fp32"), "kltp"),
        ("kltp", ("int8", "fp16", "fp32"), "int8"),
        ("kltp", ("safetensors", "fp16"), "fp16"),
        ("fp16", (), "fp16"),
    ],
)
def test_the_owner_s_codec_is_used_where_the_coordinator_takes_it_else_the_best_that_both_know(
    start_node: Any, coordinator: Any, preferred: str, taken: tuple[str, ...], used: str
) -> None:
    node = start_node(codec=preferred)
    node.joins(coordinator.terms(codecs=taken))
    node.receives(coordinator.version(3))
    assert manifest_of(node.learns(2.0)).body.codec == used


def test_kltp_measures_the_loss_in_the_products_of_the_adapter_that_was_learnt(
    start_node: Any, coordinator: Any
) -> None:
    node = start_node(codec="kltp", kltp_step=2.0)
    node.joins(coordinator.terms(codecs=("kltp",)))
    node.receives(coordinator.version(3, value=1.0))
    body = node.learns(2.0).body
    start, learnt = coordinator.adapter(1.0), coordinator.adapter(2.0)
    assert body == encode(learnt - start, "kltp", end=learnt, step=2.0)
    assert body != encode(learnt - start, "kltp", step=2.0)


def test_a_delta_is_shortened_to_the_norm_that_the_federation_announces(start_node: Any, coordinator: Any) -> None:
    node = start_node(codec="kltp")
    node.joins(coordinator.terms(codecs=("kltp",), clip_norm=0.5))
    node.receives(coordinator.version(3, value=1.0))
    body = node.learns(4.0).body
    start, learnt = coordinator.adapter(1.0), coordinator.adapter(4.0)
    delta = (learnt - start).clipped(0.5)
    assert 0.4999 < delta.norm <= 0.5 < (learnt - start).norm
    assert body == encode(delta, "kltp", end=start + delta)


def test_a_body_that_fits_into_a_packet_travels_with_its_manifest(start_node: Any, coordinator: Any) -> None:
    node = start_node(codec="fp32")
    node.joins(coordinator.terms())
    node.receives(coordinator.version(3))
    assert manifest_of(node.learns(2.0)).body.chunks == ()


def test_a_body_larger_than_the_broker_s_packets_travels_in_chunks(start_node: Any, coordinator: Any) -> None:
    node = start_node(codec="fp32")
    node.joins(coordinator.terms())
    node.connects(max_packet_size=1024 + 31)  # the fp32 body has 32 bytes
    node.receives(coordinator.version(3))
    update = node.learns(2.0)
    assert len(manifest_of(update).body.chunks) == len(split(update.body, update.chunk_size)) == 1


def test_a_node_claims_the_participation_it_was_told_of(member: Any, coordinator: Any) -> None:
    member.receives(coordinator.version(3))
    first = member.learns(2.0)
    member.is_told(first, "accepted")
    assert manifest_of(first).participation == 0
    assert manifest_of(member.learns(3.0)).participation == 1


def test_every_update_has_a_sequence_number_of_its_own(start_node: Any, coordinator: Any) -> None:
    node = start_node(memory=Memory(sequence=7))
    node.joins(coordinator.terms())
    node.receives(coordinator.version(3))
    assert [manifest_of(node.learns(value)).sequence for value in (2.0, 2.0)] == [7, 8]


def test_settings_name_what_is_wrong_and_have_sensible_defaults() -> None:
    given: dict[str, Any] = {"node": "home-1", "data": "examples.jsonl"}
    settings = EdgeSettings(**given)
    assert str(settings.data_dir) == "alignfed-data/home-1"
    assert (settings.codec, settings.kltp_step, settings.slowdown) == ("kltp", 1.0, 1.0)
    with pytest.raises(ValueError, match="slow_down"):
        EdgeSettings(**(given | {"slow_down": 2}))
    with pytest.raises(ValueError, match="node"):
        EdgeSettings(**(given | {"node": "home 1"}))

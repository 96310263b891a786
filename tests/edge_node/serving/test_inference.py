"""What is served is whole, fits, is finite and is not older; a request keeps the adapter that it began with."""

import gc
import threading

import numpy as np
import pytest

from edge_node.serving.generation import Sampling, generate
from edge_node.serving.inference import AdapterRefused, AdapterSlot, Inference, ServedVersion, begin
from edge_node.serving.mapped_factors import Factor, map_factors
from schemas.adapter import Adapter, Layout, LoraConfig

PROMPT = [5, 17, 300, 42]


def prepared(inference, adapter, version):
    return inference.prepare(adapter, version, adapter.digest)


def logits(inference, slot):
    return begin(inference.session, slot, len(PROMPT)).read(PROMPT, [3])


def tokens(inference, slot, count=12):
    return list(generate(inference.session, slot, PROMPT, Sampling(count), frozenset(), lambda: False))


def version(number, epoch=1):
    return ServedVersion(epoch, number)


def with_value(adapter, value, at=0):
    values = adapter.values.copy()
    values[at] = value
    return Adapter(adapter.layout, values)


def with_tensors(*tensors):
    layout = Layout(lora=LoraConfig(rank=4, alpha=8), tensors=tuple(sorted(tensors)))
    return Adapter(layout, np.full(layout.size, 0.1, np.float32))


def test_a_node_serves_the_base_model_until_the_first_adapter_comes(inference, make_adapter):
    assert inference.current is None
    slot = prepared(inference, make_adapter(1), version(1))
    assert inference.current is None  # preparing changes nothing
    inference.swap(slot)
    assert inference.current is slot
    assert not np.array_equal(logits(inference, slot), logits(inference, None))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_adapter_that_is_not_finite_is_not_served(inference, make_adapter, value):
    with pytest.raises(AdapterRefused, match="not finite"):
        prepared(inference, with_value(make_adapter(1), value, at=-1), version(1))


def test_an_adapter_that_overflows_when_scaled_is_not_served(inference, make_adapter):
    with pytest.raises(AdapterRefused, match="not finite"):
        prepared(
            inference,
            Adapter(make_adapter(1).layout, np.full(make_adapter(1).layout.size, 3e38, np.float32)),
            version(1),
        )


def test_an_adapter_whose_answers_are_not_finite_is_not_served(inference, make_adapter):
    huge = make_adapter(1, alpha=4) * 1e38
    assert huge.is_finite
    with pytest.raises(AdapterRefused, match="answers are not finite"):
        prepared(inference, huge, version(1))


Q = "base_model.model.model.layers.0.self_attn.q_proj"
A, B = f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ([(A, (4, 32)), (B, (64, 4))], r"lora_A has shape \(32, 4\), and the served model takes \(64, None\)"),
        ([(A, (4, 64)), (B, (63, 4))], r"lora_B has shape \(4, 63\)"),
        ([(A, (4, 64)), (B, (64, 8))], "factors of ranks 4 and 8"),
        ([(A, (4, 64))], "only one of its two factors"),
        ([(A.replace("layers.0", "layers.9"), (4, 64))], "takes no factor model.layers.9"),
        ([("base_model.model.model.norm.weight", (1, 64))], "is not a LoRA factor"),
    ],
    ids=["wrong inputs", "wrong outputs", "rank differs", "B is missing", "unknown module", "not a factor"],
)
def test_an_adapter_that_does_not_fit_the_model_is_not_served(inference, tensors, reason):
    with pytest.raises(AdapterRefused, match=reason):
        prepared(inference, with_tensors(*tensors), version(1))


def test_what_onnx_runtime_itself_cannot_run_is_refused_by_the_dry_run(inference):
    module = "model.layers.0.self_attn.q_proj"
    a, b = (Factor(np.ones(shape, np.float32)) for shape in ((64, 4), (8, 64)))
    factors = map_factors({f"{module}.lora_A": a, f"{module}.lora_B": b})
    with pytest.raises(AdapterRefused, match="cannot run it"):
        inference._try(AdapterSlot(version(1), "", factors))


def test_a_slot_keeps_its_adapter_alive(inference, make_adapter):
    slot = prepared(inference, make_adapter(1), version(1))
    before = logits(inference, slot)
    for seed in range(2, 12):  # memory that was freed by mistake would be taken by these
        prepared(inference, make_adapter(seed), version(seed))
    gc.collect()
    np.testing.assert_array_equal(logits(inference, slot), before)


def test_an_older_version_is_not_served_unless_a_higher_epoch_says_so(inference, make_adapter):
    inference.swap(prepared(inference, make_adapter(5), version(5)))
    with pytest.raises(AdapterRefused, match="version 4 of epoch 1 is older than version 5 of epoch 1"):
        inference.swap(prepared(inference, make_adapter(4), version(4)))
    assert inference.current.version == version(5)
    inference.swap(prepared(inference, make_adapter(4), version(4, epoch=2)))
    assert inference.current.version == version(4, epoch=2)


def test_a_rollback_serves_the_version_before_bit_for_bit(inference, make_adapter):
    inference.swap(prepared(inference, make_adapter(1), version(1)))
    first = logits(inference, inference.current)
    inference.swap(prepared(inference, make_adapter(2), version(2)))
    assert not np.array_equal(logits(inference, inference.current), first)
    assert inference.rollback().version == version(1)
    np.testing.assert_array_equal(logits(inference, inference.current), first)
    with pytest.raises(ValueError, match="nothing to roll back to"):
        inference.rollback()
    inference.swap(prepared(inference, make_adapter(2), version(2)))  # explicitly: it is newer than what is served now


def test_a_rollback_of_the_first_adapter_serves_the_base_model(inference, make_adapter):
    inference.swap(prepared(inference, make_adapter(1), version(1)))
    assert inference.rollback() is None
    assert inference.current is None


def test_a_swap_hands_out_the_slot_that_nobody_can_go_back_to(inference, make_adapter):
    slots = [prepared(inference, make_adapter(number), version(number)) for number in (1, 2, 3)]
    assert [inference.swap(slot) for slot in slots] == [None, None, slots[0]]


def test_an_answer_stays_bit_exact_on_its_own_adapter_through_two_swaps(inference, make_adapter):
    slots = [prepared(inference, make_adapter(number), version(number)) for number in (1, 2, 3)]
    alone = [tokens(inference, slot) for slot in slots]
    assert len({tuple(one) for one in alone}) == 3
    inference.swap(slots[0])
    answer = generate(inference.session, inference.current, PROMPT, Sampling(12), frozenset(), lambda: False)
    begun = [next(answer) for _ in range(3)]
    inference.swap(slots[1])
    begun += [next(answer) for _ in range(3)]
    inference.swap(slots[2])
    assert [*begun, *answer] == alone[0]
    assert tokens(inference, inference.current) == alone[2]


def test_many_requests_during_many_swaps_each_get_the_answer_of_one_version(inference, make_adapter):
    adapters = [make_adapter(seed) for seed in range(3)]
    expected = {a.digest: tokens(inference, prepared(inference, a, version(1))) for a in adapters}
    inference.swap(prepared(inference, adapters[0], version(1)))
    ended, answers = threading.Event(), []

    def ask():
        while not ended.is_set():
            slot = inference.current
            answers.append((slot.digest, tokens(inference, slot)))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(2, 60):
        inference.swap(prepared(inference, adapters[number % 3], version(number)))
    ended.set()
    for thread in threads:
        thread.join()
    assert len({digest for digest, _ in answers}) == 3
    assert all(answer == expected[digest] for digest, answer in answers)


def test_two_adapters_at_once_cannot_be_said(inference, make_adapter):
    slot = prepared(inference, make_adapter(1), version(1))
    with pytest.raises(AttributeError):
        slot.loaded = prepared(inference, make_adapter(2), version(2)).loaded
    assert Inference(inference.session).current is None  # sessions are shared, what is served is not

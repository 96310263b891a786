"""Noise: what it is drawn from, how much of it there is, and what it costs each node of its privacy."""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest

from coordinator.privacy.noise import gaussians, heaviest, losses, protected
from coordinator.privacy.terms import PrivacyTerms, fitted, is_fitted
from coordinator.strategies import AlignFed, FedAvg, FedBuff, FedEx, FFALora, FLoRA
from coordinator.updates import AdapterUpdate, Aggregate
from schemas.adapter import Adapter, Layout, LoraConfig
from schemas.messages import GroupReport

KEY = bytes(range(32))
WIDE = Layout(lora=LoraConfig(rank=1), tensors=(("x.lora_A.weight", (1, 30_000)), ("x.lora_B.weight", (20_000, 1))))
MakeUpdate = Callable[..., AdapterUpdate]


def test_the_same_key_and_label_draw_the_same_numbers_and_no_other_do() -> None:
    one = gaussians(KEY, b"a", 101)
    assert np.array_equal(one, gaussians(KEY, b"a", 101))
    assert not np.array_equal(one, gaussians(KEY, b"b", 101))
    assert not np.array_equal(one, gaussians(KEY[::-1], b"a", 101))


def test_the_numbers_are_standard_normal_at_every_hundredth() -> None:
    drawn = np.sort(gaussians(KEY, b"many", 100_000))
    for percent in range(1, 100):
        share = np.searchsorted(drawn, NormalDist().inv_cdf(percent / 100)) / drawn.size
        assert abs(share - percent / 100) < 0.006  # four standard deviations of the largest


def test_a_key_of_another_length_is_a_bad_call() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        gaussians(b"short", b"", 1)


def test_the_spread_is_the_noise_multiplier_times_what_the_heaviest_node_can_move(update: MakeUpdate) -> None:
    terms = PrivacyTerms(clip_norm=3, noise_multiplier=2)
    updates = [update("a", 0), update("a", 0, sequence=1), update("b", 0)]
    aggregate = Aggregate(Adapter.zeros(WIDE), weights=(0.25, 0.25, 0.25))
    assert heaviest(aggregate, updates) == 0.5
    noisy = protected(aggregate, updates, terms, "both", KEY, "parent").adapter
    assert noisy.values.std() == pytest.approx(2 * 3 * 0.5, rel=0.02)
    assert abs(noisy.values.mean()) < 0.06


def test_noise_is_on_the_factor_that_is_shared_alone(update: MakeUpdate) -> None:
    aggregate = Aggregate(Adapter.zeros(WIDE), weights=(1.0,))
    terms = PrivacyTerms(clip_norm=1, noise_multiplier=1)
    noisy = protected(aggregate, [update("a", 0)], terms, "B", KEY, "parent").adapter.tensors()
    assert not noisy["x.lora_A.weight"].any() and noisy["x.lora_B.weight"].all()


def test_another_parent_other_inputs_or_other_weights_mean_other_noise(update: MakeUpdate) -> None:
    terms, one, other = PrivacyTerms(clip_norm=1, noise_multiplier=1), update("a", 0), update("b", 0)
    zero = Adapter.zeros(WIDE)
    made = [
        protected(Aggregate(zero, weights=weights), updates, terms, "both", KEY, parent).adapter.digest
        for parent, updates, weights in (
            ("p", [one], (1.0,)),
            ("q", [one], (1.0,)),
            ("p", [other], (1.0,)),
            ("p", [one, other], (1.0, 0.5)),
            ("p", [one, other], (0.5, 1.0)),
        )
    ]
    assert len(set(made)) == len(made)


def test_what_is_said_of_deltas_is_not_in_the_manifest(update: MakeUpdate) -> None:
    groups = (GroupReport(base_version=0, updates=2, cosine=0.5),)
    aggregate = Aggregate(Adapter.zeros(WIDE), weights=(1.0,), groups=groups)
    for multiplier in (0, 1):
        terms = PrivacyTerms(clip_norm=1, noise_multiplier=multiplier)
        (group,) = protected(aggregate, [update("a", 0)], terms, "both", KEY, "").groups
        assert group == GroupReport(base_version=0, updates=2, cosine=None)


def test_a_node_with_less_weight_loses_less_of_its_privacy(update: MakeUpdate) -> None:
    aggregate = Aggregate(Adapter.zeros(WIDE), weights=(0.5, 0.25, 0.0))
    updates = [update("a", 0), update("b", 0), update("c", 0)]
    terms = PrivacyTerms(clip_norm=3, noise_multiplier=2)
    assert losses(aggregate, updates, terms) == {"a": 1 / 4, "b": 1 / 16, "c": 0}


def test_without_noise_nothing_is_promised_to_who_had_a_part(update: MakeUpdate) -> None:
    aggregate = Aggregate(Adapter.zeros(WIDE), weights=(0.5, 0.0))
    updates = [update("a", 0), update("b", 0)]
    for terms in (None, PrivacyTerms(clip_norm=1, noise_multiplier=0)):
        assert losses(aggregate, updates, terms) == {"a": math.inf, "b": 0}


def test_what_looks_at_deltas_to_weigh_them_is_left_out() -> None:
    private = fitted(AlignFed(align="transplant"))
    assert isinstance(private, AlignFed)
    assert (private.norm_limit, private.trust, private.align) == (None, None, "none")
    assert private.largest_share == AlignFed().largest_share
    assert fitted(FFALora()) == FFALora() and is_fitted(FedBuff()) and not is_fitted(AlignFed())


@pytest.mark.parametrize("strategy", [FedEx(), FLoRA(), FedAvg()])
def test_a_strategy_whose_step_has_no_bound_is_refused_with_the_names_of_those_that_have(strategy: FedEx) -> None:
    with pytest.raises(ValueError, match=f"{strategy.name} makes another: choose alignfed, fedbuff"):
        fitted(strategy)

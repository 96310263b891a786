"""Tokens come one by one, as many as asked for, the same ones for the same seed, and stop when told."""

from itertools import count

import numpy as np
import pytest
import torch

from base_model.language_model import LanguageModel
from edge_node.serving.generation import Cancelled, Sampling, _nucleus, generate

PROMPT = [5, 17, 300, 42]


def tokens(session, sampling, prompt=PROMPT, stops=frozenset(), is_cancelled=lambda: False):
    return list(generate(session, None, prompt, sampling, stops, is_cancelled))


def test_greedy_tokens_are_those_that_the_trained_model_writes(resolved, session):
    network = LanguageModel.load(resolved).network
    written = network.generate(torch.tensor([PROMPT]), max_new_tokens=20, do_sample=False, eos_token_id=None)
    assert tokens(session, Sampling(20)) == written[0, len(PROMPT) :].tolist()


def test_an_answer_ends_before_a_stop_token(session):
    free = tokens(session, Sampling(8))
    stop = free[4]
    assert tokens(session, Sampling(8), stops=frozenset({stop})) == free[: free.index(stop)]


def test_the_same_seed_draws_the_same_tokens_and_another_seed_others(session):
    drawn = [tokens(session, Sampling(12, temperature=1.5, top_p=0.95, seed=seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


def test_a_tiny_nucleus_draws_the_likeliest_token_at_any_temperature(session):
    assert tokens(session, Sampling(8, temperature=2.0, top_p=1e-9)) == tokens(session, Sampling(8))


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999, 1.0])
def test_the_nucleus_is_the_fewest_tokens_that_hold_enough_probability(top_p):
    probabilities = np.random.default_rng(0).dirichlet(np.full(1000, 0.3))
    chosen = _nucleus(probabilities, top_p)
    assert probabilities[chosen].sum() >= top_p - 1e-9
    if top_p < 1:
        assert probabilities[chosen].sum() - probabilities[chosen].min() < top_p
        assert probabilities[chosen].min() >= np.delete(probabilities, chosen).max()


def test_a_cancelled_answer_ends_between_two_tokens(session):
    asked = count()
    answer = generate(session, None, PROMPT, Sampling(100), frozenset(), lambda: next(asked) > 5)
    got = []
    with pytest.raises(Cancelled):
        got.extend(iter(answer))
    assert 0 < len(got) < 10


def test_a_long_prompt_is_cancelled_before_it_is_read_to_its_end(session):
    asked = count()
    with pytest.raises(Cancelled):
        tokens(session, Sampling(1), prompt=PROMPT * 200, is_cancelled=lambda: next(asked) == 2)


@pytest.mark.parametrize(("prompt", "reason"), [([], "no token"), ([1] * 2047, "more than the context of 2048")])
def test_a_prompt_that_cannot_be_answered_is_a_bad_call(session, prompt, reason):
    with pytest.raises(ValueError, match=reason):
        tokens(session, Sampling(2), prompt=prompt)

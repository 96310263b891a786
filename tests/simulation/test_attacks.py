"""Nodes that lie in a simulated federation: what they send, and that the production core stands it."""

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest

from base_model.examples import Example
from base_model.language_model import LanguageModel
from coordinator.strategies import AlignFed
from coordinator.updates import GlobalAdapter
from schemas.adapter import Adapter
from simulation.attacks import ATTACKS, Attack, LyingLearner, flipped, little_is_enough
from simulation.federation import Federation, Released, Version
from simulation.learner import Job
from simulation.run import make_federation
from simulation.settings import SimulationConfig
from simulation.task import Task

LIAR, HONEST = "n0001", "n0000"

Start = Callable[..., tuple[Federation, list[Version | Released]]]


@pytest.fixture
def start(
    tiny_model: LanguageModel, make_task: Callable[[int], Task], make_config: Callable[..., SimulationConfig]
) -> Start:
    """A federation of four nodes in which one lies, and what is heard of it."""

    def begin(attack: Attack, strategy: AlignFed, **settings: object) -> tuple[Federation, list[Version | Released]]:
        heard: list[Version | Released] = []
        config = make_config(strategy, **settings)
        federation = make_federation(tiny_model, config, strategy, make_task(4), heard.append, lambda *_: None)
        federation.learner = LyingLearner(**vars(federation.learner), attack=attack, liars=frozenset({LIAR}))
        return federation, heard

    return begin


def sent(federation: Federation, model: LanguageModel, node: str) -> Adapter:
    """What a node sends from the first adapter."""
    config = federation.learner.config
    first = GlobalAdapter(0, model.initial_adapter(config.layout.lora, 1))
    return federation.learner.learn(Job(node, 0, first, 1.0), federation.fleet.examples[node])[0]


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_federation_goes_on_under_every_attack(
    start: Start, tiny_model: LanguageModel, alignfed: AlignFed, attack: Attack
) -> None:
    federation, heard = start(attack, alignfed)
    federation.run(tiny_model.initial_adapter(federation.learner.config.layout.lora, 1), 8, None)
    versions = [news for news in heard if isinstance(news, Version)]
    assert len(versions) > 2
    assert all(version.head.is_finite for version in versions)


def test_an_honest_node_beside_liars_sends_what_it_learns(
    start: Start, tiny_model: LanguageModel, alignfed: AlignFed
) -> None:
    lying, _ = start("sign-flip", alignfed)
    other, _ = start("scale", alignfed)
    assert sent(lying, tiny_model, HONEST) == sent(other, tiny_model, HONEST)
    assert sent(lying, tiny_model, LIAR).cosine(sent(other, tiny_model, LIAR)) == pytest.approx(-1)


def test_what_the_gate_aware_attacker_sends_is_as_long_as_its_honest_delta_and_not_against_it(
    start: Start, tiny_model: LanguageModel, alignfed: AlignFed
) -> None:
    aware, _ = start("gate-aware", alignfed)
    scaled, _ = start("scale", alignfed)
    lie, honest = sent(aware, tiny_model, LIAR), sent(scaled, tiny_model, LIAR) * 0.01
    assert lie.norm == pytest.approx(honest.norm, rel=1e-3)
    assert 0 < lie.cosine(honest) < 0.99


def test_a_colluding_liar_uses_what_honest_nodes_sent(
    start: Start, tiny_model: LanguageModel, alignfed: AlignFed
) -> None:
    for attack, share in (("mimic", 1.0), ("ipm", -0.5)):
        federation, _ = start(attack, alignfed)
        honest = sent(federation, tiny_model, HONEST)
        lie = sent(federation, tiny_model, LIAR)
        assert np.allclose(lie.values, share * honest.values, rtol=1e-5)


def test_flipped_examples_keep_their_prompts_and_have_another_answer() -> None:
    examples = tuple(Example(prompt=str(n), completion="ab"[n % 2]) for n in range(4))
    assert [(e.prompt, e.completion) for e in flipped(examples)] == [("0", "b"), ("1", "a"), ("2", "b"), ("3", "a")]


def test_alie_stays_as_far_from_the_mean_as_a_majority_still_covers(
    start: Start, tiny_model: LanguageModel, alignfed: AlignFed
) -> None:
    federation, _ = start("scale", alignfed)
    one = sent(federation, tiny_model, HONEST)
    lie = little_is_enough([one, one * 3.0], nodes=20, liars=8)  # mean 2, deviation 1
    z = NormalDist().inv_cdf(9 / 12)
    assert np.allclose(lie.values, 2 * one.values - z * np.abs(one.values), atol=1e-5)

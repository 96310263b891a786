"""The generated federated tasks: homes unlike each other, and no prompt on two sides."""

import json
import math
from collections import Counter

import pytest

from examples.smart_home import households, sentences, wide
from examples.smart_home.tasks import CalibrationKind, TaskName, make_task
from examples.smart_home.wide_households import ELSEWHERE, FLEET
from simulation.scoring import intent_of
from simulation.task import Examples, Task

INTENTS: dict[TaskName, tuple[str, ...]] = {"narrow": sentences.INTENTS, "wide": wide.INTENTS}


def small(
    name: TaskName = "wide",
    homes: int = 3,
    concentration: float = 0.3,
    examples: int = 40,
    tests: int = 12,
    commons: int = 38,
    seed: int = 5,
    kind: CalibrationKind = "in-domain",
) -> Task:
    return make_task(name, homes, concentration, examples, tests, commons, commons, seed, kind)


def prompts(*parts: Examples) -> set[str]:
    return {example.prompt for part in parts for example in part}


def intents(examples: Examples) -> Counter[str | None]:
    return Counter(intent_of(example.completion) for example in examples)


def imbalance(concentration: float) -> float:
    """Mean share of the most frequent intent of a home."""
    nodes = small(homes=6, concentration=concentration, examples=100).nodes.values()
    return sum(max(intents(examples).values()) / len(examples) for examples in nodes) / len(nodes)


@pytest.mark.parametrize("name", ["narrow", "wide"])
def test_a_task_has_the_sizes_that_were_asked_for(name: TaskName) -> None:
    task = small(name, homes=3, examples=40, tests=12, commons=36)
    assert [len(examples) for examples in task.nodes.values()] == [40, 40, 40]
    assert [len(examples) for examples in task.tests.values()] == [12, 12, 12]
    assert (len(task.calibration), len(task.held_out)) == (36, 36)


@pytest.mark.parametrize("name", ["narrow", "wide"])
def test_no_prompt_is_on_two_sides(name: TaskName) -> None:
    task = small(name, homes=4, concentration=math.inf, examples=120, tests=40, commons=100)
    sides = [prompts(*task.nodes.values()), prompts(*task.tests.values()), prompts(task.calibration)]
    sides.append(prompts(task.held_out))
    assert len(set.union(*sides)) == sum(len(side) for side in sides)


@pytest.mark.parametrize("name", ["narrow", "wide"])
def test_held_out_and_calibration_have_every_intent_equally_often_and_no_prompt_twice(name: TaskName) -> None:
    known = INTENTS[name]
    task = small(name, commons=3 * len(known))
    for common in (task.calibration, task.held_out):
        assert intents(common) == dict.fromkeys(known, 3)
        assert len(prompts(common)) == len(common)


def test_the_same_seed_gives_the_same_task_and_another_seed_another() -> None:
    assert small(seed=5) == small(seed=5)
    assert small(seed=5) != small(seed=6)


def test_a_task_that_grows_keeps_its_first_homes_and_commands() -> None:
    one, larger = small(homes=2, examples=20, commons=38), small(homes=4, examples=30, commons=76)
    for node, examples in one.nodes.items():
        assert larger.nodes[node][:20] == examples
        assert larger.tests[node] == one.tests[node]
    assert larger.held_out[:38] == one.held_out


def test_the_smaller_the_concentration_the_more_one_sided_the_homes() -> None:
    assert imbalance(0.05) > imbalance(0.5) > imbalance(math.inf)
    assert imbalance(math.inf) < 0.12


def test_a_home_is_tested_on_its_own_habits_and_things() -> None:
    task = small(concentration=0.1, examples=200, tests=60)
    for node, examples in task.nodes.items():
        own, tested = intents(examples), intents(task.tests[node])
        favourite = own.most_common(1)[0][0]
        assert tested[favourite] / 60 == pytest.approx(own[favourite] / 200, abs=0.2)
    rooms = [
        {json.loads(e.completion).get("area") for e in (*task.nodes[n], *task.tests[n])} - {None} for n in task.nodes
    ]
    assert all(len(own) <= 5 for own in rooms)


def test_calibration_with_missing_intents_lacks_half_of_them_and_changes_nothing_else() -> None:
    usual, lacking = small(), small(kind="missing-intents")
    assert len(intents(lacking.calibration)) == len(wide.INTENTS) // 2
    assert (lacking.nodes, lacking.tests, lacking.held_out) == (usual.nodes, usual.tests, usual.held_out)


@pytest.mark.parametrize("name", ["narrow", "wide"])
def test_calibration_from_other_rooms_knows_none_of_the_fleet_s_rooms_and_names(name: TaskName) -> None:
    fleet = {word for words in (*FLEET.names.values(), *households.DEVICES.values()) for word in words}
    task = small(name, commons=114, kind="other-rooms")
    answers = [json.loads(example.completion) for example in task.calibration]
    rooms = {answer["area"] for answer in answers if "area" in answer}
    names = {answer["name"] for answer in answers if "name" in answer and answer["name"] in _all_names()}
    assert rooms and rooms <= set(ELSEWHERE.lists["area"])
    assert names and names.isdisjoint(fleet)
    assert task.nodes == small(name, commons=114).nodes


def test_wrong_calibration_has_the_answers_of_other_commands_and_changes_nothing_else() -> None:
    usual, wrong = small(), small(kind="wrong")
    assert [one.prompt for one in wrong.calibration] == [one.prompt for one in usual.calibration]
    assert intents(wrong.calibration) == intents(usual.calibration)
    pairs = list(zip(usual.calibration, wrong.calibration, strict=True))
    assert sum(right == other for right, other in pairs) < len(pairs) / 4
    assert (wrong.nodes, wrong.tests, wrong.held_out) == (usual.nodes, usual.tests, usual.held_out)


def test_asking_for_more_commands_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match=r"different commands of 9999 \(calibration\); ask for fewer"):
        make_task("narrow", 1, 1.0, 4, 4, 9999, 12, seed=1)


def test_a_concentration_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="concentration must be above 0"):
        small(concentration=0)


def _all_names() -> set[str]:
    vocabularies = (FLEET.names, ELSEWHERE.names, households.DEVICES)
    return {word for names in vocabularies for words in names.values() for word in words}

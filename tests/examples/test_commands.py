"""The commands: seeded, different in every home, unseen when held out, and understood by Home Assistant itself."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest
from hassil import Intents
from hassil.intents import TextSlotList
from hassil.recognize import RecognizeResult, recognize_all
from home_assistant_intents import get_intents

from base_model.examples import Example
from examples.smart_home import households
from examples.smart_home.commands import Home, calibration_examples, held_out_examples, make_homes, private_examples
from examples.smart_home.sentences import INTENTS, PICKED, templates
from simulation.scoring import intent_of


def everything(homes: tuple[Home, ...], count: int) -> tuple[Example, ...]:
    return tuple(example for home in homes for example in private_examples(home, count))


def test_the_same_seed_gives_the_same_homes_and_commands() -> None:
    assert make_homes(3, seed=7) == make_homes(3, seed=7)
    assert everything(make_homes(3, seed=7), 20) == everything(make_homes(3, seed=7), 20)
    assert everything(make_homes(3, seed=7), 20) != everything(make_homes(3, seed=8), 20)


def test_a_new_home_leaves_the_others_as_they_were() -> None:
    assert make_homes(5, seed=7)[:3] == make_homes(3, seed=7)


def test_commands_do_not_depend_on_how_a_process_hashes_text() -> None:
    # whatever iterates over a set gives another order in every process
    script = "from examples.smart_home.commands import *; print(private_examples(make_homes(1, 7)[0], 40))"
    printed = [
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    ]
    assert printed[0] == printed[1] == printed[2] != ""


def test_homes_differ_in_rooms_devices_and_habits() -> None:
    one, other = make_homes(2, seed=7)
    assert set(one.rooms) != set(other.rooms)
    assert one.devices != other.devices
    used = [Counter(intent_of(example.completion) for example in private_examples(home, 400)) for home in (one, other)]
    overlap = sum((used[0] & used[1]).values()) / 400
    assert overlap < 0.7


def test_a_home_speaks_of_its_own_rooms_and_devices_alone() -> None:
    home = make_homes(1, seed=7)[0]
    names = {name for _, names in home.devices for name in names} | set(households.WORDS["timer_name"])
    for example in private_examples(home, 300):
        answer = json.loads(example.completion)
        assert answer.get("area", home.rooms[0]) in home.rooms
        assert answer.get("name", home.devices[0][1][0]) in names


def test_held_out_commands_are_new_to_every_node_and_cover_every_intent_equally() -> None:
    seen = everything(make_homes(5, seed=7), 200)
    held_out = held_out_examples(48, seed=7, seen=seen)
    prompts = {example.prompt for example in held_out}
    assert len(prompts) == 48
    assert prompts.isdisjoint(example.prompt for example in seen)
    assert Counter(intent_of(example.completion) for example in held_out) == dict.fromkeys(INTENTS, 4)


def test_calibration_commands_are_of_neither_the_nodes_nor_the_held_out_homes_and_cover_every_intent() -> None:
    seen = everything(make_homes(5, seed=7), 200) + held_out_examples(48, seed=7, seen=())
    calibration = calibration_examples(24, seed=7, seen=seen)
    prompts = {example.prompt for example in calibration}
    assert len(prompts) == 24
    assert prompts.isdisjoint(example.prompt for example in seen)
    assert Counter(intent_of(example.completion) for example in calibration) == dict.fromkeys(INTENTS, 2)
    assert set(calibration_examples(24, seed=7, seen=())) != set(held_out_examples(24, seed=7, seen=()))


def test_asking_for_more_held_out_commands_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="ask for fewer"):
        held_out_examples(20_000, seed=7, seen=())


@pytest.mark.parametrize(
    ("answer", "intent"),
    [
        ('{"intent":"TurnOn","name":"tv"}', "TurnOn"),
        ('{"intent":7}', None),
        ('{"name":"tv"}', None),
        ('["TurnOn"]', None),
        ("I am sorry, I cannot do that.", None),
        ('{"intent":"TurnOn"', None),
        ("", None),
    ],
)
def test_the_intent_of_an_answer_that_names_none_is_none(answer: str, intent: str | None) -> None:
    assert intent_of(answer) == intent


def test_home_assistant_still_has_every_template_that_was_picked() -> None:
    for intent, picked in PICKED.items():
        assert {template.text for template in templates(intent)} == set(picked)


def test_home_assistant_understands_every_command_as_its_answer_says() -> None:
    data = get_intents("en")
    assert data is not None
    intents = Intents.from_dict(data)
    home = make_homes(1, seed=3)[0]
    areas = TextSlotList.from_strings(home.rooms, name="area")
    named = [(name, name, {"domain": domain}) for domain, names in home.devices for name in names]
    names = TextSlotList.from_tuples(named, name="name")
    slot_lists = {"area": areas, "name": names, "floor": TextSlotList.from_strings([], name="floor")}
    for example in private_examples(home, 60):
        understood = recognize_all(example.prompt, intents, slot_lists=slot_lists)
        answers = [_answer(result) for result in understood]
        assert json.loads(example.completion) in answers, example.prompt


def _answer(result: RecognizeResult) -> dict[str, object]:
    slots = {entity.name: entity.value for entity in result.entities_list}
    return {"intent": result.intent.name.removeprefix("Hass")} | slots

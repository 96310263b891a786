"""The wide task's commands: every intent, natural enough, from a home's own words, understood by Home Assistant."""

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from random import Random

import pytest
from hassil import Intents
from hassil.intents import SlotList, TextSlotList
from hassil.recognize import RecognizeResult, recognize_all
from home_assistant_intents import get_intents

from base_model.examples import Example
from examples.smart_home import households
from examples.smart_home.wide import INTENTS, make_command, templates
from examples.smart_home.wide_households import ELSEWHERE, FLEET, WIDE_SIZES, Vocabulary, make_household
from simulation.scoring import intent_of


def home(name: str) -> Vocabulary:
    return make_household(FLEET, WIDE_SIZES, name)


def commands(household: Vocabulary, of_each: int, seed: str) -> list[Example]:
    random = Random(seed)
    return [make_command(household, templates(intent), intent, random) for intent in INTENTS for _ in range(of_each)]


@pytest.fixture(scope="module")
def said() -> list[str]:
    """What twelve homes say, six commands of every intent each."""
    return [command.prompt for number in range(12) for command in commands(home(f"odd {number}"), 6, f"{number}")]


def test_every_intent_of_home_assistant_that_has_slots_is_spoken() -> None:
    data = get_intents("en")
    assert data is not None
    with_slots = {
        name.removeprefix("Hass")
        for name, intent in data["intents"].items()
        if any("{" in sentence for block in intent["data"] for sentence in block["sentences"])
    }
    assert set(INTENTS) == with_slots
    assert {intent_of(command.completion) for command in commands(home("a"), 1, "all")} == with_slots


def test_commands_and_answers_are_short_and_answers_are_compact_json_with_sorted_slots() -> None:
    for command in commands(home("a"), 10, "short"):
        assert 5 <= len(command.prompt) <= 80
        assert len(command.completion) <= 110
        answer = json.loads(command.completion)
        slots = [key for key in answer if key != "intent"]
        assert list(answer) == ["intent", *sorted(slots)]
        assert command.completion == json.dumps(answer, separators=(",", ":"))


def test_no_command_has_two_answers() -> None:
    answers = defaultdict(set)
    for number in range(40):
        for command in commands(home(f"home {number}"), 3, f"said {number}"):
            answers[command.prompt].add(command.completion)
    assert [prompt for prompt, given in answers.items() if len(given) > 1] == []


@pytest.mark.parametrize("everything", [FLEET, ELSEWHERE], ids=["fleet", "elsewhere"])
def test_home_assistant_understands_every_command_as_its_answer_says(everything: Vocabulary) -> None:
    data = get_intents("en")
    assert data is not None
    household = make_household(everything, WIDE_SIZES, "understood")
    named = [(name, name, {"domain": domain}) for domain, names in household.names.items() for name in names]
    slot_lists: dict[str, SlotList] = {
        "area": TextSlotList.from_strings(household.lists["area"], name="area"),
        "floor": TextSlotList.from_strings(household.lists["floor"], name="floor"),
        "name": TextSlotList.from_tuples(named, name="name"),
    }
    intents = Intents.from_dict(data)
    for command in commands(household, 8, "understood"):
        understood = recognize_all(command.prompt, intents, slot_lists=slot_lists)
        assert json.loads(command.completion) in [_answer(result) for result in understood], command.prompt


@pytest.mark.parametrize(
    "odd",
    [
        r"\b(the|my) (the|my)\b",
        r"\b(is|are) all .* is\b|\bis all\b",
        r"\b(?!on\b)(\w+) \1\b",
        r"\b1 (hour|minute|second|degree)s\b|\b([02-9]|\d\d) (hour|minute|second|degree)\b",
        r"\ban? (hour|minute)s\b",
        r"\ba (8|11|18)|\ban [1-79]\b",
        r"\b(in|on) (on|off)$",
        r"\b(the|my) [A-Z]",
        r" [%°k]\b|  | $|^ ",
        r"^what are the weather|^what's weather",
        r"^(put|check off) .* in .*list$",
        r"^(put|add|check) .*(camping|garden)$",
    ],
)
def test_no_command_is_said_as_nobody_would(said: list[str], odd: str) -> None:
    assert [prompt for prompt in said if re.search(odd, prompt)] == []


def test_a_home_speaks_of_its_own_rooms_floors_and_things_alone() -> None:
    household = home("own")
    known = {word for words in (*household.names.values(), household.lists["timer_name"]) for word in words}
    for command in commands(household, 8, "own"):
        answer = json.loads(command.completion)
        assert answer.get("area", household.lists["area"][0]) in household.lists["area"]
        assert answer.get("floor", household.lists["floor"][0]) in household.lists["floor"]
        assert answer.get("name", household.names["light"][0]) in known


def test_homes_differ_in_every_list_that_is_a_home_s_own() -> None:
    one, other = home("a"), home("b")
    for key in WIDE_SIZES:
        words = one.names if key in one.names else one.lists
        assert set(words[key]) != set((other.names if key in other.names else other.lists)[key]), key


def test_homes_elsewhere_share_no_room_floor_or_name_with_the_fleet_of_either_task() -> None:
    here = {word for words in (*FLEET.names.values(), *households.DEVICES.values()) for word in words}
    assert here.isdisjoint(word for words in ELSEWHERE.names.values() for word in words)
    assert set(ELSEWHERE.lists["area"]).isdisjoint((*FLEET.lists["area"], *households.ROOMS))
    assert set(ELSEWHERE.lists["floor"]).isdisjoint(FLEET.lists["floor"])
    assert ELSEWHERE.names.keys() == FLEET.names.keys()


def test_commands_do_not_depend_on_how_a_process_hashes_text() -> None:
    # whatever iterates over a set gives another order in every process
    script = (
        "from random import Random; from examples.smart_home.wide import *; "
        "from examples.smart_home.wide_households import *; household = make_household(FLEET, WIDE_SIZES, 'a'); "
        "print([make_command(household, templates(intent), intent, Random(intent)) for intent in INTENTS])"
    )
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


def test_an_intent_with_nothing_but_odd_wordings_is_refused() -> None:
    scenes_alone = [template for template in templates("TurnOn") if template.domains == ("scene",)]
    nameless = Vocabulary(names={"scene": ("a" * 90,)}, lists={"area": ("den",)})
    with pytest.raises(ValueError, match="no natural way was found to say TurnOn"):
        make_command(nameless, scenes_alone, "TurnOn", Random(0))


def _answer(result: RecognizeResult) -> dict[str, object]:
    slots = {entity.name: entity.value for entity in result.entities_list}
    return {"intent": result.intent.name.removeprefix("Hass")} | slots

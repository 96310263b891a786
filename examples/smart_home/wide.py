"""Commands for every English intent of Home Assistant that has slots, worded from all its templates but the odd ones.

The templates are made to recognise whatever a person may say; spoken at random they also say what nobody would. So
odd templates are left out, a sentence is set right where that is simple, and drawn again where it is not.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache, partial
from random import Random
from typing import Any

from hassil import Intents
from home_assistant_intents import get_intents

from base_model.examples import Example
from examples.smart_home.sentences import Slots, Template, speak
from examples.smart_home.wide_households import FLEET, NUMBERS, SAYINGS, Said, Vocabulary

FEWEST_CHARACTERS, MOST_CHARACTERS = 5, 80  # of a command
MOST_ANSWER_CHARACTERS = 110
TRIES = 200  # at one command; at worst three of four sentences are drawn again
WITHOUT_SLOTS = frozenset({"HassNevermind", "HassRespond", "HassGetCurrentDate", "HassGetCurrentTime"})

ODD_TEMPLATES = re.compile(
    r"<everywhere>|<home>|<lockable>.*<in>|get every|bs_occupancy"  # long-winded, or of things that no home has
    r"|\{name\} <light>|^\{volume_step\}|^turn \[volume\]|^\[<the>\] \{name\}( \(play|$| <in>| on$)"
    r"|^\[<the>\] \{area\} \{name\} on$|^return to \[the\]|\[to\] (on|off)$"
    r"|_hours:.*_minutes:.*_seconds:|_hours:hours.*_seconds:seconds"  # nobody is so exact
    r"|_hours:hours.*start_(minutes|seconds)|start_(minutes|seconds).*_hours:hours"  # more than the timer had
    r"|_minutes:minutes.*start_seconds|start_seconds.*_minutes:minutes|_seconds:seconds.*start_hours"
    r"|start_hours.*_seconds:seconds"
)
# in an outline, ROOM, FLOOR, THING and PROPER stand for what a home calls its rooms, floors, things and people
SET_RIGHT = (
    (r"\b(?:the|my) PROPER", "PROPER"),
    (r"\b(volume(?: up| down)?|speed of fans?) on ((?:the |my )?ROOM)", r"\1 in \2"),
    (r"\b(ROOM|FLOOR) (?:the|my) (THING)", r"\1 \2"),
    (r"\b(?:in |on |at )?(?:the |my )?(home|work|school|practice|church|university|camp)$", r"at \1"),
    (r"\bFLOOR floor\b", "FLOOR"),
    (r"\bin ((?:the |my )?(?:THING |shopping )?list)$", r"on \1"),
    (r"^(put .*) in (auto|low|medium|high)$", r"\1 on \2"),
    (r"^is all\b", "are all"),
    (r"^(which|what|how many) (.+) is\b", r"\1 \2 are"),
    (r"^how (much time|long) left\b", r"how \1 is left"),
    (r"^(what's|what is) weather\b", r"\1 the weather"),
    (r"^(next|previous) item\b", r"\1 track"),
    (r"\bto (maximum|highest|minimum|lowest)\b", r"to the \1"),
    (r"(?<=\d) (?=[%°]|k\b)", ""),
    (r"(?<=\d)kelvin\b", " kelvin"),
    (r"\band half (hour|minute)s?", r"and a half \1"),
    (r"\bhalf an? hours?\b", "half an hour"),
    (r"\bhalf a minutes\b", "half a minute"),
    (r"\ba half (hour|minute)\b", r"a half \1s"),
    (r"\ba (?=8\d?\b|11\b|18\b)", "an "),
)
ODD_SENTENCES = re.compile(
    # a word too many
    r"\b(any|what|many) (of )?(the|my)\b|\bwhich (the|my)\b|\bwhat of\b|\b(ROOM|FLOOR) (the|my)\b|^replay again"
    # one thing where there are many
    r"|\b(are|which|what|many|all) .*\b(fan|switch|lock|door|window|gate|shutter|blind|curtain|shade|awning)\b"
    # a preposition, an article or a verb is missing
    r"|^(is|are|which|what|how many) .*\b(on|off|open|closed|shut|\w+ing|(un)?locked) (the |my )?(ROOM|FLOOR)"
    r"|\b(track|song|next|skip|this|again|previous|last|music|shows?|players?|media|back|lights( on| off| out)?"
    r"|percent|%|\d|volume( up| down)?) (the |my )?(ROOM|FLOOR|THING)"
    r"|^\w+ (the )?(brightness|temperature|color temperature|speed|volume) (?!of|in|on|to|up|down|by|\d)"
    r"|\bcolor of (?!.* to )|^(set|change) (?!.*\b(to|timer)\b)|\b(to|on|from|off) (THING |shopping )?list$"
    r"|\bon timers$|^all |\blast again\b|^turn (the |my )?ROOM (up|down)"
    r"|^(mute|unmute|pause|resume|unpause|skip|next) (the |my )?ROOM$"
    r"|^(tell me|do you know|what's|what is) (the |my )?(THING|PROPER)$"
    # the wrong verb or preposition, or words nobody uses
    r"|^(complete|delete|remove) off\b|^complete .* off\b|^check (?!.*\boff\b)|^(delete|remove) .* (on|in) |\bat PROPER"
    r"|^(add|put|check|complete|delete|remove) .*THING$|^(activate|run|start) .* on$|^(turn|switch) THING script$"
    r"|\b(in|on) (on|off)$|\bpersons\b|\bwheres\b|\btimers status|\d \w+( and)? \d+-\w+ timer"
)


@cache
def templates(intent: str) -> tuple[Template, ...]:
    """The templates of one intent that do without knowing where the speaker stands, always in the same order."""
    found = []
    for block in _home_assistant().intents[f"Hass{intent}"].data:
        context = block.requires_context or {}
        domains = _domains(context)
        if "area" in context or ("domain" in context and not domains):
            continue
        fixed = tuple(sorted((block.slots or {}).items()))
        for sentence in block.sentences:
            if sentence.text and not ODD_TEMPLATES.search(sentence.text):
                found.append(Template(sentence.text, sentence.expression, domains, fixed))
    # hassil gives a block's sentences in an order that changes from process to process
    return tuple(sorted(found, key=lambda template: (template.text, template.domains, template.fixed)))


def make_command(household: Vocabulary, worded: Sequence[Template], intent: str, random: Random) -> Example:
    """One command of this home in one of these wordings, answered by its intent and slots as compact JSON."""
    for _ in range(TRIES):
        template = random.choice(worded)
        spoken, slots = speak(template, random, partial(_draw, household, template, random))
        prompt = _natural(spoken, slots)
        answer = json.dumps({"intent": intent} | dict(sorted(slots.items())), separators=(",", ":"))
        if prompt is not None and len(answer) <= MOST_ANSWER_CHARACTERS:
            return Example(prompt=prompt, completion=answer)
    raise ValueError(f"no natural way was found to say {intent}; look at its templates and at what counts as odd")


def _natural(spoken: str, slots: Slots) -> str | None:
    """The sentence in good English; None when it is odd, too short or too long."""
    called = {_role(slot, value): value for slot, value in slots.items() if slot in ("area", "floor", "name")}
    outline = spoken
    for role, value in called.items():
        outline = re.sub(rf"\b{re.escape(str(value))}\b", role, outline)
    for odd, right in SET_RIGHT:
        outline = re.sub(odd, right, outline)
    if ODD_SENTENCES.search(outline):
        return None
    outline = re.sub(r"\bin ((?:the |my )?FLOOR)", r"on \1", outline)
    for role, value in called.items():
        outline = outline.replace(role, str(value))
    sentence = re.sub(r"\b(?!on\b)(\w+) \1\b", r"\1", outline)  # the "corner mower" mower, but: is it on on a floor
    return sentence if FEWEST_CHARACTERS <= len(sentence) <= MOST_CHARACTERS else None


def _role(slot: str, value: str | int) -> str:
    if slot == "name":
        return "PROPER" if str(value)[:1].isupper() else "THING"
    return "ROOM" if slot == "area" else "FLOOR"


def _draw(household: Vocabulary, template: Template, random: Random, list_name: str) -> Said:
    """What is said for a slot list, and its value in the answer."""
    if list_name in SAYINGS:
        return random.choice(SAYINGS[list_name])
    if list_name in NUMBERS:
        number = random.choice(NUMBERS[list_name])
        return str(number), number
    if list_name == "name":
        word = random.choice(household.names[random.choice(template.domains)])
    else:
        word = random.choice(household.lists[list_name])
    return word, word


def _domains(context: Mapping[str, Any]) -> tuple[str, ...]:
    """Domains that the named thing may be of, without those no home has anything of."""
    named = context.get("domain", [])
    return tuple(domain for domain in ([named] if isinstance(named, str) else named) if domain in FLEET.names)


@cache
def _home_assistant() -> Intents:
    data = get_intents("en")
    if data is None:
        raise ValueError("the installed home-assistant-intents has no English sentences")
    return Intents.from_dict(data)


INTENTS = tuple(sorted(name.removeprefix("Hass") for name in _home_assistant().intents.keys() - WITHOUT_SLOTS))

"""How people word a command: sentence templates of Home Assistant's English intents, and how to speak one.

Home Assistant writes its templates to *recognise* whatever a person may say, so many also accept odd word orders. The
ones picked here sound natural when they are *written*. This module does not know homes, or what a slot's value is.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

from hassil import Intents
from hassil.expression import (
    Alternative,
    Expression,
    Group,
    ListReference,
    Permutation,
    RuleReference,
    TextChunk,
)
from home_assistant_intents import get_intents

Slots = dict[str, str | int]
DrawValue = Callable[[str], tuple[str, str | int]]
"""Draws a value of a slot list by its name: the words to say, and the value for the answer."""

PICKED = {
    "TurnOn": (
        "<turn> on [(<all>|<the>)] <light> <in> [<the>] {area}",
        "<turn> on [<all>] [<the>] {area} <light>",
        "<turn> on [<the>] {name}",
        "<turn> on [<the>] {name} <in> [<the>] {area}",
        "activate [<the>] {name}",
    ),
    "TurnOff": (
        "<turn> (off|out) [(<all>|<the>)] <light> <in> [<the>] {area}",
        "<turn> (off|out) [<all>] [<the>] {area} <light>",
        "<turn> off [<the>] {name}",
        "<turn> off [<the>] {name} <in> [<the>] {area}",
        "deactivate [<the>] {name}",
    ),
    "GetState": (
        "<is> [<the>] {name} {on_off_states:state}",
        "<is> [<the>] {name} {cover_states:state}",
        "<are_any> <light> {on_off_states:state} [<in>] [<the>] {area}",
        "<how_many> <light> <is> {on_off_states:state} [<in>] [<the>] {area}",
    ),
    "LightSet": (
        "[<numeric_value_set>] [the] brightness in [<the>] {area} to {brightness}[([ ]%)| percent]",
        "[<numeric_value_set>] [<the>] {area} brightness [to] {brightness}[([ ]%)| percent]",
        "[<numeric_value_set>] [<the>] {name} brightness [to] {brightness}[([ ]%)| percent]",
        "[<numeric_value_set>] [<the>] {name} brightness to [the] {brightness_level:brightness}",
        "[<set>] [<the>] {area} [color] [to] {color}",
        "[<set>] [<the>] {name} [color] [to] {color}",
        "[<set>] [[the] color of] [<the>] {name} to {color}",
    ),
    "ClimateGetTemperature": (
        "(<what_is>|<how_is>) [the] [current] <temp> <in> [<the>] {area}",
        "(<what_is>|<how_is>) [<the>] {area} [current] <temp>",
        "how (hot|cold|warm|cool) is [it <in>] [<the>] {area}",
    ),
    "ClimateSetTemperature": (
        "(<numeric_value_set>|adjust) [the] <temp> in [<the>] {area} to {temperature}[([ ]°)|( degree[s])]",
        "(<numeric_value_set>|adjust) [<the>] {area} <temp> to {temperature}[([ ]°)|( degree[s])]",
        "(<numeric_value_set>|adjust) [<the>] {name} [<temp>] to {temperature}[([ ]°)|( degree[s])]",
    ),
    "SetPosition": (
        "(<numeric_value_set>|<open>|<close>) [<the>] {name} [position] to {position}[([ ]%)| percent]",
        "(<numeric_value_set>|<open>|<close>) [<the>] {area} {cover_classes:device_class} [position] "
        "to {position}[([ ]%)| percent]",
    ),
    "SetVolume": (
        "<numeric_value_set> [<the>] {area} volume to {volume:volume_level}[([ ]%)| percent]",
        "<numeric_value_set> [<the>] {name} volume to {volume:volume_level}[([ ]%)| percent]",
        "turn [<the>] {name} [volume] (up|down) to {volume:volume_level}[([ ]%)| percent]",
    ),
    "MediaPause": (
        "pause [<the>] {area} (music|[tv] show[s]|media [player[s]])",
        "(pause;[<the>] {name})",
    ),
    "StartTimer": (
        "<timer_set> [a|an|the|my] timer for {timer_hours:hours}( |-)hour[s]",
        "<timer_set> [a|an|the|my] timer for {timer_minutes:minutes}( |-)minute[s]",
        "<timer_set> [a|an|the|my] timer for {timer_seconds:seconds}( |-)second[s]",
        "<timer_set> [a|an|the|my] {timer_minutes:minutes}( |-)minute[s] timer",
        "<timer_set> [a|an|the|my] {timer_minutes:minutes}( |-)minute[s] timer (named|called|for) {timer_name:name}",
        "<timer_set> [a|an|the|my] timer (named|called) {timer_name:name} for {timer_minutes:minutes}( |-)minute[s]",
        "<timer_set> [a|an|the|my] timer for {timer_hours:hours}( |-)hour[s] [and] "
        "{timer_minutes:minutes}( |-)minute[s]",
    ),
    "CancelTimer": (
        "<timer_cancel> [the|my] timer",
        "<timer_cancel> [the|my] {timer_minutes:start_minutes}( |-)minute[s] timer",
        "<timer_cancel> [the|my] {timer_name:name} timer",
        "<timer_cancel> [the|my] timer in [<the>] {area}",
        "<timer_cancel> [the|my] {area} timer",
    ),
    "ShoppingListAddItem": (
        "add {shopping_list_item:item} to [my|the] [shopping] list",
        "put {shopping_list_item:item} (on|in) [my|the] [shopping] list",
    ),
}
INTENTS = tuple(PICKED)

# Home Assistant's word choices, narrowed to what people say first
WORDS = {
    "the": "(the|the|the|my)",
    "in": "in",
    "is": "is",
    "all": "all",
    "are_any": "are any",
    "how_many": "how many",
    "turn": "(turn|switch)",
    "set": "(set|change)",
    "numeric_value_set": "(set|change)",
    "what_is": "(what's|what is)",
    "how_is": "tell me",
    "temp": "temperature",
    "light": "lights",
    "open": "open",
    "close": "close",
}
# the domain of the device that {name} stands for; blocks for locks, scenes, valves and the like are left out
DOMAINS = frozenset({"light", "switch", "fan", "media_player", "climate", "cover"})
SPOKEN = 0.75  # how often a word that may be left out is said


@dataclass(frozen=True)
class Template:
    """A sentence template as text and parsed, the domains its {name} may be of, and the slots of every answer."""

    text: str
    expression: Expression
    domains: tuple[str, ...]
    fixed: tuple[tuple[str, str], ...]


@cache
def templates(intent: str) -> tuple[Template, ...]:
    """The picked templates of one intent, parsed."""
    found = []
    for block in _home_assistant().intents[f"Hass{intent}"].data:
        domains = _domains(block.requires_context or {})
        if domains is not None:
            for sentence in block.sentences:
                if sentence.text in PICKED[intent]:
                    fixed = tuple(sorted((block.slots or {}).items()))
                    found.append(Template(sentence.text, sentence.expression, domains, fixed))
    # hassil gives a block's sentences in an order that changes from process to process
    return tuple(sorted(found, key=lambda template: (template.text, template.domains, template.fixed)))


def speak(template: Template, random: Random, draw: DrawValue) -> tuple[str, Slots]:
    """Word the template once: the sentence, and the slots its answer has."""
    slots: Slots = dict(template.fixed)
    words = _words(template.expression, random, draw, slots, starts=True)
    return _grammatical(" ".join(words.split())), slots


def _words(expression: Expression, random: Random, draw: DrawValue, slots: Slots, starts: bool = False) -> str:
    match expression:
        case TextChunk():
            return expression.original_text
        case ListReference():
            said, slots[expression.slot_name] = draw(expression.list_name)
            return f"{expression.prefix or ''}{said}{expression.suffix or ''}"
        case RuleReference():
            return _words(_home_assistant().expansion_rules[expression.rule_name].expression, random, draw, slots)
        case Alternative(is_optional=True):
            # a sentence starts with its verb, which the templates let people leave out
            if not starts and random.random() > SPOKEN:
                return ""
            return _words(
                random.choice([item for item in expression.items if not _is_empty(item)]), random, draw, slots
            )
        case Alternative():
            return _words(random.choice(expression.items), random, draw, slots)
        case Permutation():
            return " ".join(_words(item, random, draw, slots) for item in expression.items)
        case Group():
            parts = enumerate(expression.items)
            return "".join(_words(item, random, draw, slots, starts and index == 0) for index, item in parts)
    raise TypeError(f"a sentence template holds a {type(expression).__name__}, which this version cannot speak")


def _is_empty(expression: Expression) -> bool:
    return isinstance(expression, TextChunk) and expression.is_empty


def _grammatical(sentence: str) -> str:
    """Choose the variant that is good English where a template accepts any: number of units and verbs, `a` or `an`."""
    sentence = sentence.replace("lights is", "lights are").replace("switch out", "switch off")
    sentence = re.sub(r"^(open|close) (.*) position to", r"\1 \2 to", sentence)
    sentence = re.sub(r"\ban (?=[^aeiou])", "a ", sentence)
    sentence = re.sub(r"\b(\d+)[ -](second|minute|hour)s? timer", r"\1-\2 timer", sentence)
    sentence = re.sub(r"\b1[ -](second|minute|hour|degree)s?\b(?! timer)", r"1 \1", sentence)
    return re.sub(r"\b(?!1[ -])(\d+)[ -](second|minute|hour|degree)s?\b(?! timer)", r"\1 \2s", sentence)


def _domains(context: dict[str, Any]) -> tuple[str, ...] | None:
    """Domains of the named device; None for blocks this task leaves out: other domains, or a room nobody says."""
    if "area" in context:
        return None
    named = context.get("domain", [])
    kept = tuple(domain for domain in ([named] if isinstance(named, str) else named) if domain in DOMAINS)
    return kept if kept or not named else None


@cache
def _home_assistant() -> Intents:
    data = get_intents("en")
    if data is None:
        raise ValueError("the installed home-assistant-intents has no English sentences")
    return Intents.from_dict(data | {"expansion_rules": data["expansion_rules"] | WORDS})

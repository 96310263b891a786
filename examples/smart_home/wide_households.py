"""What homes of the two tasks can have and say, and one home's own part of it.

A vocabulary is drawn from twice: a home takes a few words of each list, and its commands use only those. Nothing here
knows how a command is worded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from random import Random

from examples.smart_home import households

Said = tuple[str, str | int]  # the words, and their value in the answer


@dataclass(frozen=True)
class Vocabulary:
    """Words of a home, or of many: names of things by their domain, and the values of Home Assistant's lists."""

    names: Mapping[str, tuple[str, ...]]
    lists: Mapping[str, tuple[str, ...]]


def make_household(everything: Vocabulary, sizes: Mapping[str, int], seed: str) -> Vocabulary:
    """One home's words: so many of each domain and list as `sizes` says, and all of those it leaves out."""
    random = Random(seed)

    def some(words: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        return {key: tuple(random.sample(known, sizes.get(key, len(known)))) for key, known in words.items()}

    return Vocabulary(names=some(everything.names), lists=some(everything.lists))


def _split(words: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in words.split(","))


def _pairs(first: str, second: str) -> tuple[str, ...]:
    return tuple(f"{one} {other}" for one, other in product(_split(first), _split(second)))


def _things(adjectives: str, nouns: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    return {domain: _pairs(adjectives, words) for domain, words in nouns.items()}


SAYINGS: Mapping[str, tuple[Said, ...]] = households.SAYINGS | {
    "bs_open_states": (("open", "on"), ("closed", "off"), ("shut", "off")),
    "lock_states": (("locked", "locked"), ("unlocked", "unlocked")),
    "color_temperature_names": (
        ("candle light", 1900), ("warm white", 2700), ("cold white", 4000), ("cool white", 4000), ("daylight", 6500),
    ),
    "fan_mode": tuple((mode, mode) for mode in ("auto", "on", "off", "low", "medium", "high")),
    "volume_step": (("up", "up"), ("down", "down")),
    "volume_step_up": tuple((str(step), step) for step in range(5, 51, 5)),
    "volume_step_down": tuple((str(step), -step) for step in range(5, 51, 5)),
    "media_class": (
        ("artist", "artist"), ("album", "album"), ("song", "track"), ("track", "track"), ("playlist", "playlist"),
        ("podcast", "podcast"), ("movie", "movie"), ("show", "tv_show"),
    ),
    "timer_half": (("half", 30),),
}  # fmt: skip
NUMBERS: Mapping[str, tuple[int, ...]] = households.NUMBERS | {
    "fan_speed": tuple(range(5, 101, 5)),
    "color_temperature": tuple(range(2000, 6600, 100)),
}

_SAID_ANYWHERE = {
    "color": households.WORDS["color"],
    "timer_name": households.WORDS["timer_name"] + _split(
        "rice, oven, dishes, coffee, roast, soup, break, meeting, shower, stretching, cake, sauna, plants, dough"
    ),
    "shopping_list_item": households.WORDS["shopping_list_item"] + _split(
        "honey, oats, lemons, candles, mustard, cereal, mushrooms, cat litter, napkins, spinach, peanut butter, salt, "
        "carrots, butter, noodles, pepper, grapes, chicken, vinegar, beans, cream, cinnamon, shampoo, sponges, ham, "
        "crackers, lentils, celery, garlic, pears, sugar, raisins, tofu, almonds, foil, trash bags, jam, corn"
    ),
    "todo_list_item": _split(
        "call the plumber, water the plants, buy stamps, renew the passport, clean the gutters, book flights, "
        "return the books, wash the car, pay the rent, pack sunscreen, fix the bike, feed the cat, mow the lawn, "
        "iron shirts, change the filters, order firewood, charge the camera, wrap the gifts, sort the mail, buy paint"
    ),
    "message": _split(
        "dinner is ready, the bus is here, lunch is served, it is time to go, the movie is starting, breakfast is on, "
        "the guests have arrived, bedtime is in ten minutes, the laundry is done, school starts soon, "
        "the package has come, someone is at the door, the cake is cooling, we leave at noon, the game is on, "
        "grandma is calling, the bath is free, homework comes first, the dog needs a walk, tea is on the table, "
        "the soup is getting cold, the taxi is waiting, everybody should come down, the power will be out at six, "
        "the party starts at eight, the plumber is here, shoes belong in the hall, it is snowing, dessert is served"
    ),
    "search_query": _pairs(
        "blue, golden, midnight, silent, morning, electric, distant, paper, summer, velvet",
        "horizon, river, drive, garden, thunder, avenue, letters, parade",
    ),
    "zone": _split("home, work, school, practice, church, university, camp"),
    "timer_command": _pairs("turn on, turn off, start, stop", "the heating, the music, the oven, the fountain")
    + _split("open the gate, close the gate, open the garage, lock the house, dim the lights, close the blinds"),
}  # fmt: skip

FLEET = Vocabulary(
    names=_things(
        "corner, tall, old, blue, copper, round, north, south, small, big, oak, glass, front, back, side, antique, "
        "silver, marble, arctic, amber, little, green, brass, plain",
        {
            "light": "lamp, spotlight, chandelier, lantern, light strip, uplight",
            "switch": "heater, kettle, socket, pump, toaster, dehumidifier",
            "fan": "fan, ventilator, blower",
            "media_player": "tv, speaker, radio, soundbar",
            "cover": "blind, curtain, shutter, awning, gate",
            "lock": "door, safe, cabinet",
            "valve": "sprinkler, faucet, water valve",
            "climate": "thermostat, radiator, air conditioner",
            "button": "doorbell, chime, reset button",
            "sensor": "thermometer, power meter, rain gauge",
            "binary_sensor": "window, mailbox, fridge",
            "vacuum": "vacuum, sweeper, robot",
            "lawn_mower": "mower, lawn mower, push mower",
        },
    )
    | {
        "scene": _pairs(
            "cozy, quiet, late, lazy, bright, festive", "dinner, breakfast, movie, evening, party, reading"
        ),
        "script": _pairs("morning, bedtime, weekend, holiday, departure", "routine, cleanup, shutdown, warm-up"),
        "input_boolean": _pairs("guest, away, night, party, vacation, baby, gaming, travel", "mode, schedule"),
        "todo": _split(
            "chores, errands, packing, homework, garden, hardware, repairs, gifts, meals, birthday, camping, pets, "
            "renovation, wedding, picnic, projects"
        ),
        "person": _split(
            "Alice, Bob, Chloe, Deepak, Elena, Farid, Grace, Hugo, Ivy, Jonas, Keiko, Liam, Mona, Noah, Olga, Pedro, "
            "Quentin, Rosa, Samir, Tara, Uma, Victor, Wanda, Yusuf"
        ),
        "weather": _split(
            "Oslo, Lisbon, Cairo, Boston, Kyoto, Lima, Nairobi, Prague, Sydney, Toronto, Vienna, Athens, Dublin, "
            "Havana, Jakarta, Madrid, Naples, Quito, Riga, Seoul, Tunis, Warsaw, Zurich, Chicago"
        ),
    },
    lists=_SAID_ANYWHERE
    | {
        "area": households.ROOMS + _split("tea room, sewing room, mud room, loft, music room, boiler room"),
        "floor": (*_pairs("ground, first, second, third, top, upper", "floor"), "lower level", "main level"),
    },
)

# shares no room, floor, person, town, adjective or kind of thing with the homes of either task
ELSEWHERE = Vocabulary(
    names=_things(
        "crooked, ivory, narrow, western, yellow, iron, vintage, square, wicker, leather",
        {
            "light": "sconce, floodlight, candelabra, downlight",
            "switch": "dryer, freezer, printer, bread machine",
            "fan": "air circulator, extractor",
            "media_player": "jukebox, gramophone, receiver",
            "cover": "drape, canopy, screen, portcullis",
            "lock": "padlock, trunk, vault",
            "valve": "hydrant, drip line",
            "climate": "furnace, fireplace, cooler",
            "button": "buzzer, gong, alarm key",
            "sensor": "barometer, hygrometer, gas meter",
            "binary_sensor": "hatch, drawer, porthole",
            "vacuum": "dustbot, mop, crumb collector",
            "lawn_mower": "grass cutter, hay cutter, turf trimmer",
        },
    )
    | {
        "scene": _pairs("stormy, dreamy, solemn", "brunch, concert, sunset, siesta"),
        "script": _pairs("arrival, midday, harvest", "sequence, drill, checklist"),
        "input_boolean": _pairs("pirate, winter, sauna", "setting, override"),
        "todo": _split("voyage, orchard, kennel, archive, regatta, pottery"),
        "person": _split("Anselm, Beatrix, Cosmo, Dagny, Ezra, Fiona, Gideon, Hedda"),
        "weather": _split("Accra, Bogota, Perth, Tallinn, Osaka, Malmo, Denver, Porto"),
    },
    lists=_SAID_ANYWHERE
    | {
        "area": _split(
            "ballroom, boathouse, stable, greenhouse, foyer, parlor, scullery, tower room, chapel, wine vault, crypt, "
            "lounge, veranda, smoking room"
        ),
        "floor": _split("mezzanine level, rooftop level, fifth floor, sixth floor, bottom floor"),
    },
)

NARROW_FLEET = Vocabulary(names=households.DEVICES, lists=_SAID_ANYWHERE | {"area": households.ROOMS})
NARROW_ELSEWHERE = Vocabulary(
    names={domain: ELSEWHERE.names[domain] for domain in households.DEVICES},
    lists=_SAID_ANYWHERE | {"area": ELSEWHERE.lists["area"]},
)

NARROW_SIZES = households.DEVICES_PER_HOME | {"area": households.ROOMS_PER_HOME}
WIDE_SIZES = dict.fromkeys(FLEET.names, 3) | {
    "area": 5, "floor": 2, "weather": 2, "light": 4, "vacuum": 4, "lawn_mower": 4, "timer_name": 10,
    "shopping_list_item": 12, "todo_list_item": 8, "message": 8, "search_query": 12, "zone": 4, "timer_command": 8,
}  # fmt: skip

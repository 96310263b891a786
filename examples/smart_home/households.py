"""What homes have: rooms, devices, and the values people say. Every home gets a few of each."""

ROOMS = (
    "kitchen", "living room", "bedroom", "bathroom", "garage", "office", "hallway", "attic", "basement",
    "dining room", "nursery", "guest room", "laundry room", "studio", "sunroom", "library", "pantry", "workshop",
    "playroom", "conservatory", "utility room", "cellar", "den", "gym",
)  # fmt: skip

DEVICES = {
    "light": (
        "desk lamp", "floor lamp", "reading lamp", "bedside lamp", "corner lamp", "chandelier", "ceiling light",
        "wall light", "night light", "mirror light", "spotlight", "lantern", "led strip", "string light",
        "counter light",
    ),
    "switch": (
        "coffee maker", "kettle", "dehumidifier", "humidifier", "space heater", "water pump", "toaster",
        "electric blanket", "christmas tree", "aquarium", "towel warmer", "rice cooker",
    ),
    "fan": ("ceiling fan", "desk fan", "tower fan", "exhaust fan", "window fan", "pedestal fan"),
    "media_player": ("tv", "soundbar", "radio", "smart speaker", "projector", "stereo", "record player", "tablet"),
    "climate": ("thermostat", "radiator", "air conditioner", "heat pump", "floor heating", "boiler"),
    "cover": (
        "roller blind", "venetian blind", "velvet curtain", "skylight shade", "awning", "garage door", "side gate",
        "window shutter", "patio curtain", "sun shade",
    ),
}  # fmt: skip
DEVICES_PER_HOME = {"light": 4, "switch": 3, "fan": 2, "media_player": 2, "climate": 2, "cover": 3}
ROOMS_PER_HOME = 5

# slot list of Home Assistant -> what people say for it, and its value in the answer where that differs
SAYINGS: dict[str, tuple[tuple[str, str | int], ...]] = {
    "on_off_states": (("on", "on"), ("off", "off")),
    "cover_states": (("open", "open"), ("closed", "closed"), ("shut", "closed")),
    "brightness_level": (("maximum", 100), ("highest", 100), ("minimum", 1), ("lowest", 1)),
    "cover_classes": (
        ("blinds", "blind"), ("curtains", "curtain"), ("shutters", "shutter"), ("shades", "shade"),
        ("awning", "awning"),
    ),
}  # fmt: skip
WORDS: dict[str, tuple[str, ...]] = {
    "color": ("white", "red", "orange", "yellow", "green", "blue", "purple", "pink", "turquoise"),
    "timer_name": ("pizza", "pasta", "laundry", "tea", "eggs", "workout", "homework", "bread", "nap", "cookies"),
    "shopping_list_item": (
        "milk", "eggs", "bread", "apples", "batteries", "soap", "rice", "coffee", "cheese", "tomatoes",
        "paper towels", "olive oil", "bananas", "dog food", "toothpaste", "orange juice", "light bulbs", "yogurt",
        "onions", "flour",
    ),
}  # fmt: skip
NUMBERS: dict[str, tuple[int, ...]] = {
    "brightness": tuple(range(10, 101, 5)),
    "temperature": tuple(range(16, 27)),
    "position": tuple(range(10, 101, 5)),
    "volume": tuple(range(5, 101, 5)),
    "timer_seconds": (10, 15, 20, 30, 40, 45, 50, 60, 90),
    "timer_minutes": (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 35, 40, 45, 50, 55),
    "timer_hours": (1, 2, 3, 4, 5, 6, 8),
}

"""Every target, and the modules whose branches guide the search: our decoders, and not what they import."""

from fuzz import bodies, files, messages, requests
from fuzz.target import Target

TARGETS: tuple[Target, ...] = (*messages.TARGETS, *bodies.TARGETS, *requests.TARGETS, *files.TARGETS)


def target_of(name: str) -> Target:
    """One target by its name; ValueError for a name that there is not."""
    for target in TARGETS:
        if target.name == name:
            return target
    raise ValueError(f"there is no target {name}, only {', '.join(target.name for target in TARGETS)}")

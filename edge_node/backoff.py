"""How long to wait before trying again: longer each time, and not in step with others. Pure: the jitter is a hash."""

import hashlib

LONGEST_S = 600.0


def wait_s(key: str, attempts: int, first_s: float) -> float:
    """Seconds to wait after the `attempts`-th try: doubling from `first_s` up to ten minutes, give or take a quarter.

    The same key and number of attempts always give the same answer.
    """
    steady = min(first_s * 2.0 ** min(attempts - 1, 30), max(first_s, LONGEST_S))
    chance = int.from_bytes(hashlib.sha256(f"{key} {attempts}".encode()).digest()[:4], "big") / 2**32
    return steady * (0.75 + chance / 2)

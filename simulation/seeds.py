"""Randomness by name: the same words give the same numbers, whatever was drawn before."""

import hashlib

import numpy as np


def seed_of(*words: object) -> int:
    """A seed, below 2^48, for what these words name."""
    text = " ".join(map(str, words))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def generator_of(*words: object) -> np.random.Generator:
    """A generator for what these words name."""
    return np.random.default_rng(seed_of(*words))

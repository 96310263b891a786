"""Gaussian noise for one version, from a secret key, and how much of the promise each node's part has used. Pure.

The key is drawn outside and comes in as a recorded event, so a replay draws the same noise. What is made of it depends
on the version and on all that it was made of: two versions never have the same noise, not even in a what-if. SHAKE-256
makes the bits, so that no noise can be told from another without the key.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from coordinator.privacy.terms import PrivacyTerms
from coordinator.updates import AdapterUpdate, Aggregate
from schemas.adapter import BLOCK, Adapter
from schemas.messages import Factors

KEY_BYTES = 32
_DOMAIN = b"alignfed noise v1\0"
_STEPS = 2.0**53


def protected(
    aggregate: Aggregate,
    updates: Sequence[AdapterUpdate],
    terms: PrivacyTerms,
    factors: Factors,
    key: bytes,
    parent: str,
) -> Aggregate:
    """The aggregate with noise on the factors that are shared, and without what is said of deltas in the manifest.

    Its standard deviation is noise_multiplier * clip_norm * the largest weight of any node. `parent` is the head's
    digest.
    """
    spread = terms.noise_multiplier * terms.clip_norm * heaviest(aggregate, updates)
    groups = tuple(group.model_copy(update={"cosine": None}) for group in aggregate.groups)
    if spread == 0:
        return replace(aggregate, groups=groups)
    made_of = " ".join(f"{u.update_id}:{weight!r}" for u, weight in zip(updates, aggregate.weights, strict=True))
    label = f"{parent} {made_of} {spread!r}".encode()
    return replace(aggregate, groups=groups, adapter=_with_noise(aggregate.adapter, spread, factors, key, label))


def node_weights(aggregate: Aggregate, updates: Sequence[AdapterUpdate]) -> Mapping[str, float]:
    """Each node's part in the step: the sum of its updates' weights, which may all point the same way."""
    totals: dict[str, float] = {}
    for update, weight in zip(updates, aggregate.weights, strict=True):
        totals[update.node] = totals.get(update.node, 0.0) + abs(weight)
    return totals


def heaviest(aggregate: Aggregate, updates: Sequence[AdapterUpdate]) -> float:
    """The largest weight of any node: times the clip norm, the most that one node can move the head."""
    return max(node_weights(aggregate, updates).values(), default=0.0)


def losses(aggregate: Aggregate, updates: Sequence[AdapterUpdate], terms: PrivacyTerms | None) -> dict[str, float]:
    """What a version costs each node: 1 / m^2, m being the noise in parts of the most that this node can move it.

    Sums of it over versions stand for one Gaussian mechanism; accounting.py says its epsilon. Infinite without noise.
    """
    weights = node_weights(aggregate, updates)
    multiplier, most = (terms.noise_multiplier if terms else 0.0), max(weights.values(), default=0.0)
    if multiplier == 0:
        return {node: math.inf if weight else 0.0 for node, weight in weights.items()}
    return {node: (weight / most / multiplier) ** 2 if most else 0.0 for node, weight in weights.items()}


def _with_noise(adapter: Adapter, spread: float, factors: Factors, key: bytes, label: bytes) -> Adapter:
    values = np.empty(adapter.layout.size, dtype=np.float64)
    for start in range(0, values.size, BLOCK):
        block = values[start : start + BLOCK]
        block[:] = gaussians(key, label + start.to_bytes(8, "big"), block.size)
    values *= spread
    noise = Adapter(adapter.layout, values.astype(np.float32))
    if factors != "both":
        noise = noise.only(factors)
    # added in float64 and rounded once, as every step is
    return Adapter(adapter.layout, (adapter.values.astype(np.float64) + noise.values).astype(np.float32))


def gaussians(key: bytes, label: bytes, count: int) -> NDArray[np.float64]:
    """Standard normal numbers, shape (count,), from a key of 32 bytes and a label, by Box and Muller."""
    if len(key) != KEY_BYTES:
        raise ValueError(f"a key of noise has {KEY_BYTES} bytes, got {len(key)}")
    pairs = -(-count // 2)
    stream = hashlib.shake_256(_DOMAIN + key + label).digest(16 * pairs)
    bits = (np.frombuffer(stream, dtype="<u8") >> 11).astype(np.float64).reshape(2, pairs)
    lengths = np.sqrt(-2 * np.log((bits[0] + 0.5) / _STEPS))  # never the logarithm of 0
    angles = 2 * np.pi * bits[1] / _STEPS
    return np.concatenate([lengths * np.cos(angles), lengths * np.sin(angles)])[:count]

"""The method's formulas, one short function each: first the paper's (3) to (8) as they read literally, then ours.

The paper is AlignFed (arXiv 2606.08197). Its equations are taken from an independent reading; docs/paper.md says where
we depart from it and why. Nothing here knows a strategy, a buffer or a model: adapters and plain numbers come in, and
the order of sums is the order given.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from schemas.adapter import A_SUFFIX, Adapter, weighted_sum

# --- the paper's equations, literally ---


def representation_penalty(local: ArrayLike, dispatched: ArrayLike, strength: float) -> float:
    """What a node adds to its task loss: strength * mean squared distance from the snapshot's features. Eq. (3).

    Both are (examples, hidden): last hidden features, averaged over each prompt's tokens, of the model in training and
    of the one it was sent.
    """
    drift = np.asarray(local, dtype=np.float64) - np.asarray(dispatched, dtype=np.float64)
    return strength * float(np.mean(np.sum(drift**2, axis=1)))


def buffer_is_ready(pending: int, k: int, waited_s: float, timeout_s: float | None) -> bool:
    """Whether K updates wait, or any has waited for the timeout. Eq. (4)."""
    return pending >= k or (pending > 0 and timeout_s is not None and waited_s >= timeout_s)


def consensus(group: Sequence[Adapter]) -> Adapter:
    """The plain mean of the deltas of one base version: what eq. (5) subtracts."""
    return weighted_sum(list(group), [1 / len(group)] * len(group))


def centre(group: Sequence[Adapter]) -> tuple[Adapter, ...]:
    """Each delta of one base version less the group's mean; a group of one becomes zero. Eq. (5)."""
    mean = consensus(group)
    return tuple(delta - mean for delta in group)


def apply_maps(delta: Adapter, maps: Mapping[str, ArrayLike]) -> Adapter:
    """T(d): each factor with the (rank, rank) map of its name: T A for A (rank, in), B T for B (out, rank). Eq. (6)."""
    mapped = {}
    for name, factor in delta.tensors().items():
        left, right = (maps[name], factor) if name.endswith(A_SUFFIX) else (factor, maps[name])
        mapped[name] = np.matmul(left, right, dtype=np.float64).astype(np.float32)
    return Adapter.from_tensors(delta.layout, mapped)


def feature_gap(moved: ArrayLike, current: ArrayLike) -> float:
    """The aim of T, to be minimised: squared distance of mean features at theta_v + T(d) and at theta_t. Eq. (6).

    Both are (examples, hidden), over the calibration mini-batch.
    """
    gap = np.mean(np.asarray(moved, dtype=np.float64), axis=0) - np.mean(np.asarray(current, dtype=np.float64), axis=0)
    return float(np.sum(gap**2))


def literal_weights(
    taus: Sequence[int], norms: Sequence[float], uploads: Sequence[int], gamma: float, eps: float = 1e-8
) -> tuple[float, ...]:
    """exp(-gamma tau) / (norm + eps) / sqrt(uploads + 1), made to sum to one over the buffer. Eq. (7)."""
    freshest = min(taus)  # cancels in the sum; without it a buffer of very old updates would be 0 / 0
    raw = [
        exponential_freshness(tau - freshest, gamma) / (norm + eps) / math.sqrt(count + 1)
        for tau, norm, count in zip(taus, norms, uploads, strict=True)
    ]
    return tuple(weight / math.fsum(raw) for weight in raw)


def server_step(head: Adapter, deltas: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """theta + sum_i w_i d_i, rounded once. Eq. (8)."""
    return weighted_sum([head, *deltas], [1.0, *weights])


# --- ours: how an update is weighed ---


def staleness(version: int, base_version: int) -> int:
    """Versions that passed between the one an update started from and the current one: tau."""
    if base_version > version:
        raise ValueError(f"base version {base_version} lies after version {version}")
    return version - base_version


def freshness(tau: int, exponent: float) -> float:
    """(1 + tau)^-exponent: 1 for a fresh update, less the staler it is.

    The polynomial staleness function of FedAsync (Xie et al., arXiv 1903.03934, section 5.2), which FedBuff takes over.
    """
    return float((1 + tau) ** -exponent)


def exponential_freshness(tau: int, gamma: float) -> float:
    """exp(-gamma tau): the freshness inside eq. (7), which forgets old updates much faster than `freshness`."""
    return math.exp(-gamma * tau)


def participation_factor(count: int, mean_count: float) -> float:
    """sqrt((mean count + 1) / (count + 1)), kept within 1/2 and 2: more for a node that is heard less than the others.

    `count` is the node's accepted updates, `mean_count` the mean over all nodes, both from the coordinator's ledger.
    """
    return min(max(math.sqrt((mean_count + 1) / (count + 1)), 0.5), 2.0)


def absolute_weights(freshnesses: Sequence[float], participations: Sequence[float]) -> tuple[float, ...]:
    """freshness * participation / B for each of B updates; never made to sum to one, so a stale buffer steps less."""
    pairs = zip(freshnesses, participations, strict=True)
    return tuple(fresh * share / len(freshnesses) for fresh, share in pairs)


def cap_shares(nodes: Sequence[str], weights: Sequence[float], cap: float) -> tuple[float, ...]:
    """The weights, lowered where one node's updates would hold more than `cap` of what all weights then sum to.

    No weight is raised, and a node's updates are lowered alike. Fewer than 1 / cap nodes cannot all keep to the cap:
    then each gets as much as the one with the least. A node without weight does not count.
    """
    totals = {node: 0.0 for node, weight in zip(nodes, weights, strict=True) if weight > 0}
    if not totals:
        return tuple(weights)
    for node, weight in zip(nodes, weights, strict=True):
        if weight > 0:
            totals[node] += weight
    return cap_totals(nodes, weights, _highest_level(sorted(totals.values(), reverse=True), max(cap, 1 / len(totals))))


def cap_totals(nodes: Sequence[str], weights: Sequence[float], most: float) -> tuple[float, ...]:
    """The weights, a node's lowered alike where together they are more than `most`, however few nodes there are."""
    totals = dict.fromkeys(nodes, 0.0)
    for node, weight in zip(nodes, weights, strict=True):
        totals[node] += max(weight, 0.0)
    return tuple(
        weight if weight <= 0 or totals[node] <= most else weight * most / totals[node]
        for node, weight in zip(nodes, weights, strict=True)
    )


def _highest_level(totals: Sequence[float], cap: float) -> float:
    """The level at which totals, largest first, are cut so that it is `cap` of what is left of their sum.

    Cutting the first k at level t leaves k t + rest; the right k is the one that leaves least. So of the solutions of
    t = cap (k t + rest), one for each k with cap k < 1, the smallest is the level.
    """
    slopes = ((k, 1 - cap * k) for k in range(len(totals)))
    return min(cap * math.fsum(totals[k:]) / slope for k, slope in slopes if slope > 1e-9)


# --- ours: the step and the release ---


def anchor_share(updates: int, votes: float = 1.0) -> float:
    """votes / (B + votes): how much of the step is the server's own, if it counts as `votes` fresh updates beside B."""
    return votes / (updates + votes)


def anchored_step(mean: Adapter, anchor: Adapter, share: float) -> Adapter:
    """(1 - share) sum_i w_i d_i + share d_s: the nodes' weighted mean, and the server's own delta on labelled data."""
    return weighted_sum([mean, anchor], [1 - share, share])


def ema_decay(version: int, limit: float) -> float:
    """How much of the running average of adapters is kept: min(limit, (1 + t) / (4 + t)), little in the beginning."""
    return min(limit, (1 + version) / (4 + version))

"""The adapter that is served: prepared beside the one in use, switched by one assignment, kept for a way back.

A slot never changes once it is made, and a request keeps the slot it began with to its end, whatever is switched
meanwhile. It does not know requests, text, or where adapters come from.
"""

import threading
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from edge_node.memory import let_go_of_values
from edge_node.serving.graph_inputs import factor_names
from edge_node.serving.mapped_factors import Factor, MappedFactors, map_factors
from edge_node.serving.session import ONNX_FAULTS, WITHOUT, Conversation, Session
from schemas.adapter import A_SUFFIX, B_SUFFIX, Adapter

DRY_RUN_TOKEN = 0


class AdapterRefused(ValueError):
    """An adapter that will not be served; the text says why. What was served before is served still."""


class ServedVersion(NamedTuple):
    """Which release it is: a later one has a higher epoch, or in the same epoch a higher version."""

    epoch: int
    version: int


@dataclass(frozen=True, eq=False)
class AdapterSlot:
    """One adapter, ready to run; whoever runs it holds the slot as long."""

    version: ServedVersion
    digest: str
    factors: MappedFactors

    @property
    def named(self) -> dict[str, Any]:
        """Epoch, version and digest, as whoever is answered is told."""
        return {**self.version._asdict(), "digest": self.digest}


class Inference:
    """A session and the slot that new requests use; every method may be called from any thread."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._lock = threading.Lock()  # of who switches; who reads needs none
        self._current: AdapterSlot | None = None
        self._before: tuple[AdapterSlot | None, ...] = ()  # what a rollback goes to; empty when there is no way back

    @property
    def current(self) -> AdapterSlot | None:
        """The slot of new requests: take it once for each; None while the base model is served without an adapter."""
        return self._current

    def prepare(self, adapter: Adapter, version: ServedVersion, digest: str) -> AdapterSlot:
        """Make a slot of a verified adapter and try it on one token; nothing that is served changes.

        `digest` is the one that it was verified by: computing it again would take longer than the rest of this.
        Raises AdapterRefused for values that are not finite, for factors that the model does not have or that do not
        fit it, and for an adapter that ONNX Runtime cannot run.
        """
        factors = _factors(adapter)
        self._check(factors)
        _check_values(adapter, factors)
        slot = AdapterSlot(version, digest, map_factors(factors))
        let_go_of_values(adapter.values)  # of a file they came from: what is served is a copy of its own
        self._try(slot)
        return slot

    def swap(self, slot: AdapterSlot) -> AdapterSlot | None:
        """Serve this slot from the next request on; one that is older than the current raises AdapterRefused.

        Returns the slot that is now too old to roll back to. Letting go of it unmaps its memory, which takes longer
        than the switch, so that is left to the caller.
        """
        with self._lock:
            if self._current is not None and slot.version < self._current.version:
                raise AdapterRefused(f"{_name(slot)} is older than {_name(self._current)}, which is served")
            forgotten = self._before[0] if self._before else None
            self._current, self._before = slot, (self._current,)
            return forgotten

    def rollback(self) -> AdapterSlot | None:
        """Serve again what was served before the last swap, at once; returns it, None for the base model alone.

        The slot that was given up is forgotten. Without a swap before it, ValueError.
        """
        with self._lock:
            if not self._before:
                raise ValueError("there is nothing to roll back to: nothing was switched since")
            (self._current,), self._before = self._before, ()
            return self._current

    def stay(self) -> None:
        """Forget what was served before the last swap: there is no way back any more, and its memory is free."""
        with self._lock:
            self._before = ()

    def _check(self, factors: dict[str, Factor]) -> None:
        for name, (values, _) in factors.items():
            expected = self.session.factor_shapes.get(name)
            if expected is None:
                raise AdapterRefused(f"the served model takes no factor {name}")
            if any(size not in (None, found) for size, found in zip(expected, values.shape, strict=True)):
                raise AdapterRefused(f"{name} has shape {values.shape}, and the served model takes {expected}")
        for module in sorted({name.rpartition(".")[0] for name in factors}):
            a, b = (factors.get(name) for name in factor_names(module))
            if a is None or b is None:
                raise AdapterRefused(f"{module} has only one of its two factors")
            if a.values.shape[1] != b.values.shape[0]:
                raise AdapterRefused(f"{module} has factors of ranks {a.values.shape[1]} and {b.values.shape[0]}")

    def _try(self, slot: AdapterSlot) -> None:
        try:
            logits = begin(self.session, slot, room=1).read([DRY_RUN_TOKEN], [0])
        except ONNX_FAULTS as fault:
            raise AdapterRefused(f"ONNX Runtime cannot run it: {fault}") from fault
        if not np.isfinite(logits).all():
            raise AdapterRefused("with it the model's answers are not finite")


def begin(session: Session, slot: AdapterSlot | None, room: int) -> Conversation:
    """A conversation of at most `room` tokens with a slot's adapter; with None, of the base model alone."""
    return session.begin(room, slot.factors.values if slot is not None else WITHOUT)


def _check_values(adapter: Adapter, factors: dict[str, Factor]) -> None:
    """Refuse numbers that are not finite, or are not once they are scaled."""
    with np.errstate(over="ignore", invalid="ignore"):
        # all at once, for finite numbers are what is to be expected; NaN is the largest wherever there is one
        largest = max(adapter.values.max(), -adapter.values.min())
        if np.isfinite(largest * np.float32(max(factor.scale for factor in factors.values()))):
            return
        for name, (values, scale) in factors.items():
            if not np.isfinite(values * np.float32(scale)).all():
                raise AdapterRefused(f"{name} holds values that are not finite")


def _factors(adapter: Adapter) -> dict[str, Factor]:
    """The adapter as the graph takes it: transposed, and with alpha / rank in B. Nothing is copied."""
    lora = adapter.layout.lora
    factors = {}
    for name, values in adapter.tensors().items():
        if name.endswith(A_SUFFIX):
            factors[factor_names(_module(name, A_SUFFIX))[0]] = Factor(values.T)
        elif name.endswith(B_SUFFIX):
            factors[factor_names(_module(name, B_SUFFIX))[1]] = Factor(values.T, lora.alpha / lora.rank)
        else:
            raise AdapterRefused(f"{name} is not a LoRA factor")
    return factors


def _module(name: str, suffix: str) -> str:
    return name.removesuffix(suffix).removeprefix("base_model.model.")


def _name(slot: AdapterSlot) -> str:
    return f"version {slot.version.version} of epoch {slot.version.epoch}"

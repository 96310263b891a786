"""Cross-version alignment on calibration data: what a delta did at its base version, carried over to the head.

Semantic: keep the *functional displacement* on calibration inputs, module by module, in closed form. Literal: the
paper's equation (6), one linear map per factor, fitted by a few steps of Adam. Both use the base model.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from base_model.evaluation import features, module_inputs
from base_model.examples import Example
from base_model.features import hidden_states
from base_model.language_model import LanguageModel
from base_model.tokens import collate, pooled
from coordinator.equations import apply_maps, feature_gap
from schemas.adapter import A_SUFFIX, B_SUFFIX, Adapter
from schemas.products import transplant

Aligned = tuple[tuple[Adapter, ...], float, float]
"""The deltas for the head, and the residual before and after."""

MAP_STEPS = 5
MAP_LEARNING_RATE = 0.05
RIDGE = 0.1  # of the input covariance: in directions that calibration data do not show, nothing is bent
TRANSPLANT_RIDGE = 0.01

Matrix = NDArray[np.float64]


def align_literally(
    model: LanguageModel, examples: Sequence[Example], base: Adapter, head: Adapter, deltas: Sequence[Adapter]
) -> Aligned:
    """Fit one map (rank, rank) for each factor, shared by the group, so that mean features meet the head's. Eq. (6)."""
    current = features(model, head, examples)
    wanted = torch.from_numpy(current.mean(axis=0)).to(model.device)
    rank = head.layout.lora.rank
    maps = {name: np.eye(rank, dtype=np.float64) for name, _ in head.layout.tensors}
    fitted = {name: torch.from_numpy(values).requires_grad_() for name, values in maps.items()}
    optimizer = torch.optim.Adam(fitted.values(), lr=MAP_LEARNING_RATE)
    before = _mean_gap(model, examples, base, deltas, maps, current)
    for _ in range(MAP_STEPS):
        optimizer.zero_grad()
        for delta in deltas:
            _add_gradients(model, examples, base, delta, fitted, wanted)
        optimizer.step()
    maps = {name: values.detach().numpy() for name, values in fitted.items()}
    after = _mean_gap(model, examples, base, deltas, maps, current)
    return tuple(apply_maps(delta, maps) for delta in deltas), before, after


def align_semantically(
    model: LanguageModel, examples: Sequence[Example], base: Adapter, head: Adapter, deltas: Sequence[Adapter]
) -> Aligned:
    """Deltas for the head that move each module's output on calibration inputs as they did at the base version.

    With X_v and X_t the inputs of a module at base and head, the aim is dW' X_t near dW X_v, where dW is the change of
    the product. X_v is near P X_t by ridge regression, and with C = S S' the covariance of X_t the distance of outputs
    is that of products seen through S: so this is the transplant, between adapters whose A are seen through S.
    """
    then, now = module_inputs(model, base, examples), module_inputs(model, head, examples)
    views = {name: _view(then[name], now[name]) for name in now}
    seen_head = _through(head, {name: view.at_head for name, view in views.items()})
    at_base = {name: view.at_base for name, view in views.items()}
    seen_base = _through(base, at_base)
    back = {name: np.linalg.inv(view.at_head) for name, view in views.items()}
    moved = tuple(
        _through(transplant(seen_head, seen_base, _through(delta, at_base), TRANSPLANT_RIDGE), back) for delta in deltas
    )
    wanted = [_displacements(base, delta, then) for delta in deltas]
    before = _residual([_displacements(head, delta, now) for delta in deltas], wanted)
    after = _residual([_displacements(head, delta, now) for delta in moved], wanted)
    return moved, before, after


# --- the literal reading ---


def _add_gradients(
    model: LanguageModel,
    examples: Sequence[Example],
    base: Adapter,
    delta: Adapter,
    maps: dict[str, torch.Tensor],
    wanted: torch.Tensor,
) -> None:
    """Add one delta's gradients of the feature gap to the maps: through the factors, which are what the model has."""
    values = {name: tensor.detach().numpy() for name, tensor in maps.items()}
    model.apply(base + apply_maps(delta, values))
    batch = collate([model.encode(example) for example in examples], model.padding)
    gap = (pooled(hidden_states(model, batch).hidden, batch).mean(dim=0) - wanted).square().sum()
    gap.backward()  # type: ignore[no-untyped-call]
    for name, factor in delta.tensors().items():
        gradient = model.factors[name].grad
        assert gradient is not None
        fixed = torch.tensor(factor, dtype=torch.float64)
        slope = gradient.double().cpu()
        slope = slope @ fixed.T if name.endswith(A_SUFFIX) else fixed.T @ slope
        before = maps[name].grad
        maps[name].grad = slope if before is None else before + slope
        model.factors[name].grad = None


def _mean_gap(
    model: LanguageModel,
    examples: Sequence[Example],
    base: Adapter,
    deltas: Sequence[Adapter],
    maps: dict[str, Matrix],
    current: NDArray[np.float32],
) -> float:
    """What the maps are fitted to make small, the mean over the deltas; `current` are the head's features."""
    moved = (features(model, base + apply_maps(delta, maps), examples) for delta in deltas)
    return float(np.mean([feature_gap(one, current) for one in moved]))


# --- the functional displacement ---


class View(NamedTuple):
    """What a module's A is multiplied by, so that plain distances of products are distances of outputs."""

    at_base: Matrix  # P S
    at_head: Matrix  # S


def _view(then: NDArray[np.float32], now: NDArray[np.float32]) -> View:
    x_v, x_t = then.astype(np.float64), now.astype(np.float64)
    covariance, across = x_t.T @ x_t / len(x_t), x_v.T @ x_t / len(x_t)
    floor = RIDGE * float(np.trace(covariance)) / len(covariance) * np.eye(len(covariance))
    size = np.sqrt(np.trace(covariance) / len(covariance))
    root = np.linalg.cholesky(covariance + floor)
    regression = np.linalg.solve(covariance + floor, (across + floor).T).T
    return View(regression @ root / size, root / size)


def _through(adapter: Adapter, views: Mapping[str, NDArray[np.floating[Any]]]) -> Adapter:
    """The adapter with every A multiplied from the right by its module's view."""
    tensors = {}
    for name, factor in adapter.tensors().items():
        module = name.removesuffix(A_SUFFIX)
        tensors[name] = (factor @ views[module]).astype(np.float32) if name.endswith(A_SUFFIX) else factor
    return Adapter.from_tensors(adapter.layout, tensors)


def _displacements(start: Adapter, delta: Adapter, inputs: Mapping[str, NDArray[np.float32]]) -> list[Matrix]:
    """What a delta changes of each module's output, (tokens, out), at `start` on these inputs."""
    factors, changes = start.tensors(), delta.tensors()
    moved = []
    for module, rows in inputs.items():
        a, b = f"{module}{A_SUFFIX}", f"{module}{B_SUFFIX}"
        inner, shifted = rows @ factors[a].T, rows @ (factors[a] + changes[a]).T
        moved.append((shifted @ (factors[b] + changes[b]).T - inner @ factors[b].T).astype(np.float64))
    return moved


def _residual(found: Sequence[list[Matrix]], wanted: Sequence[list[Matrix]]) -> float:
    """Distance of displacements, relative to the wanted ones; 0 where they are met."""
    pairs = [(f, w) for fs, ws in zip(found, wanted, strict=True) for f, w in zip(fs, ws, strict=True)]
    total = sum(float(np.sum(w**2)) for _, w in pairs)
    apart = sum(float(np.sum((f - w) ** 2)) for f, w in pairs)
    return math.sqrt(apart / total) if total else 0.0

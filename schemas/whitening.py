"""The transform of the codec `kltp`: coordinates of a delta in which an error costs the same everywhere.

An adapter changes the model by its products B A. For the delta D of one factor, rows along the rank, and the other
factor O at the end of training, an error E in D changes the product by O^T E: so D is seen through M = (O O^T)^(1/2).
With U the principal axes of M D, the rows of C = U^T M D are uncorrelated, few of them carry most, and D = T C with
T = M^-1 U. Only encoding needs this, in float64; it does not know bytes.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.adapter import A_SUFFIX, B_SUFFIX, Adapter

RIDGE = 0.01  # of the mean square row of all factors O: the least that any direction of one counts

Matrix = NDArray[np.float64]
Tensor = NDArray[np.float32]


class Coordinates(NamedTuple):
    """One factor's delta as T C; `price` is the sum of M's squared singular values: what errors in T cost."""

    coefficients: Matrix  # C, (rows, columns), the strongest row first
    inverse: Matrix  # T, (rows, rows)
    price: float


def transform(delta: Adapter, end: Adapter | None) -> list[Coordinates]:
    """The coordinates of every factor, in layout order; without `end`, as if every O O^T were the identity."""
    grams = _grams(end) if end is not None else {}
    made = []
    for name, tensor in delta.tensors().items():
        rows = as_rows(name, tensor).astype(np.float64)
        gram = grams.get(name)
        # a rank above the width of the factor: its rows do not run along the rank
        made.append(_transform(rows, gram if gram is not None and len(gram) == len(rows) else np.eye(len(rows))))
    return made


def as_rows(name: str, tensor: Tensor) -> Tensor:
    """The factor as (rows, columns), a view: rows run along the rank, or whatever is the shorter side."""
    height, width = tensor.shape
    return tensor.T if height > width or (height == width and name.endswith(B_SUFFIX)) else tensor


def _transform(rows: Matrix, gram: Matrix) -> Coordinates:
    squares, axes = np.linalg.eigh(gram)
    lengths = np.sqrt(np.maximum(squares, 1e-12 * squares[-1]))
    whitened = (axes * lengths) @ axes.T @ rows
    _, principal = np.linalg.eigh(whitened @ whitened.T)
    principal = principal[:, ::-1]
    return Coordinates(principal.T @ whitened, (axes / lengths) @ axes.T @ principal, float(np.sum(lengths**2)))


def _grams(end: Adapter) -> dict[str, Matrix]:
    """O O^T for every factor that has another one, made regular: O may be zero, as B is before training."""
    tensors, grams = end.tensors(), dict[str, Matrix]()
    for ours, theirs in ((A_SUFFIX, B_SUFFIX), (B_SUFFIX, A_SUFFIX)):
        found: dict[str, Matrix] = {}
        for name in tensors:
            if name.endswith(ours) and (other := tensors.get(name.removesuffix(ours) + theirs)) is not None:
                factor = (other if theirs == A_SUFFIX else other.T).astype(np.float64)
                found[name] = factor @ factor.T
        if found:
            ridge = RIDGE * float(np.mean([np.trace(gram) / len(gram) for gram in found.values()]))
            grams |= {name: gram + (ridge or 1.0) * np.eye(len(gram)) for name, gram in found.items()}
    return grams

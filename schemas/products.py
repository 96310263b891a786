"""Arithmetic on what adapters do, the products alpha/rank * B A, whatever their ranks and their factors.

(B G, G^-1 A) changes the model as (B, A) does, so the factors of different versions or ranks cannot be added up, but
the products can. A product is kept as two thin factors and never multiplied out to (out, in). Where it has more rank
than an adapter can hold, alternating least squares finds the factors nearest to it, not far from factors given. All of
it is float64, rounded once at the end. Nothing here knows a strategy or a model.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.adapter import A_SUFFIX, B_SUFFIX, Adapter, Layout

if TYPE_CHECKING:
    from numpy.random import Generator  # megabytes that an idle node never loads

Matrix = NDArray[np.floating[Any]]  # float64 throughout
Update = tuple[Adapter, Adapter, float]  # the adapter that a node started from, its delta, the weight

FRESH_ROW = 1 / math.sqrt(3)  # length of a row of A before any training: `in` values, uniform in +-1/sqrt(in)


class Product(NamedTuple):
    """One module's left @ right, (out, q) and (q, in); alpha/rank is in the left factor."""

    left: Matrix
    right: Matrix


class Aim(NamedTuple):
    """What one module's product is now, the change wanted of it, and the factors to stay near.

    These are head + sum_i w_i d_i over the deltas of the head's own rank: factors of another rank mean nothing there.
    """

    module: str
    now: Product
    change: Product
    near: Product


class Cut(NamedTuple):
    """How factors of a smaller rank r come of a product's own: (left @ columns) (rows @ right); rows @ columns is 1."""

    columns: Matrix  # (rank, r)
    rows: Matrix  # (r, rank)


class Reach(NamedTuple):
    """Bounds on how far a delta can move products: c times the delta moves them by at most c linear + c^2 square."""

    linear: float
    square: float

    @property
    def whole(self) -> float:
        """Of the delta as it is."""
        return self.linear + self.square


Reader = Callable[[str], Product]
ROUNDED = 1e-6  # what rounding in float64 takes from a norm is far less


def transplant(head: Adapter, base: Adapter, delta: Adapter, ridge: float, sweeps: int = 2) -> Adapter:
    """The delta that does to the products of `head` what `delta` did to those of `base`; a fresh one is unchanged.

    The delta may be of any rank, the result has the layout of `head`. Its node started from `base`, or, where that is
    of another rank than the delta, from `truncate(base, delta.layout)`. The result is the least squares solution near
    head + delta; `ridge`, above 0, is the price of distance, relative to the mean square of the factors' rows.
    """
    if base == head and delta.layout == head.layout:
        return delta
    moved = {aim.module: _step(aim, ridge, sweeps) for aim in _aims(head, [(base, delta, 1.0)])}
    return _adapter(head.layout, moved)


def mean_product(head: Adapter, updates: Sequence[Update], ridge: float, sweeps: int = 2) -> tuple[Adapter, float]:
    """The adapter nearest to head's product + sum_i w_i (trained product - base product), and how much of it is lost.

    The aim is the exact aggregate of FedEx-LoRA and FLoRA (arXiv 2410.09432, 2409.05976), at the rank of `head`. The
    loss is relative to the sum: 0 when all of it is there, 1 when head might as well have stayed. For the rest see
    `transplant`.
    """
    found, lost, wanted = {}, 0.0, 0.0
    for aim in _aims(head, updates):
        step = _step(aim, ridge, sweeps)
        found[aim.module] = Product(aim.now.left + step.left, aim.now.right + step.right)
        lost += _square(_joined(aim.change, _scaled(_change(aim.now, [(step, 1.0)]), -1.0)))
        wanted += _square(aim.change)
    return _adapter(head.layout, found), math.sqrt(lost / wanted) if wanted else 0.0


def widen(head: Adapter, delta: Adapter, ridge: float) -> Adapter:
    """The delta that does to the products of `head` exactly what `delta`, of a smaller rank, did to its node's start.

    That is `truncate(head, delta.layout)`: (B Q, P A) with P Q = 1. So (B + dB P)(A + Q dA) is B A and all that the
    node has changed, and nothing is rounded but the sum. Where rows of A depend on each other so much that the node got
    new ones, `transplant` has to come as near as it can, at the price `ridge`.
    """
    _check_modules(head.layout, delta.layout)
    head_of, delta_of, rank = _reader(head), _reader(delta), delta.layout.lora.rank
    wide = {}
    for module in _modules(head.layout):
        change, (_, cut) = delta_of(module), _best(head_of(module), rank, _scale(delta.layout))
        if len(cut.rows) < rank:
            return transplant(head, head, delta, ridge)
        wide[module] = Product(change.left @ cut.rows, cut.columns @ change.right)
    return _adapter(head.layout, wide)


def truncate(adapter: Adapter, layout: Layout, seed: int = 0) -> Adapter:
    """The adapter of this layout, of another rank, that changes the model most alike; it can always learn on.

    A smaller rank keeps the largest singular values, shared evenly between the factors, but no row of A gets shorter
    than before training: with both factors near zero neither would learn. A larger rank keeps the factors and adds
    rows of A as training starts with, drawn from `seed`, beside columns of B that are zero.
    """
    if layout == adapter.layout:
        return adapter
    _check_modules(adapter.layout, layout)
    generator = np.random.default_rng(seed)
    scale, product_of = _scale(layout), _reader(adapter)
    cut = {}
    for module in _modules(layout):
        product = product_of(module)
        if layout.lora.rank < adapter.layout.lora.rank:
            product, _ = _best(product, layout.lora.rank, scale)
        cut[module] = _padded(product, layout.lora.rank, generator)
    return _adapter(layout, cut)


def stack(parts: Sequence[tuple[Adapter, float]]) -> Adapter:
    """One adapter whose products are the weighted sum of those of the parts; its rank is the sum of theirs."""
    layout = parts[0][0].layout
    for adapter, _ in parts:
        _check_modules(layout, adapter.layout)
    weighted = [(_reader(adapter), weight) for adapter, weight in parts]
    rank = sum(adapter.layout.lora.rank for adapter, _ in parts)
    sums = {m: _joined(*(_scaled(product_of(m), w) for product_of, w in weighted)) for m in _modules(layout)}
    return _adapter(layout.with_rank(rank), sums)


def reach(head: Adapter, delta: Adapter) -> Reach:
    """How far a delta can move the products of `head`: Frobenius norms of B dA + dB A and of dB dA, over all modules.

    Both adapters have one layout; a delta that overflows reaches infinitely far.
    """
    head_of, delta_of = _reader(head), _reader(delta)
    linear = product = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for module in _modules(head.layout):
            now, change = head_of(module), delta_of(module)
            linear += _square(_joined(Product(now.left, change.right), Product(change.left, now.right)))
            product += _square(change)
    parts = (math.sqrt(part) if math.isfinite(part) else math.inf for part in (linear, product))
    return Reach(*parts)


def reach_at_most(head: Adapter, delta: Adapter) -> float:
    """A bound on `reach(head, delta).whole` from the lengths of the two alone; no less than it, also when rounded."""
    most = _scale(head.layout) * (head.norm * delta.norm + delta.norm**2 / 2)
    return most * (1 + ROUNDED)


def product_distance(x: Adapter, y: Adapter) -> float:
    """Frobenius distance of what two adapters do, relative to the larger; under 1e-6 where only factors differ."""
    _check_modules(x.layout, y.layout)
    of_x, of_y = _reader(x), _reader(y)
    apart = size_x = size_y = 0.0
    for module in _modules(x.layout):
        one, other = of_x(module), of_y(module)
        apart += _square(_joined(one, _scaled(other, -1.0)))
        size_x += _square(one)
        size_y += _square(other)
    return math.sqrt(apart / max(size_x, size_y)) if apart else 0.0


# --- one module ---


def _step(aim: Aim, ridge: float, sweeps: int) -> Product:
    """What to add to the factors: B and A in turn, each the best for the other, with a price on leaving `near`."""
    if ridge <= 0:
        raise ValueError(f"ridge must be above 0, got {ridge}")
    target, (b, a) = _joined(aim.now, aim.change), aim.near
    for _ in range(sweeps):
        inverse, price = _inverse(a @ a.T, ridge)
        b = (target.left @ (target.right @ a.T) + price * aim.near.left) @ inverse
        inverse, price = _inverse(b.T @ b, ridge)
        a = inverse @ ((b.T @ target.left) @ target.right + price * aim.near.right)
    return Product(b - aim.now.left, a - aim.now.right)


def _inverse(gram: Matrix, ridge: float) -> tuple[Matrix, float]:
    """(gram + price)^-1 and the price: ridge times the mean of the diagonal, or 1 where that is zero, as B is at first.

    An explicit inverse of (rank, rank): with a right side as long as a layer, LAPACK's solve takes ten times as long.
    """
    rank = len(gram)
    price = ridge * float(np.trace(gram)) / rank or 1.0
    return np.linalg.inv(gram + price * np.eye(rank)), price


def _change(start: Product, deltas: Sequence[tuple[Product, float]]) -> Product:
    """sum_i w_i ((B + dB_i)(A + dA_i) - B A), written so that nothing cancels: B dA_i + dB_i (A + dA_i)."""
    left = [start.left, *(delta.left for delta, _ in deltas)]
    right = [weight * (start.right + delta.right) for delta, weight in deltas]
    return Product(np.hstack(left), np.vstack([sum(weight * delta.right for delta, weight in deltas), *right]))


def _best(product: Product, rank: int, scale: float) -> tuple[Product, Cut]:
    """The nearest product of this rank, or of less where A has less, with one choice of signs for every machine."""
    normal = _normal(product.right)
    basis = normal @ product.right
    within = product.right @ basis.T  # the rows of A are within @ basis
    onto = product.left @ within
    squares, vectors = np.linalg.eigh(onto.T @ onto)
    squares, vectors = squares[::-1][:rank], vectors[:, ::-1][:, :rank]
    right = vectors.T @ basis
    largest = np.take_along_axis(right, np.abs(right).argmax(axis=1, keepdims=True), axis=1)
    length = np.maximum(np.sqrt(np.sqrt(np.maximum(squares, 0.0)) / scale), FRESH_ROW)
    length = np.where(largest[:, 0] < 0, -length, length)
    cut = Cut((within @ vectors) / length, length[:, None] * (vectors.T @ normal))
    return Product((onto @ vectors) / length, right * length[:, None]), cut


def _normal(rows: Matrix) -> Matrix:
    """What makes orthonormal rows of these, which span the same; from a small Gram matrix, because QR of long thin
    matrices is slow.
    """
    squares, vectors = np.linalg.eigh(rows @ rows.T)
    present = squares > squares.max(initial=0) * 1e-12
    normal: Matrix = vectors[:, present].T / np.sqrt(squares[present])[:, None]
    return normal


def _padded(product: Product, rank: int, generator: "Generator") -> Product:
    (out_features, present), in_features = product.left.shape, product.right.shape[1]
    bound = 1 / math.sqrt(in_features)
    rows = generator.uniform(-bound, bound, (rank - present, in_features))
    return _joined(product, Product(np.zeros((out_features, rank - present)), rows))


def _joined(*products: Product) -> Product:
    """Their sum, its inner dimension the sum of theirs."""
    return Product(np.hstack([p.left for p in products]), np.vstack([p.right for p in products]))


def _scaled(product: Product, factor: float) -> Product:
    return Product(factor * product.left, product.right)


def _square(product: Product) -> float:
    """Squared Frobenius norm, as the trace of two Gram matrices."""
    return max(0.0, float(np.sum((product.left.T @ product.left) * (product.right @ product.right.T))))


# --- adapters, module by module ---


def _aims(head: Adapter, updates: Sequence[Update]) -> Iterator[Aim]:
    now_of = _reader(head)
    groups = _by_start(head.layout, updates)
    for module in _modules(head.layout):
        near = now = now_of(module)
        changes = []
        for start_of, members in groups:
            deltas = [(delta_of(module), weight) for delta_of, weight in members]
            changes.append(_change(start_of(module), deltas))
            for delta, weight in deltas:
                if delta.right.shape == now.right.shape:
                    near = Product(near.left + weight * delta.left, near.right + weight * delta.right)
        yield Aim(module, now, _joined(*changes), near)


def _by_start(layout: Layout, updates: Sequence[Update]) -> list[tuple[Reader, list[tuple[Reader, float]]]]:
    """Updates that started from the same numbers: the more they share, the thinner is their sum."""
    groups: dict[tuple[str, str], tuple[Reader, list[tuple[Reader, float]]]] = {}
    for base, delta, weight in updates:
        _check_modules(layout, delta.layout)
        start = base.digest, delta.layout.digest
        if start not in groups:
            groups[start] = _reader(truncate(base, delta.layout)), []
        groups[start][1].append((_reader(delta), weight))
    return list(groups.values())


def _reader(adapter: Adapter) -> Reader:
    """A function that reads one module in float64: all of a buffer's adapters at once would be twice their memory."""
    tensors, scale = adapter.tensors(), _scale(adapter.layout)

    def product(module: str) -> Product:
        b, a = tensors[module + B_SUFFIX], tensors[module + A_SUFFIX]
        return Product(scale * b.astype(np.float64), a.astype(np.float64))

    return product


@np.errstate(over="ignore")  # as in an adapter's own arithmetic: `is_finite` is how callers ask
def _adapter(layout: Layout, products: Mapping[str, Product]) -> Adapter:
    tensors, scale = {}, _scale(layout)
    for module, product in products.items():
        tensors[module + A_SUFFIX] = product.right.astype(np.float32)
        tensors[module + B_SUFFIX] = (product.left / scale).astype(np.float32)
    return Adapter.from_tensors(layout, tensors)


def _scale(layout: Layout) -> float:
    return layout.lora.alpha / layout.lora.rank


def _modules(layout: Layout) -> dict[str, tuple[int, int]]:
    """Each adapted module's (out_features, in_features), in order of names."""
    shapes = dict(layout.tensors)
    names = [name.removesuffix(A_SUFFIX) for name in shapes if name.endswith(A_SUFFIX)]
    return {name: (shapes[name + B_SUFFIX][0], shapes[name + A_SUFFIX][1]) for name in names}


def _check_modules(one: Layout, other: Layout) -> None:
    if _modules(one) != _modules(other):
        raise ValueError("these adapters belong to different models or modules; only rank and alpha may differ")

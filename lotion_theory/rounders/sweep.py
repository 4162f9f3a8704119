"""What the schemes that go over the columns share: orders, and sums over the columns done, by matrix products."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from .. import Stream
from .._arrays import Array, namespace, to_numpy
from .base import Case
from .places import turned

ORDERS = ("natural", "curvature", "random")


def column_order(case: Case, order: str, stream: Stream) -> np.ndarray:
    """The columns (n,) as they are ("natural"), by decreasing H_ii ("curvature"; equal ones as they are), or "random".

    Raises ValueError for another ``order``.
    """
    n = len(case.hessian)
    if order == "natural":
        return np.arange(n)
    if order == "curvature":
        return np.argsort(-to_numpy(case.curvature), kind="stable")
    if order == "random":
        return stream.numpy_generator().permutation(n)
    raise ValueError(f"unknown order {order!r}; valid: {', '.join(ORDERS)}")


def in_order(case: Case, columns: np.ndarray) -> Case:
    """The case with its columns in the order ``columns``, a permutation (n,)."""
    if (columns == np.arange(len(columns))).all():
        return case
    hessian = case.once(("in order", columns.tobytes()), lambda: case.hessian[columns][:, columns])
    return Case(hessian, case.weights[:, columns], case.grid.columns(columns))


def restored(points: Array, columns: np.ndarray) -> Array:
    """``points`` (rows, n) of columns in the order ``columns``, in their own order."""
    return points[:, np.argsort(columns)]


def sweep(
    signal: Array,
    matrix: Array,
    decide: Callable[[int, Array], Array],
    block: int = 64,
    enter: Callable[[int, int], None] | None = None,
    cuts: int | None = None,
) -> None:
    """For each column j in turn, ``move = decide(j, signal[j])``, then ``signal[k] += move matrix[j, k]``, k > j.

    ``signal`` (n, rows), with a column of the weights in each row, is changed in place; ``matrix`` is (n, n), ``move``
    (rows,). Columns further right than the current ``block`` hear of its moves at once, by a matrix product, and so in
    steps of 16 columns within it. Moves do not depend on ``block`` but through the rounding of these sums.

    ``enter(start, stop)`` is called at columns 0, ``cuts``, 2 ``cuts``, ... before any is decided, when ``signal``
    holds all that earlier columns did.
    """
    xp = namespace(signal)
    n, cuts = len(signal), cuts or len(signal)
    for group in range(0, n, cuts):
        if enter is not None:
            enter(group, min(group + cuts, n))
        for start, stop in _runs(group, min(group + cuts, n), block):
            onward = turned(matrix[start:stop])  # (n, columns of the block)
            moves = xp.empty_like(signal[start:stop])
            for first, last in _runs(start, stop, 16):
                rest = onward[start:stop, first - start : last - start]
                done = moves[first - start : last - start]
                for j in range(first, last):
                    k = j - first
                    done[k] = decide(j, signal[j] + rest[j - start, :k] @ done[:k] if k else signal[j])
                signal[last:stop] += rest[last - start :] @ done
            signal[stop:] += onward[stop:] @ moves


def _runs(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """``start`` to ``stop`` in runs of ``size``."""
    for first in range(start, stop, size):
        yield first, min(first + size, stop)

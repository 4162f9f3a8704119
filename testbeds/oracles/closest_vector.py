"""The closest lattice point in the metric of a Hessian: exact optima beyond the reach of enumeration.

``min ½ (q - w)ᵀ H (q - w)`` over q_j in finite level sets is a closest-vector problem in a box. The search is
depth-first in Schnorr and Euchner's order (Math. Programming 66, 1994; Agrell et al., IEEE Trans. IT 48, 2002, the
"sphere decoder"). With ``H = Rᵀ R``, R upper triangular, and levels fixed for weights k..n-1, the least loss over real
values of the others is ``½ Σ_{j >= k} R_jj² (q_j - c_j)²``, where c_j is the conditional optimum of weight j given the
later ones. Children are visited by increasing distance from c_j, so the first one that is too bad ends its siblings.

The levels of the weights still open give more. For any diagonal ``D ⪯ H_kk`` (leading k x k block), every choice of
them adds at least ``½ Σ_{j < k} D_j dist(c_j, levels of j)²``, as ``(x - c)ᵀ (H_kk - D) (x - c) >= 0`` (compare
the ellipsoid bounds of Buchheim, Hübner and Schöbel, SIAM J. Optim. 25, 2015). D maximises ``Σ D_j step_j²``, a
semidefinite program.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import solve_triangular

from lotion_theory.rounders.base import Case

from .enumeration import Optimum, level_sets

SLICE = 1_000_000
"""Nodes per call of the compiled search, between which time is checked; the first goes without D: that takes longer."""

BOUNDED = 128
"""Most weights with D: making it takes n⁴ time, a second here, and larger searches end at their limit anyway."""

WORST_ERROR = 1e-6
"""Largest relative rounding error of losses at which an optimum is still called proven."""


def closest_vector(
    case: Case,
    levels: np.ndarray | None = None,
    seconds: float = 60.0,
    max_nodes: int | None = None,
    order: str = "sorted",
    bounds: bool = True,
) -> Optimum:
    """The least loss over all lattice points of a case, or over the product of other level sets, by search.

    ``levels``: (rows, n, any number), not necessarily evenly spaced; the case's own by default, and
    :func:`~testbeds.oracles.enumeration.cell_levels` for up and down roundings only. ``seconds`` and ``max_nodes``
    limit the whole case, the rows sharing what is left; at a limit the best points so far come back with
    ``proven=False``. ``order``: of the weights, a key of ``ORDERS``. ``bounds``: use D, up to 128 weights. Without
    numba it is much slower.

    Proven means up to rounding: a branch is left when it cannot beat the best point by more than a bound on the
    rounding errors of the losses compared, usually 1e-11 of the best loss. The loss returned is ``case.loss(point)``.
    Raises ValueError where that bound exceeds 1e-6 of the loss because H is singular or badly conditioned, for an
    unknown order, and for levels of another shape.
    """
    if order not in ORDERS:
        raise ValueError(f"unknown order {order!r}; valid: {', '.join(ORDERS)}")
    sets = level_sets(case, case.grid.levels if levels is None else levels)
    search, began = _compiled(), time.perf_counter()
    # One order and one D serve all rows: by each weight's mean step.
    steps = np.mean([[(s[-1] - s[0]) / max(len(s) - 1, 1) for s in row] for row in sets], axis=0)
    tree = _Tree(case.hessian, steps, order, bounds)
    point, nodes, proven = np.empty_like(case.weights), 0, True
    for r, (w, row) in enumerate(zip(case.weights, sets, strict=True)):
        left, now = len(sets) - r, time.perf_counter()
        until = now + (began + seconds - now) / left
        budget = None if max_nodes is None else (max_nodes - nodes) // left
        point[r], used, done = _search_row(search, tree, w, row, until, budget)
        nodes, proven = nodes + used, proven and done
    return Optimum(point, float(case.loss(point[None])[0]), nodes, proven, time.perf_counter() - began)


# --- order of the weights: the first in the list is fixed last -------------------------------------------------------


def _natural(h: np.ndarray) -> np.ndarray:
    return np.arange(len(h))


def _diagonal(h: np.ndarray) -> np.ndarray:
    """Largest curvature fixed first."""
    return np.argsort(np.diagonal(h), kind="stable")


def _sorted(h: np.ndarray) -> np.ndarray:
    """Sorted QR (Wübben et al., Electronics Letters 37, 2001): Cholesky with the smallest pivot first."""
    h, left, order = h.copy(), np.ones(len(h), dtype=bool), []
    for _ in range(len(h)):
        i = int(np.where(left, np.diagonal(h), np.inf).argmin())
        order.append(i)
        left[i] = False
        if h[i, i] > 0:
            h -= np.outer(h[:, i], h[i]) / h[i, i]
    return np.array(order)


def _vblast(h: np.ndarray) -> np.ndarray:
    """V-BLAST (Wolniansky et al., ISSSE 1998): of the weights left, fix first the one with the largest last pivot."""
    left, order = list(range(len(h))), []
    while left:
        spread = np.diagonal(np.linalg.inv(h[np.ix_(left, left)]))
        order.append(left.pop(int(spread.argmin())))
    return np.array(order[::-1])


ORDERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "natural": _natural, "diagonal": _diagonal, "sorted": _sorted, "vblast": _vblast,
}  # fmt: skip
"""Ways to order the weights, from H in units of the steps."""


# --- what all rows share ---------------------------------------------------------------------------------------------


class _Tree:
    """Hessian in the order of the search and everything derived from it.

    ``pivots``: R_kk². ``gains`` (n, n): moving weight k by 1 from its centre moves the centres of weights j < k by
    ``gains[k, j]``. ``spread``: diagonal of the inverse.
    """

    def __init__(self, h: np.ndarray, steps: np.ndarray, order: str, bounds: bool) -> None:
        h, n = (h + h.T) / 2, len(h)
        if not np.isfinite(h).all():
            raise ValueError("the Hessian has entries that are not finite")
        singular = "the Hessian is singular or nearly so: where the loss is flat, the search cannot leave a branch"
        if not _definite(h):
            raise ValueError(singular)
        # A weight with one level has no branches: the order of the others comes after it.
        scaled = h * np.outer(steps, steps)
        free, fixed = np.flatnonzero(steps > 0), np.flatnonzero(steps == 0)
        self.order = np.concatenate([free[ORDERS[order](scaled[np.ix_(free, free)])] if len(free) else free, fixed])
        self.steps, self.bounds = steps[self.order], bounds and n <= BOUNDED
        self.h = h = h[np.ix_(self.order, self.order)]
        root = np.linalg.cholesky(h).T
        self.pivots, self.gains = np.diagonal(root) ** 2, np.zeros((n, n))
        for k in range(1, n):
            self.gains[k, :k] = -solve_triangular(root[:k, :k], root[:k, k])
        # The search takes (q - w)ᵀ H (q - w) to be Σ pivots y² with q - w = U y. What U and the pivots, both rounded,
        # make of H is compared with H; the comparison itself rounds too.
        eps, u = np.finfo(float).eps, np.eye(n) + self.gains.T
        off = np.abs(u.T @ h @ u - np.diag(self.pivots)) + 2 * n * eps * (np.abs(u.T) @ np.abs(h) @ np.abs(u))
        self.error = float(np.linalg.norm(off / np.sqrt(np.outer(self.pivots, self.pivots))))
        if not self.error <= WORST_ERROR:
            raise ValueError(f"{singular} (relative rounding error {self.error:.2g} of losses)")
        self._weights: np.ndarray | None = None

    @property
    def weights(self) -> np.ndarray:
        """D of every leading block, (n, n): row k belongs to the block of size k. Made when first asked for."""
        if self._weights is None:
            self._weights = _diagonal_bounds(self.h, self.steps**2)
        return self._weights

    def slack(self, loss: float, w: np.ndarray, levels: np.ndarray) -> float:
        """Bound on the rounding errors of doubled losses up to ``loss``, from each centre's sum of n terms."""
        n, eps = len(w), np.finfo(float).eps
        sizes = np.abs(w) + np.abs(levels).max(axis=1) + np.abs(self.gains.T) @ np.sqrt(loss / self.pivots)
        return loss * self.error + 4 * n * eps * np.sqrt(loss * (self.pivots * sizes**2).sum())


def _diagonal_bounds(h: np.ndarray, value: np.ndarray, final: float = 3e-3) -> np.ndarray:
    """For every leading block a diagonal ``0 <= D ⪯ H`` with nearly the largest ``Σ value_j D_j``; row k: size k.

    Newton's method on the barrier ``log det(H - D) + Σ log D_j``. D of a block is a feasible start for the next smaller
    one. Any feasible D is valid, so accuracy matters for speed only.
    """
    n = len(h)
    found, eps = np.zeros((n, n)), np.finfo(float).eps
    d = np.full(n, np.linalg.eigvalsh(h)[0] / 2)
    barrier = 1.0
    for k in range(n - 1, 0, -1):
        block, worth, d = h[:k, :k], value[:k] / max((value[:k] * np.diagonal(h)[:k]).mean(), 1e-300), d[:k]
        while True:
            for _ in range(30):
                inverse = np.linalg.inv(block - np.diag(d))
                slope = worth + barrier * (1 / d - np.diagonal(inverse))
                move = np.linalg.solve(barrier * (inverse**2 + np.diag(1 / d**2)), slope)
                decrement = slope @ move / barrier
                if decrement < 1e-2:
                    break
                # The damped step of a self-concordant barrier never leaves the domain.
                d = d + move / (1 + np.sqrt(decrement))
            if barrier <= final:
                break
            barrier /= 4
        margin = np.diag(4 * n**2 * eps * np.diagonal(block))  # Cholesky accepts matrices that are indefinite by less
        safe = (d * 0.5**i for i in range(40))
        found[k, :k] = next((x for x in safe if _definite(block - np.diag(x) - margin)), np.zeros(k))
    return found


def _definite(h: np.ndarray) -> bool:
    try:
        return np.linalg.cholesky(h).size > 0
    except np.linalg.LinAlgError:
        return False


# --- one row ---------------------------------------------------------------------------------------------------------


class _Problem(NamedTuple):
    """What the compiled search reads; losses are doubled."""

    pivots: np.ndarray  # (n,)
    gains: np.ndarray  # (n, n)
    levels: np.ndarray  # (n, most), padded at the end
    counts: np.ndarray  # (n,)
    per_gap: np.ndarray  # (n,) inverse mean step, for a first guess of the nearest level
    slack: float


class _State(NamedTuple):
    """Where the search stands; all arrays, so that it can be interrupted and go on."""

    depth: np.ndarray  # (1,) weight whose level is chosen next; n when done
    least: np.ndarray  # (1,) least doubled loss so far
    point: np.ndarray  # (n,) where it is
    current: np.ndarray  # (n,) levels chosen
    centres: np.ndarray  # (n, n) row k: conditional optima given weights after k
    costs: np.ndarray  # (n,) doubled loss of the choices after k
    below: np.ndarray  # (n,) next level to try below the centre, and above it
    above: np.ndarray


def _search_row(
    search: Callable[..., int], tree: _Tree, w: np.ndarray, sets: list[np.ndarray], until: float, budget: int | None
) -> tuple[np.ndarray, int, bool]:
    """Best point (n,) of one row, nodes visited, and whether it is proven."""
    n, sets, w = len(w), [sets[i] for i in tree.order], w[tree.order]
    counts = np.array([len(s) for s in sets])
    levels = np.array([np.pad(s, (0, counts.max() - len(s)), mode="edge") for s in sets])
    start = _descend(tree.h, w, levels, _babai(tree, w, levels))
    loss = float((start - w) @ tree.h @ (start - w))
    slack = tree.slack(loss, w, levels)
    per_gap = (counts - 1) / np.where(counts > 1, levels[:, -1] - levels[:, 0], 1.0)
    problem = _Problem(tree.pivots, tree.gains, levels, counts, per_gap, slack)
    up = np.full(n, np.searchsorted(sets[-1], w[-1]))  # right for the last weight, the others are set on the way
    state = _State(
        np.array([n - 1]), np.array([loss]), start.copy(), start.copy(), np.zeros((n, n)), np.zeros(n), up - 1, up
    )
    state.centres[-1] = w
    nodes, none = 0, np.zeros((0, 0))
    while state.depth[0] < n and (budget is None or nodes < budget) and (nodes == 0 or time.perf_counter() < until):
        piece = SLICE if budget is None else min(SLICE, budget - nodes)
        nodes += search(problem, state, tree.weights if tree.bounds and nodes else none, piece)
    point = np.empty(n)
    point[tree.order] = state.point
    return point, nodes, bool(state.depth[0] == n)


def _babai(tree: _Tree, w: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Nearest level to each conditional optimum in turn (Babai's nearest plane; GPTQ in this order)."""
    q, centre = np.empty_like(w), w.copy()
    for k in range(len(w) - 1, -1, -1):
        q[k] = levels[k, np.abs(levels[k] - centre[k]).argmin()]
        centre += (q[k] - centre[k]) * tree.gains[k]
    return q


def _descend(h: np.ndarray, w: np.ndarray, levels: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Coordinate descent: the best change of a single weight until none lowers the loss."""
    q, every, curvature = q.copy(), np.arange(len(w)), np.diagonal(h)
    slope = h @ (q - w)
    while True:
        centre = q - slope / curvature
        best = levels[every, np.abs(levels - centre[:, None]).argmin(axis=1)]
        drop = curvature * ((q - centre) ** 2 - (best - centre) ** 2)
        i = int(drop.argmax())
        if drop[i] <= 1e-12 * curvature[i] * (abs(q[i]) + abs(w[i])) ** 2:
            return q
        slope += h[i] * (best[i] - q[i])
        q[i] = best[i]


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., int]:
    """:func:`_search` compiled and called once, so that compiling is not timed; as it is without numba."""
    try:
        import numba
    except ImportError:
        return _search
    search: Any = numba.njit(nogil=True, error_model="numpy")(_search)
    one, none = np.zeros(1), np.zeros((1, 1))
    integers = np.zeros(1, dtype=np.int64)
    problem = _Problem(one, none, none, integers + 1, one, 0.0)
    state = _State(integers + 1, one, one, one, none, one, integers, integers)
    search(problem, state, np.zeros((0, 0)), 1)
    return search


def _search(problem: _Problem, state: _State, weights: np.ndarray, budget: int) -> int:
    """Visit up to ``budget`` nodes from where the search stands; how many were visited. Compiled by numba."""
    pivots, gains, levels, counts, per_gap, slack = problem
    depth, least, point, current, centres, costs, below, above = state
    n, k, nodes, bounded = pivots.size, depth[0], 0, weights.size > 0
    radius = least[0] - slack
    while k < n and nodes < budget:
        low, high, centre = below[k], above[k], centres[k, k]
        if low < 0 and high >= counts[k]:
            k += 1
            continue
        # The nearer of the two levels not yet tried on either side.
        if high >= counts[k] or (low >= 0 and centre - levels[k, low] <= levels[k, high] - centre):
            level = levels[k, low]
            below[k] -= 1
        else:
            level = levels[k, high]
            above[k] += 1
        nodes += 1
        error = level - centre
        cost = costs[k] + pivots[k] * error * error
        if cost >= radius:
            k += 1  # all other levels are farther away
            continue
        current[k] = level
        if k == 0:
            least[0], radius = cost, cost - slack
            point[:] = current
            k += 1
            continue
        bound = cost
        for j in range(k - 1, -1, -1):
            x = centres[k, j] + error * gains[k, j]
            centres[k - 1, j] = x
            if bounded:
                last = counts[j] - 1
                i = min(max(int((x - levels[j, 0]) * per_gap[j] + 0.5), 0), last)
                while i < last and levels[j, i + 1] - x < x - levels[j, i]:
                    i += 1
                while i > 0 and x - levels[j, i - 1] < levels[j, i] - x:
                    i -= 1
                bound += weights[k, j] * (levels[j, i] - x) ** 2
                if bound >= radius:
                    break
        if bound >= radius:
            continue
        k -= 1
        costs[k] = cost
        i = 0
        while i < counts[k] and levels[k, i] < centres[k, k]:
            i += 1
        below[k], above[k] = i - 1, i
    depth[0] = k
    return nodes

"""Local minima of the smoothed loss by searching it, with nothing assumed about where they are."""

from __future__ import annotations

import numpy as np

from ..quantizer import Quantizer
from ..smoothing.losses import Loss
from ..streams import Stream
from ._batch import Batch
from .minima import Minima


def local_minima_smoothed(
    loss: Loss,
    q: Quantizer | str,
    low: np.ndarray,
    high: np.ndarray,
    starts: int = 256,
    seed: int = 0,
    iterations: int = 400,
) -> Minima:
    """Local minima of ``E L(RR(w))`` in the box ``low <= w <= high``, found by search from ``starts`` points.

    Scrambled Sobol' points of the box (``starts`` is rounded up to a power of two) descend together by a random pattern
    search that needs no derivative and copes with kinks; each cluster of arrivals is polished by Nelder-Mead and kept if
    no probe around it, down to a millionth of the box, is lower. ``strict``: all probes are higher. ``quantized``: the
    minimum is within 1e-6 of the box of a point that rounding leaves alone and that is no worse; it is then moved there.

    ``low``, ``high``: arrays of the weights' shape. Meant for up to three weights; a search may miss a minimum whose
    basin is small, never return a wrong one. Deterministic under ``seed``.
    """
    low, high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    if low.shape != high.shape or not (low < high).all():
        raise ValueError("low and high must have one shape, with low < high everywhere")
    from scipy.stats import qmc

    batch, d = Batch(q, low.shape), low.size
    generator = Stream(seed, "landscape/minima").numpy_generator()
    points = qmc.Sobol(d, scramble=True, rng=int(generator.integers(2**62))).random_base2(int(np.ceil(np.log2(starts))))
    width = float((high - low).max())

    def value(x: np.ndarray) -> np.ndarray:
        return batch.smoothed(loss, x.reshape(-1, *low.shape))

    x = low.ravel() + points * (high - low).ravel()
    x, f = _descend(value, x, width / 16, width * 1e-9, iterations, generator)
    inside = ((x >= low.ravel()) & (x <= high.ravel())).all(axis=1)
    found = []
    for i in _clusters(x[inside], f[inside], width * 1e-3):
        found.append(_polished(value, x[inside][i], width))
    kept, values, strict, quantized = [], [], [], []
    for point, best in found:
        exact, snapped = _snap(batch, value, point, best, width)
        around = value(_probes(exact, width, generator))
        at = float(value(exact[None])[0])
        noise = 64 * np.finfo(float).eps * (1 + abs(at))
        if (around < at - noise).any() or any(np.linalg.norm(exact - k) < 1e-5 * width for k in kept):
            continue
        kept.append(exact)
        values.append(at)
        strict.append(bool((around > at + noise).all()))
        quantized.append(snapped)
    order = np.argsort(values, kind="stable").astype(int)
    points = np.array(kept).reshape(-1, *low.shape)
    return Minima(points[order], np.array(values)[order], np.array(strict, bool)[order], np.array(quantized, bool)[order])


def _directions(count: int, d: int, generator: np.random.Generator) -> np.ndarray:
    """The axes and ``count`` random directions, each with its opposite."""
    random = generator.normal(size=(count, d))
    some = np.concatenate([np.eye(d), random / np.linalg.norm(random, axis=1, keepdims=True)])
    return np.concatenate([some, -some])


def _descend(value, x, step, smallest, iterations, generator):
    """Pattern search of all rows of ``x`` at once; a row's step shrinks when no direction improves."""
    n, d = x.shape
    f, h = value(x), np.full(n, step)
    for _ in range(iterations):
        active = np.flatnonzero(h > smallest)
        if not active.size:
            break
        directions = _directions(4 * d, d, generator)
        # The ray through zero is the valley of a moving lattice.
        radial = x[active] / np.maximum(np.linalg.norm(x[active], axis=1, keepdims=True), 1e-300)
        moves = np.concatenate([np.repeat(directions[None], len(active), axis=0), radial[:, None], -radial[:, None]], axis=1)
        trial = x[active, None] + h[active, None, None] * moves
        ft = value(trial.reshape(-1, d)).reshape(len(active), -1)
        best = ft.argmin(axis=1)
        lower = ft[np.arange(len(active)), best]
        better = lower < f[active]
        chosen = active[better]
        x[chosen], f[chosen] = trial[np.flatnonzero(better), best[better]], lower[better]
        h[active] *= np.where(better, 1.2, 0.6)
    return x, f


def _clusters(x: np.ndarray, f: np.ndarray, distance: float) -> list[int]:
    """Indices of the lowest point of each group of points closer together than ``distance``."""
    chosen: list[int] = []
    for i in np.argsort(f, kind="stable"):
        if all(np.linalg.norm(x[i] - x[j]) > distance for j in chosen):
            chosen.append(int(i))
    return chosen


def _polished(value, x: np.ndarray, width: float) -> tuple[np.ndarray, float]:
    from scipy.optimize import minimize

    simplex = x + 1e-5 * width * np.concatenate([np.zeros((1, x.size)), np.eye(x.size)])
    options = {"initial_simplex": simplex, "xatol": 1e-12 * width, "fatol": 0.0, "maxiter": 600, "maxfev": 600}
    found = minimize(lambda v: float(value(v[None])[0]), x, method="Nelder-Mead", options=options)
    start = float(value(x[None])[0])
    return (found.x, float(found.fun)) if found.fun <= start else (x, start)


def _snap(batch: Batch, value, x: np.ndarray, best: float, width: float) -> tuple[np.ndarray, bool]:
    cast = batch.cast(x.reshape(1, *batch.shape))
    fixed = not batch.variance(cast).any() and bool((batch.cast(cast) == cast).all())
    near = cast.ravel()
    close = np.linalg.norm(near - x) <= 1e-6 * width
    slack = 1e-9 * (1 + abs(best))
    if fixed and close and float(value(near[None])[0]) <= best + slack:
        return near, True
    return x, False


def _probes(x: np.ndarray, width: float, generator: np.random.Generator) -> np.ndarray:
    directions = _directions(64 * x.size, x.size, generator)
    radii = width * np.array([1e-3, 1e-4, 1e-5])
    return (x + radii[:, None, None] * directions[None]).reshape(-1, x.size)

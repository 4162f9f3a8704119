"""Local minima of the smoothed loss by searching it, with nothing assumed about where they are."""

from __future__ import annotations

import numpy as np

from .._arrays import doubles
from ..arguments import count, is_integer
from ..formats.quantizer import Quantizer
from ..smoothing.losses import Loss
from ..streams import Stream
from ._batch import Batch
from .minima import Minima


def _first_points(
    starts: int | np.ndarray, ends: tuple[np.ndarray, np.ndarray], generator: np.random.Generator
) -> np.ndarray:
    """The points to descend from, (n, weights): those given, or so many Sobol' points of the box."""
    if not is_integer(starts):
        return np.clip(doubles(starts, "starts").reshape(-1, ends[0].size), *ends)
    from scipy.stats import qmc

    sobol = qmc.Sobol(ends[0].size, scramble=True, rng=int(generator.integers(2**62)))
    return ends[0] + sobol.random_base2(int(np.ceil(np.log2(count("starts", starts))))) * (ends[1] - ends[0])


def local_minima_smoothed(
    loss: Loss,
    q: Quantizer | str,
    low: np.ndarray,
    high: np.ndarray,
    starts: int | np.ndarray = 256,
    seed: int = 0,
    step: float = 1 / 64,
    iterations: int = 400,
) -> Minima:
    """Local minima of ``E L(RR(w))`` over the box ``low <= w <= high``, found by search.

    ``starts``: points (n, *shape) to descend from, or how many scrambled Sobol' points of the box (rounded up to a
    power of two). They descend together by a random pattern search, from steps of ``step`` times the box's width, that
    needs no derivative and copes with kinks; each cluster of arrivals is polished by Nelder-Mead and kept if no probe
    around it, at 1e-4 to 1e-6 of the width, is lower. ``strict``: all probes are higher. ``quantized``: the minimum is
    within 1e-6 of the width of a point that rounding leaves alone and that is no worse; it is then moved there.

    The box is a constraint: for a frozen lattice give its end levels, beyond which the loss is flat; for a moving one,
    a box so large that no minimum lies on its border.

    ``low``, ``high``: arrays of the weights' shape. Meant for up to three weights; a search may miss a minimum whose
    basin is smaller than its steps. Deterministic under ``seed``.
    """
    low, high = doubles(low, "low"), doubles(high, "high")
    if low.shape != high.shape or not (low < high).all():
        raise ValueError("low and high must have one shape, with low < high everywhere")
    batch = Batch(q, low.shape)
    generator = Stream(seed, "landscape/minima").numpy_generator()
    ends = low.ravel(), high.ravel()
    x = _first_points(starts, ends, generator)
    width = float((high - low).max())

    def value(x: np.ndarray) -> np.ndarray:
        return batch.smoothed(loss, x.reshape(-1, *low.shape))

    x, f = _descend(value, x, ends, (width * step, width * 1e-8), iterations, generator)
    kept: list[np.ndarray] = []
    values, strict, quantized = [], [], []
    for i in _clusters(x, f, width * 1e-3):
        near, _ = _snap(batch, value, x[i], float(f[i]), width)
        point, fixed = _snap(batch, value, *_polished(value, near, ends, width), width)
        at = float(value(point[None])[0])
        around = value(_probes(point, ends, width, generator))
        noise = 64 * np.finfo(float).eps * (1 + abs(at))
        if (around < at - noise).any() or any(np.linalg.norm(point - k) < 1e-5 * width for k in kept):
            continue
        kept.append(point)
        values.append(at)
        strict.append(bool((around > at + noise).all()))
        quantized.append(fixed)
    order = np.argsort(values, kind="stable").astype(int)
    points = np.array(kept).reshape(-1, *low.shape)
    return Minima(
        points[order], np.array(values)[order], np.array(strict, bool)[order], np.array(quantized, bool)[order]
    )


def _directions(count: int, d: int, generator: np.random.Generator) -> np.ndarray:
    """The axes and ``count`` random directions, each with its opposite."""
    random = generator.normal(size=(count, d))
    some = np.concatenate([np.eye(d), random / np.linalg.norm(random, axis=1, keepdims=True)])
    return np.concatenate([some, -some])


def _descend(value, x, ends, steps, iterations, generator):
    """Pattern search of all rows of ``x`` at once; a row's step shrinks when no direction improves. ``steps``: the
    first and the smallest."""
    n, d = x.shape
    f, h = value(x), np.full(n, steps[0])
    for _ in range(iterations):
        active = np.flatnonzero(h > steps[1])
        if not active.size:
            break
        directions = _directions(2 * d, d, generator)
        # The ray through zero is the valley of a moving lattice.
        radial = x[active] / np.maximum(np.linalg.norm(x[active], axis=1, keepdims=True), 1e-300)
        moves = np.concatenate(
            [np.repeat(directions[None], len(active), axis=0), radial[:, None], -radial[:, None]], axis=1
        )
        trial = np.clip(x[active, None] + h[active, None, None] * moves, *ends)
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


def _polished(value, x: np.ndarray, ends, width: float) -> tuple[np.ndarray, float]:
    from scipy.optimize import minimize

    # Towards the middle of the box, so that the simplex stays inside.
    sides = np.diag(np.where(x > (ends[0] + ends[1]) / 2, -1.0, 1.0))
    simplex = x + 1e-5 * width * np.concatenate([np.zeros((1, x.size)), sides])
    options = {"initial_simplex": simplex, "xatol": 1e-12 * width, "fatol": 0.0, "maxfev": 150 * x.size}
    found = minimize(
        lambda v: float(value(v[None])[0]),
        x,
        method="Nelder-Mead",
        bounds=list(zip(*ends, strict=True)),
        options=options,
    )
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


def _probes(x: np.ndarray, ends, width: float, generator: np.random.Generator) -> np.ndarray:
    directions = _directions(64 * x.size, x.size, generator)
    radii = width * np.array([1e-4, 1e-5, 1e-6])
    probes = np.clip((x + radii[:, None, None] * directions[None]).reshape(-1, x.size), *ends)
    return probes[(probes != x).any(axis=1)]

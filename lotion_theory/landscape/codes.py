"""Code vectors: the directions in which the quantized points of a moving lattice lie."""

from __future__ import annotations

import itertools

import numpy as np

from ..formats.quantizer import Quantizer
from ..formats.scale_protocol import rules
from ..smoothing.losses import Loss, Quadratic, values_of
from ._batch import Batch


def real_rules() -> tuple[str, ...]:
    """Names of the scale rules whose quantized points fill whole rays (or, with a zero point, half planes)."""
    return tuple(rule.name for rule in rules() if rule.sets_scale is not None)


def indices(q: Quantizer, size: int) -> np.ndarray:
    """Codebook positions, (n, size), of the code vectors of one block that set their own scale.

    Absmax: the largest magnitude is the top level's. Gauge: the top or the bottom level is attained. Real zero point:
    both are. All quantized points of the format are ``s c`` (``m + s c`` with a zero point), s > 0, for exactly one
    such c.
    """
    if q.scale.sets_scale is None:
        raise ValueError(f"scale {q.scale.name!r} has no code vectors; valid: {', '.join(real_rules())}")
    book = q.codebook
    index = np.stack([g.ravel() for g in np.meshgrid(*[np.arange(len(book.levels))] * size, indexing="ij")], axis=1)
    return index[q.scale.sets_scale(book.values[index], book)]


def values(q: Quantizer, size: int) -> np.ndarray:
    """The code vectors of :func:`indices` as numbers, (n, size)."""
    return q.codebook.values[indices(q, size)]


def line_minima(loss: Quadratic, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``(s, L(s c))`` for rows ``c`` of (n, d): the minimum over ``s >= 0``, ``s = max(0, ⟨c, H w*⟩ / ⟨c, H c⟩)``."""
    bend = (c * loss.product(c)).sum(axis=1)
    if (bend <= 0).any():
        raise ValueError("the Hessian must be positive definite")
    scale = np.maximum(loss.product(c) @ loss.center.ravel() / bend, 0.0)
    values = loss((scale[:, None] * c).reshape(-1, *loss.center.shape))
    return scale, np.asarray(values, dtype=float)


def quadratic_minimum(loss: Quadratic, batch: Batch) -> tuple[np.ndarray, float, int]:
    """Global minimum over all code vectors of all blocks and their scales: ``(point, value, vectors compared)``.

    Per combination of code vectors this is least squares with scales ``s >= 0``. Its solution is the unconstrained one
    on the blocks whose scale is not zero, so all such supports are tried.
    """
    if loss.center.shape != batch.shape:
        raise ValueError(f"the loss is on weights of shape {loss.center.shape}, not {batch.shape}")
    per_block = batch.q.codebook.values[indices(batch.q, batch.size)]
    affine = batch.q.scale.zero_point is not None
    combos = np.array(list(itertools.product(range(len(per_block)), repeat=batch.blocks)), dtype=np.int64).reshape(
        -1, batch.blocks
    )
    n, d = len(combos), batch.blocks * batch.size
    basis = np.zeros((n, d, batch.blocks * (2 if affine else 1)))
    for b in range(batch.blocks):
        rows = slice(b * batch.size, (b + 1) * batch.size)
        basis[:, rows, b] = per_block[combos[:, b]]
        if affine:
            basis[:, rows, batch.blocks + b] = 1.0
    hessian = np.diag(loss.hessian) if loss.hessian.ndim == 1 else loss.hessian
    best_value, best_point = np.inf, np.zeros(d)
    offsets = list(range(batch.blocks, basis.shape[2]))
    for support in itertools.chain.from_iterable(
        itertools.combinations(range(batch.blocks), k) for k in range(batch.blocks + 1)
    ):
        columns = [*support, *offsets]
        v = basis[:, :, columns] if support else basis[:1, :, columns]
        turned = np.swapaxes(v, 1, 2) @ hessian
        coefficients = np.einsum("nij,nj->ni", np.linalg.pinv(turned @ v, hermitian=True), turned @ loss.center.ravel())
        valid = (coefficients[:, : len(support)] >= 0).all(axis=1)
        if not valid.any():
            continue
        found = np.einsum("nij,nj->ni", v[valid], coefficients[valid])
        values = values_of(loss, found.reshape(-1, *batch.shape)).astype(float)
        least = int(np.argmin(values))
        if values[least] < best_value:
            best_value, best_point = float(values[least]), found[least]
    return best_point.reshape(batch.shape), best_value, n


def scanned_minimum(
    loss: Loss, batch: Batch, reach: float, scan: int = 513, refine: int = 32
) -> tuple[np.ndarray, float, int]:
    """Minimum over code vectors of one block and a scan of their scale, the best ``refine`` brackets refined."""
    from scipy.optimize import minimize_scalar

    c = batch.q.codebook.values[indices(batch.q, batch.size)]
    c = c / np.abs(c).max(axis=1, keepdims=True)
    sizes = np.linspace(0, reach, scan)
    values = np.stack([values_of(loss, (s * c).reshape(-1, *batch.shape)).astype(float) for s in sizes], axis=1)
    padded = np.pad(values, ((0, 0), (1, 1)), constant_values=np.inf)
    dips = np.argwhere((values <= padded[:, :-2]) & (values <= padded[:, 2:]))
    dips = dips[np.argsort(values[dips[:, 0], dips[:, 1]], kind="stable")][:refine]
    row, place = dips[0]
    best_value, best_point = float(values[row, place]), sizes[place] * c[row]
    for row, place in dips:
        ends = sizes[max(place - 1, 0)], sizes[min(place + 1, scan - 1)]
        ray = c[row]
        found = minimize_scalar(
            lambda s, ray=ray: float(values_of(loss, (s * ray).reshape(1, *batch.shape))[0]),
            bounds=ends,
            method="bounded",
            options={"xatol": 1e-12 * reach},
        )
        if found.fun < best_value:
            best_value, best_point = float(found.fun), found.x * ray
    return best_point.reshape(batch.shape), best_value, len(c)


def sublevel_radius(loss: Loss) -> float:
    """A magnitude beyond which a positive definite Quadratic exceeds its value at 0, ``|w*| + sqrt(2 L(0) / λ)``."""
    if not isinstance(loss, Quadratic):
        raise ValueError("give reach=, the largest weight magnitude to look at, for a loss that is not Quadratic")
    least = loss.hessian.min() if loss.hessian.ndim == 1 else np.linalg.eigvalsh(loss.hessian)[0]
    if least <= 0:
        raise ValueError("give reach=: the Hessian is not positive definite")
    drop = float(loss(np.zeros((1, *loss.center.shape)))[0]) - loss.offset
    return float(np.linalg.norm(loss.center) + np.sqrt(2 * drop / least))


def stored_scale_points(batch: Batch, reach: float, limit: int) -> np.ndarray:
    """All quantized points up to magnitude ``reach`` of one block whose scale is stored in a small float format."""
    fmt = batch.q.scale.storage
    if fmt is None or batch.q.scale.couples_blocks:
        raise ValueError(
            f"scale {batch.q.scale.name} is not enumerated; valid: frozen, {', '.join(real_rules())}, stored scales"
        )
    values = batch.q.codebook.values
    scales = _stored_values(fmt, reach / np.abs(values)[values != 0].min())
    if len(scales) * len(values) ** batch.size > limit:
        raise ValueError(
            f"{len(scales)} scales times {len(values)}^{batch.size} code vectors exceed the limit of {limit}"
        )
    c = np.stack([g.ravel() for g in np.meshgrid(*[values] * batch.size, indexing="ij")], axis=1)
    points = (scales[:, None, None] * c).reshape(-1, batch.size)
    points = np.unique(points[np.abs(points).max(axis=1) <= reach], axis=0).reshape(-1, *batch.shape)
    fixed = (batch.variance(points) == 0).reshape(len(points), -1).all(axis=1)
    return points[fixed & (batch.cast(points) == points).reshape(len(points), -1).all(axis=1)]


def _stored_values(fmt, up_to: float) -> np.ndarray:
    """All positive values of a scale format up to ``up_to``."""
    bits = fmt.mantissa_bits
    top = int(np.frexp(min(float(fmt.largest), max(up_to, 2.0**fmt.min_exponent)))[1])
    fractions = np.arange(2**bits, 2 ** (bits + 1))
    found = [fractions * 2.0 ** (e - bits) for e in range(fmt.min_exponent, top)]
    if bits:
        found.append(np.arange(1, 2**bits) * 2.0 ** (fmt.min_exponent - bits))
    values = np.sort(np.concatenate(found))
    return values[values <= min(up_to, float(fmt.largest))]

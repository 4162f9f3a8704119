"""MatGPTQ: cuts of codes, the choice of codes against all of them, GPTQ as its limit, and the published sweep."""

from dataclasses import replace

import numpy as np
import pytest

from lotion_theory._arrays import to_numpy
from lotion_theory.rounders import Case, Grid, base, rounder
from lotion_theory.rounders.matgptq import best_codes, choosing, cut, widths_losses
from tests.rounder_cases import ROUNDING, STREAM, case_of

MATGPTQ = rounder("matgptq")


def byte_case(seed: int, rows: int = 3, n: int = 12, shift: bool = False, dtype: str = "float64") -> Case:
    """Published 8-bit parent: 256 codes with zero point 128 and ``s = 2 max|w| / 255``."""
    case = case_of(seed, rows=rows, n=n)
    step = 2 * np.abs(case.weights).max(axis=1, keepdims=True) / 255 * np.ones_like(case.weights)
    grid = Grid(step.astype(dtype), np.arange(-128, 128))
    if shift:
        grid = Grid(-step.astype(dtype), np.arange(256), (128 * step).astype(dtype))
    return Case(case.hessian.astype(dtype), case.weights.astype(dtype), grid)


def published_cut(code: int, r: int) -> int:
    if r == 8:
        return code
    return min((code >> (8 - r)) + ((code >> (7 - r)) & 1), 2**r - 1) << (8 - r)


def test_cuts_are_the_published_ones():
    codes = np.arange(256)
    for r in range(1, 9):
        assert cut(codes, r, 8).tolist() == [published_cut(int(q), r) for q in codes]
    assert set(cut(codes, 2, 8) - 128) == {-128, -64, 0, 64}
    for r, last, worst in ((2, 64, 63), (3, 96, 31), (4, 112, 15)):
        assert (cut(codes, r, 8) - 128).max() == last
        assert np.abs(cut(codes, r, 8) - codes).max() == worst  # saturation, not half a step


@pytest.mark.parametrize("widths", ((8,), (4, 8), (3, 4, 8), (2, 5), (2, 3, 4, 5, 6, 7, 8)))
def test_the_best_code_is_the_best_of_all(widths):
    rng = np.random.default_rng(0)
    weights = rng.random(len(widths)) + 0.1
    codes, bounds = best_codes(widths, weights, 8)
    assert (np.diff(bounds) > 0).all() and len(codes) == len(bounds) + 1
    values = np.array([[published_cut(q, r) for r in widths] for q in range(256)])
    for t in np.concatenate([rng.uniform(-20, 280, 500), np.arange(256)]):
        costs = ((t - values) ** 2) @ weights
        found = codes[np.searchsorted(bounds, t, side="right")]
        assert costs[found] <= costs.min() + ROUNDING * (t**2 + 256**2) * weights.sum()


@pytest.mark.parametrize("dtype", ("float32", "float64"))
@pytest.mark.parametrize("shift", (False, True))
@pytest.mark.parametrize("library", ("numpy", "torch", "tensors"))
def test_eight_bits_alone_are_gptq(library, shift, dtype, monkeypatch):
    case = byte_case(1, shift=shift, dtype=dtype)
    expected = rounder("gptq")(case, STREAM)
    if library == "tensors":
        monkeypatch.setattr(base, "swift", lambda case: case)
    if library != "numpy":
        torch = pytest.importorskip("torch")
        grid = replace(
            case.grid, step=torch.from_numpy(case.grid.step),
            shift=None if case.grid.shift is None else torch.from_numpy(case.grid.shift),
        )  # fmt: skip
        case = Case(torch.from_numpy(case.hessian), torch.from_numpy(case.weights), grid)
    assert (to_numpy(MATGPTQ(case, STREAM, widths=(8,))) == expected).all()


def _published(case: Case, widths: tuple[int, ...]) -> np.ndarray:
    """The released sweep: every code tried for every weight, and the mean residual over widths handed on."""
    w, n = case.weights.copy(), len(case.hessian)
    h = case.hessian + 0.01 * case.curvature.mean() * np.eye(n)
    upper, points = np.linalg.cholesky(np.linalg.inv(h)).T, np.empty_like(w)
    values = np.array([[published_cut(q, r) - 128 for r in widths] for q in range(256)])
    for i in range(n):
        scale = case.grid.step[:, i, None, None]
        best = ((w[:, i, None, None] - scale * values) ** 2).sum(axis=2).argmin(axis=1)
        points[:, i] = scale[:, 0, 0] * (best - 128)
        mean = (scale[:, 0] * values[best]).mean(axis=1)
        w[:, i:] -= ((w[:, i] - mean) / upper[i, i])[:, None] * upper[i, i:]
    return points


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("widths", ((3, 4, 8), (2, 8)))
def test_the_sweep_is_the_published_one(widths, seed):
    case = byte_case(seed)
    assert (MATGPTQ(case, STREAM, widths=widths) == _published(case, widths)).all()


def test_it_gives_up_little_at_eight_bits_for_much_at_three():
    cases = [byte_case(seed, rows=4, n=32) for seed in range(4)]
    parents = [rounder("gptq")(case, STREAM) for case in cases]
    both = [MATGPTQ(case, STREAM) for case in cases]
    for r, better in ((3, True), (4, True), (8, False)):
        cut_gptq, own = (
            sum(widths_losses(case, points, (r,))[r] for case, points in zip(cases, found, strict=True))
            for found in (parents, both)
        )
        assert (own < cut_gptq) == better, r


def test_the_choice_is_among_levels_of_the_grid():
    case = byte_case(3, shift=True)
    choose = choosing(case.grid, (3, 8), (1.0, 1.0))
    points, _ = choose(2, case.weights[:, 2])
    assert (points[:, None] == case.grid.levels[:, 2]).any(axis=1).all()


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"widths": (3, 9)}, r"widths=\(3, 9\): valid: different numbers of bits from 1 to 8"),
        ({"widths": ()}, r"widths=\(\)"), ({"widths": (3, 3)}, r"widths=\(3, 3\)"),
        ({"weights": (1.0,)}, "a positive number for each of 3 widths"), ({"weights": (1, 0, 1)}, "a positive number"),
    ],
)  # fmt: skip
def test_bad_settings_are_named(chosen, message):
    with pytest.raises(ValueError, match=message):
        MATGPTQ(byte_case(0), STREAM, **chosen)


def test_lattices_without_bits_are_refused():
    for text in ("int4/absmax/row", "nf4/absmax/row"):
        with pytest.raises(ValueError, match="needs 2\\^b evenly spaced levels, and the grid has"):
            MATGPTQ(case_of(0, text), STREAM)

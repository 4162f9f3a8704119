"""Frozen lattices against a loop over all levels in exact arithmetic, for every kind of step, unit and array."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lotion_theory._arrays import to_numpy
from lotion_theory.formats.codebooks import codebook
from lotion_theory.rounders import Grid
from lotion_theory.rounders.places import Between, Columns
from tests.strategies import examples

UNITS = {
    "int4": np.arange(-8, 8), "unsigned": np.arange(16), "ternary": np.arange(-1, 2), "int8": np.arange(-128, 128),
    "uneven": np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]),
    "fractions": np.linspace(-1, 1, 15), "nf4": codebook("nf4").values,
}  # fmt: skip
LIBRARIES = ("numpy", "torch")
kinds = st.sampled_from(
    [(name, dtype, library) for name in UNITS for dtype in ("float32", "float64") for library in LIBRARIES]
)
few = examples(40)


def _as(x: np.ndarray, dtype: str, library: str):
    x = np.asarray(x, dtype)
    return x if library == "numpy" else pytest.importorskip("torch").from_numpy(x.copy())


def _lattice(seed: int, kind, size: float, rows: int = 3, n: int = 7) -> tuple[Grid, np.ndarray]:
    """A lattice with steps of both signs and of 0 and shifts ``size`` times larger, and its levels in numpy."""
    name, dtype, library = kind
    rng = np.random.default_rng(seed)
    step = rng.choice([1.0, -1.0, 1.0, 0.0], size=(rows, n)) * np.exp(rng.normal(size=(rows, n)))
    shift = None if size == 0 else size * rng.normal(size=(rows, n))
    if shift is None:
        step = np.where(step == 0, 1.0, step)
    grid = Grid(_as(step, dtype, library), UNITS[name], None if shift is None else _as(shift, dtype, library))
    step, units = step.astype(dtype), UNITS[name].astype(dtype)
    levels = step[..., None] * units if shift is None else shift.astype(dtype)[..., None] + step[..., None] * units
    assert (to_numpy(grid.levels) == levels).all() and levels.dtype == dtype
    return grid, levels


def _points(levels: np.ndarray, seed: int) -> np.ndarray:
    """Weights on levels, in the middle of two, next to the middle, anywhere, and beyond the ends."""
    rng = np.random.default_rng(seed)
    shape = levels.shape[:2]
    low, high = levels.min(axis=-1), levels.max(axis=-1)
    order = np.sort(levels, axis=-1)
    k = rng.integers(levels.shape[-1] - 1, size=(*shape, 1))
    one, two = (np.take_along_axis(order, k + d, axis=-1)[..., 0] for d in (0, 1))
    middle = one / 2 + two / 2
    away = np.asarray(np.inf, levels.dtype)
    choices = [
        one, middle, np.nextafter(middle, away), np.nextafter(middle, -away), low - 1, high + 1,
        low + (high - low) * rng.random(shape), one + (two - one) * rng.random(shape), np.zeros(shape),
    ]  # fmt: skip
    return np.choose(rng.integers(len(choices), size=shape), choices).astype(levels.dtype)


@few
@given(st.integers(0, 2**32 - 1), kinds, st.sampled_from((0.0, 1.0, 1e3, 1e8)))
def test_levels_around_and_nearest_are_those_of_exact_arithmetic(seed, kind, size):
    grid, levels = _lattice(seed, kind, size)
    x = _points(levels, seed)
    given_x = _as(x, kind[1], kind[2])
    lo, hi, nearest = (to_numpy(part) for part in (*grid.bracket(given_x), grid.nearest(given_x)))
    index_lo, index_hi, code = (to_numpy(part) for part in (*grid.index(given_x), grid.nearest_index(given_x)))
    ends = [to_numpy(end) for end in grid.ends]
    for place in np.ndindex(x.shape):
        exact, w = [Fraction(float(v)) for v in levels[place]], Fraction(float(x[place]))
        assert ends[0][place] == min(exact) and ends[1][place] == max(exact)
        below, above = [v for v in exact if v <= w], [v for v in exact if v >= w]
        assert lo[place] == (max(below) if below else min(above))
        assert hi[place] == (min(above) if above else max(below))
        assert exact[index_lo[place]] == lo[place] and exact[index_hi[place]] == hi[place]
        assert exact[code[place]] == nearest[place]
        least = min(abs(v - w) for v in exact)
        assert abs(exact[code[place]] - w) == least
        best = [k for k, v in enumerate(exact) if abs(v - w) == least]
        if len(best) == 2 and exact[best[0]] != exact[best[1]]:
            assert code[place] % 2 == grid.ties


@few
@given(st.integers(0, 2**32 - 1), kinds, st.sampled_from((0.0, 1.0, 1e3, 1e8)))
def test_columns_find_the_same_levels(seed, kind, size):
    """Nine weights of ten are in the middle of two levels, on one, or a rounding away from that."""
    grid, levels = _lattice(seed, kind, size, rows=40)
    x = _as(_points(levels, seed), kind[1], kind[2])
    columns, expected = Columns(grid), to_numpy(grid.nearest(x))
    for j in range(levels.shape[1]):
        assert (to_numpy(columns.nearest(j, x[:, j])) == expected[:, j]).all()
        near = to_numpy(columns.near(j, x[:, j]))
        assert (near[:, None] == levels[:, j]).any(axis=1).all()


@few
@given(st.integers(0, 2**32 - 1), kinds)
def test_positions_between_levels(seed, kind):
    """Unchanged, a position gives the weight back or the end beyond which it lies; doubled and cut, the nearest level."""
    grid, levels = _lattice(seed, kind, 1.0)
    x = _points(levels, seed)
    given_x, eps = _as(x, kind[1], kind[2]), np.finfo(kind[1]).eps
    low, high = levels.min(axis=-1), levels.max(axis=-1)
    back = to_numpy(Between(grid).moved(given_x, 1.0, 0.0))
    # A handful of roundings of numbers as large as shifts, levels and weights, and of positions of up to 256 levels.
    allowed = 256 * eps * (np.abs(levels).max(axis=-1) + np.abs(x) + np.abs(to_numpy(grid.shift)))
    assert (np.abs(back - np.clip(x, low, high)) <= allowed).all()
    found = to_numpy(Between(grid).moved(given_x, 1e9, 0.5e9))
    nearest = to_numpy(grid.nearest(given_x))
    distance = np.abs(found - np.clip(x, low, high)) - np.abs(nearest - np.clip(x, low, high))
    assert (distance <= 4 * allowed + 1e-7 * (high - low)).all()


@pytest.mark.parametrize("name", ("int4", "int3", "nf4", "e2m1", "ternary", "int8"))
def test_a_codebook_placed_by_its_top_keeps_its_rule_for_ties(name):
    book = codebook(name)
    grid = Grid.balanced(np.full((1, len(book.levels) - 1), 2.0), book)
    middles = (grid.levels[0, 0, 1:] + grid.levels[0, 0, :-1]) / 2
    exact = [Fraction(float(v)) for v in grid.levels[0, 0]]
    for k, code in enumerate(grid.nearest_index(middles[None])[0]):
        tie = 2 * Fraction(float(middles[k])) == exact[k] + exact[k + 1]
        assert code in (k, k + 1) and (book.even[code] or not tie)


@pytest.mark.parametrize(
    ("units", "ties"), [(range(16), 0), (range(-8, 8), 0), (range(-7, 8), 1), ((-1.5, -0.5, 0.5), 0), ((-1, 0, 1), 1)]
)
def test_ties_go_an_even_number_of_places_from_zero(units, ties):
    grid = Grid(np.ones((1, 1)), np.array(units))
    assert grid.ties == ties
    low = grid.units[0]
    for k in range(len(grid.units) - 1):
        assert grid.nearest_index(np.array([[low + k + 0.5]]))[0, 0] % 2 == ties


@few
@given(st.integers(0, 2**32 - 1), kinds)
def test_parts_of_a_lattice_are_lattices(seed, kind):
    grid, levels = _lattice(seed, kind, 1.0)
    x = _as(_points(levels, seed), kind[1], kind[2])
    whole = to_numpy(grid.nearest(x))
    assert (to_numpy(grid.rows(slice(1, 3)).nearest(x[1:3])) == whole[1:3]).all()
    columns = _as(np.array([4, 0, 2]), "int64", kind[2])
    assert (to_numpy(grid.columns(columns).nearest(x[:, columns])) == whole[:, [4, 0, 2]]).all()
    assert (to_numpy(grid.at(grid.nearest_index(x))) == whole).all()
    assert np.allclose(to_numpy(grid.gap), np.ptp(levels, axis=-1) / (levels.shape[-1] - 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Grid(np.ones((1, 2)), [0, 0, 1]), "units must be"),
        (lambda: Grid(np.ones((1, 2)), [1]), "units must be"),
        (lambda: Grid(np.ones(2), [0, 1]), r"step has shape \(2,\), expected \(rows, n\)"),
        (lambda: Grid(np.ones((1, 2)), [0, 1], np.ones((2, 1))), r"shift is float64 of numpy \(2, 1\) and step"),
        (lambda: Grid(np.ones((1, 2)), [0, 1], np.ones((1, 2), np.float32)), "they must be alike"),
        (lambda: Grid(np.ones((1, 2)), [0, 1], None, 2), "ties=2: valid: 0, 1 or None"),
    ],
)
def test_lattices_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()

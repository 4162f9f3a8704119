"""Every rounding scheme on lattices of any kind: affine, uneven, of either sign; numpy and torch; rows in batches."""

from dataclasses import replace

import numpy as np
import pytest

from lotion_theory import Stream
from lotion_theory._arrays import to_numpy
from lotion_theory.rounders import Case, Grid, base, names, rounder
from lotion_theory.rounders.base import Regrid
from lotion_theory.rounders.gptq import compensated_rounding

STREAM = Stream(0, "test_rounders_lattices")
UNITS = {
    "even": np.arange(-8, 8), "unsigned": np.arange(8),
    "uneven": np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]) / 16,
}  # fmt: skip
SHORT = {
    "adaround": {"steps": 100, "lr": 0.05},
    "discquant": {"steps": 60},
    "lotion_ramp": {"steps": 60},
    "adaquant": {"steps": 60},
}
SCHEMES = tuple(
    name for name in names() if rounder(name).grid == "fixed" and name != "matgptq"
)  # that needs 2^b levels
DRAWN = ("rr", "gsq")
# Adam makes steps of one size of gradients that may be mere rounding errors: its path is a matter of the last bit.
SENSITIVE = ("adaround",)


def case_of(seed: int, units: str, rows: int = 6, n: int = 12, dtype: str = "float64") -> Case:
    rng = np.random.default_rng(seed)
    vectors, _ = np.linalg.qr(rng.normal(size=(n, n)))
    h = (vectors * np.arange(1, n + 1) ** -1.1) @ vectors.T
    levels = UNITS[units]
    size = rng.choice([1.0, -1.0], size=(rows, n // 4)) * np.exp(0.3 * rng.normal(size=(rows, n // 4)))
    step = np.repeat(4 * size / np.ptp(levels), 4, axis=1)
    shift = -step * levels.mean() + 0.1 * rng.normal(size=(rows, n))
    grid = Grid(step.astype(dtype), levels, shift.astype(dtype))
    return Case(((h + h.T) / 2).astype(dtype), rng.normal(size=(rows, n)).astype(dtype), grid)


def in_torch(case: Case) -> Case:
    torch = pytest.importorskip("torch")
    grid = replace(case.grid, step=torch.from_numpy(case.grid.step), shift=torch.from_numpy(case.grid.shift))
    return Case(torch.from_numpy(case.hessian), torch.from_numpy(case.weights), grid)


def rounded(case: Case, name: str, **settings):
    return rounder(name)(case, STREAM, **{**SHORT.get(name, {}), **settings})


@pytest.mark.parametrize("dtype", ("float32", "float64"))
@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("name", SCHEMES)
def test_points_are_levels_in_either_library_and_in_batches(name, units, dtype, monkeypatch):
    case = case_of(1, units, dtype=dtype)
    points = rounded(case, name)
    assert points.dtype == dtype and (case.grid.at(case.grid.nearest_index(points)) == points).all()
    there = in_torch(case)
    parts = (4, 5) if rounder(name).by_rows else (None, None)
    others = {"batches": rounded(case, name, batch=parts[0]), "torch": rounded(there, name)}
    others["batches of torch"] = rounded(there, name, batch=parts[1])
    assert str(others["torch"].dtype) == f"torch.{dtype}"
    # Tensors on a CPU are rounded in numpy: as on an accelerator only without that.
    monkeypatch.setattr(base, "swift", lambda case: case)
    others |= {"tensors": rounded(there, name), "batches of tensors": rounded(there, name, batch=parts[1])}
    for where, found in others.items():
        found = to_numpy(found)
        assert (case.grid.nearest(found) == found).all(), where
        if name not in SENSITIVE:  # of these few weights none is so near a threshold that rounding errors decide
            assert (found == points).all(), where


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("name", SCHEMES)
def test_diagonal_hessians_give_the_nearest_level(name, units):
    case = case_of(2, units)
    case = replace(case, hessian=np.diag(case.curvature))
    if name not in (*DRAWN, *SENSITIVE):
        assert (rounded(case, name) == case.grid.nearest(case.weights)).all()


@pytest.mark.parametrize("name", [name for name in SCHEMES if name != "gsq"])
def test_turning_a_lattice_around_changes_nothing(name):
    """Step and units negated give the same levels; randomized rounding draws among them with the same numbers (GSQ gives
    its numbers to levels in the order of units)."""
    case = case_of(3, "even")
    step, units = -case.grid.step, -case.grid.units[::-1]
    turned = replace(case, grid=Grid(step, units, case.grid.shift, 1 - case.grid.ties))
    assert (turned.grid.levels[..., ::-1] == case.grid.levels).all()
    assert (rounded(turned, name) == rounded(case, name)).all()


def test_adaround_in_batches_keeps_the_scale_of_the_whole():
    case = case_of(4, "even")
    case.weights[:3] *= 0.1  # rows of other sizes would have another scale by themselves
    assert (rounded(case, "adaround", batch=3) == rounded(case, "adaround")).all()


def test_what_clip_search_cannot_do_is_said():
    case = case_of(0, "even")
    with pytest.raises(ValueError, match=r"needs a grid without shift"):
        rounded(case, "clip_search")
    with pytest.raises(ValueError, match="takes all rows together"):
        rounded(replace(case, grid=replace(case.grid, shift=None)), "clip_search", batch=2)


@pytest.mark.parametrize("through_numpy", (True, False))
def test_clip_search_in_torch(through_numpy, monkeypatch):
    if not through_numpy:
        monkeypatch.setattr(base, "swift", lambda case: case)
    case = replace(case_of(5, "even"), grid=replace(case_of(5, "even").grid, shift=None))
    torch = pytest.importorskip("torch")
    there = Case(
        torch.from_numpy(case.hessian),
        torch.from_numpy(case.weights),
        Grid(torch.from_numpy(case.grid.step), case.grid.units),
    )
    assert (to_numpy(rounded(there, "clip_search")) == rounded(case, "clip_search")).all()
    points, grid = rounder("clip_search").placed(there, STREAM)
    assert torch.equal(grid.nearest(points), points)
    assert (to_numpy(grid.step) == rounder("clip_search").placed(case, STREAM)[1].step).all()


# --- GPTQ with lattices found on the way -----------------------------------------------------------------------------


def _absmax(weights: np.ndarray) -> Grid:
    top = np.abs(weights).max(axis=1, keepdims=True) * np.ones_like(weights)
    return Grid(top / 7, np.arange(-7, 8))


def _published(case: Case, group: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Algorithm 1 of arXiv 2210.17323 with scales found when a group is entered, and the weights seen then."""
    w, n = case.weights.copy(), len(case.hessian)
    upper, points, seen = np.linalg.cholesky(np.linalg.inv(case.hessian)).T, np.empty_like(w), []
    for i in range(n):
        if i % group == 0:
            seen.append(w[:, i : i + group].copy())
            grid = _absmax(seen[-1])
        points[:, i] = grid.nearest(w[:, i : i + group])[:, i % group] if i % group == 0 else (
            grid.columns(slice(i % group, i % group + 1)).nearest(w[:, i : i + 1])[:, 0]
        )  # fmt: skip
        w[:, i:] -= ((w[:, i] - points[:, i]) / upper[i, i])[:, None] * upper[i, i:]
    return points, seen


@pytest.mark.parametrize("group", (4, 5, 12))
@pytest.mark.parametrize("library", ("numpy", "torch", "tensors"))
def test_gptq_finds_the_scales_of_a_group_when_it_enters_it(group, library, monkeypatch):
    case, seen = case_of(6, "even"), []
    if library == "tensors":
        monkeypatch.setattr(base, "swift", lambda case: case)

    def find(weights, rows, columns):
        seen.append((rows, columns, to_numpy(weights)))
        grid = _absmax(to_numpy(weights))
        return grid if library == "numpy" else Grid(weights.new_tensor(grid.step), grid.units)

    expected, weights = _published(case, group)
    there = case if library == "numpy" else in_torch(case)
    found = rounded(replace(there, regrid=Regrid(group, find)), "gptq", damping=0.0, batch=4)
    # Scales are of weights that were solved for in another way: condition numbers of 12^1.1 < 16 times some ulps.
    assert np.allclose(to_numpy(found), expected, rtol=0, atol=1e-13)
    points, grid = rounder("gptq").placed(replace(there, regrid=Regrid(group, find)), STREAM, damping=0.0, batch=4)
    assert (to_numpy(grid.nearest(points)) == to_numpy(points)).all() and (to_numpy(points) == to_numpy(found)).all()
    for rows, columns, given in seen:
        assert np.allclose(given, weights[columns.start // group][rows], rtol=0, atol=1e-13)


def test_lattices_found_on_the_way_are_for_gptq_in_natural_order():
    case = replace(case_of(7, "even"), regrid=Regrid(4, lambda weights, rows, columns: _absmax(weights)))
    with pytest.raises(ValueError, match="need the natural order of columns"):
        rounded(case, "gptq", order="curvature")
    with pytest.raises(ValueError, match="coordinate_descent needs a frozen grid"):
        rounded(case, "coordinate_descent")


def test_groups_of_different_units_are_no_lattice():
    case = case_of(7, "even")

    def find(weights, rows, columns):
        return Grid(np.ones_like(weights), np.arange(-4 - columns.start, 4))

    with pytest.raises(ValueError, match="differ in units"):
        rounder("gptq").placed(replace(case, regrid=Regrid(4, find)), STREAM)


# --- what is not a case ----------------------------------------------------------------------------------------------


def test_cases_that_do_not_fit_are_refused():
    case = case_of(8, "even")
    for changes, error, message in (
        ({"weights": case.weights.astype(np.float32)}, TypeError, "they must be alike"),
        ({"weights": case.weights.astype(np.float16)}, TypeError, "weights have type float16; valid: float32, float64"),
        ({"weights": case.weights[:, :4]}, ValueError, r"the Hessian has shape \(12, 12\), expected \(4, 4\)"),
        ({"weights": case.weights[:2]}, ValueError, r"the grid has shape \(6, 12\), expected \(2, 12\)"),
        ({"weights": case.weights[0]}, ValueError, r"weights have shape \(12,\), expected \(rows, n\)"),
        ({"hessian": np.full((12, 12), np.nan)}, ValueError, "hessian holds 144 NaN or infinite"),
    ):
        with pytest.raises(error, match=message):
            rounded(replace(case, **changes), "rtn")
    with pytest.raises(ValueError, match="batch=0: needs at least 1"):
        rounded(case, "rtn", batch=0)


@pytest.mark.parametrize("name", ("gptq", "lotion_splitting"))
@pytest.mark.parametrize("library", ("numpy", "torch", "tensors"))
def test_hessians_without_a_factor_are_refused_by_name(name, library, monkeypatch):
    if library == "tensors":
        monkeypatch.setattr(base, "swift", lambda case: case)
    case = case_of(9, "even", n=12)
    case = replace(case, hessian=np.where(np.eye(12) > 0, 0.1, 0.9 * np.sign(case.hessian)))
    there = case if library == "numpy" else in_torch(case)
    with pytest.raises(ValueError, match=r"damping=0.01: the Hessian is not positive definite; needs a larger value"):
        rounded(there, name)


def test_gptq_in_float32_factors_in_float64():
    """A condition number of 1e7 leaves float32 nothing to factor."""
    case = case_of(10, "even")
    values = np.linalg.eigh(case.hessian)[1] * np.logspace(0, -7, 12)
    hessian = (values @ np.linalg.eigh(case.hessian)[1].T).astype(np.float32)
    hessian = (hessian + hessian.T) / 2 + np.float32(1e-6) * np.eye(12, dtype=np.float32)
    low = Case(
        hessian,
        case.weights.astype(np.float32),
        replace(case.grid, step=case.grid.step.astype(np.float32), shift=case.grid.shift.astype(np.float32)),
    )
    points = compensated_rounding(low, np.arange(12), 0.0)
    assert (low.grid.nearest(points) == points).all()

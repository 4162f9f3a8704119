"""Directed rounding, and rounding by conditional expectation with its guarantee."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lotion_theory as lt
from lotion_theory import Quadratic, Quantizer
from lotion_theory.rounding import DIRECTIONS, conditional_expectation, directed
from tests import strategies
from tests.smoothing_cases import DRAWN, REAL, Polynomial, array, as_float, local, quadratic, weights

ONE_LATTICE = tuple(f for f in REAL if f not in DRAWN)


# --- directed --------------------------------------------------------------------------------------------------------


@given(strategies.cases(formats=tuple(f for f in strategies.FORMATS if not Quantizer.parse(f).scale.is_drawn)))
@strategies.examples(60)
def test_directions_are_what_they_say(case):
    """Against the bracket: down and up are its ends, toward zero and away from it the smaller and larger magnitude of them
    (between levels of one sign; across zero either end is "toward" only if it is the nearer to zero)."""
    q, w = case
    lo, hi = (strategies.wide(part) for part in q.bracket(w))
    found = {d: strategies.wide(directed(w, q, d)) for d in DIRECTIONS}
    assert np.array_equal(found["down"], lo) and np.array_equal(found["up"], hi)
    assert np.array_equal(np.minimum(found["toward_zero"], found["away_from_zero"]), lo)
    assert np.array_equal(np.maximum(found["toward_zero"], found["away_from_zero"]), hi)
    assert (np.abs(found["toward_zero"]) <= np.abs(found["away_from_zero"])).all()
    on_level = lo == hi
    for values in found.values():
        assert np.array_equal(values[on_level], lo[on_level])


def test_directions_on_a_known_lattice():
    """Levels -7 ... 7; -7.5 and 7.5 are clipped, 3 and 0 are levels, 2.4 and -2.4 lie between levels."""
    q = Quantizer.parse("int4").with_scale(1.0)
    w = np.array([2.4, -2.4, 3.0, 0.0, 7.5, -7.5, 0.3])
    expected = {
        "down": [2, -3, 3, 0, 7, -7, 0],
        "up": [3, -2, 3, 0, 7, -7, 1],
        "toward_zero": [2, -2, 3, 0, 7, -7, 0],
        "away_from_zero": [3, -3, 3, 0, 7, -7, 1],
    }
    for direction, values in expected.items():
        assert directed(w, q, direction).tolist() == values


def test_directed_keeps_kind_and_names_errors():
    torch = pytest.importorskip("torch")
    w = torch.tensor([[0.3, -1.0]], dtype=torch.bfloat16)
    for direction in DIRECTIONS:
        found = directed(w, "int4/row", direction)
        assert found.dtype == w.dtype and found.shape == w.shape
    with pytest.raises(ValueError, match="unknown direction 'floor'; valid: down, up, toward_zero, away_from_zero"):
        directed(np.ones(2), "int4", "floor")
    for text, reason in (("e2m1/e8m0-sr", "drawn between two lattices"), ("fairy", "complex levels have no order")):
        with pytest.raises(ValueError, match=reason):
            directed(np.ones(2) + (1j if text == "fairy" else 0), text, "up")


# --- conditional expectation -----------------------------------------------------------------------------------------


def value(loss, x):
    """The loss at one point."""
    return loss(x[None])[0]


@pytest.mark.parametrize("text", ONE_LATTICE)
def test_quadratic_and_enumerated_paths_are_one(text):
    """The same rounding, coordinate by coordinate, from one Hessian column each and from all completions; exact."""
    for partition, seed in (("tensor", 40), ("block=3", 41)):
        q = local(text, partition)
        w, loss = weights(q, 6, seed), quadratic(6, seed)
        fast = conditional_expectation(loss, w, q)
        slow = conditional_expectation(lambda points, loss=loss: loss(points), w, q)
        assert (fast == slow).all()
        lo, hi = q.bracket(w)
        assert ((fast == lo) | (fast == hi)).all()


@given(st.sampled_from(ONE_LATTICE), st.integers(0, 2**32 - 1), st.permutations(range(5)))
@strategies.examples(80)
def test_never_above_the_smoothed_loss(text, seed, order):
    """C12 for any loss, weights and order, exactly; and never below the best point of the cell."""
    q = local(text)
    w = weights(q, 5, seed)
    for loss in (quadratic(5, seed), Polynomial(5, seed)):
        smooth = lt.smoothed_loss(loss, w, q).value
        found = value(loss, conditional_expectation(loss, w, q, order=np.array(order)))
        law = lt.law(w, q)
        assert min(loss(law.points)) <= found <= smooth


@pytest.mark.parametrize("seed", range(42, 48))
def test_each_step_takes_the_lower_conditional_expectation(seed):
    """Retraced by brute force: after every coordinate, in the order given, the kept end is the one whose conditional
    expectation over the remaining law is lower, and the conditional expectation never rises."""
    q, order = local("int4/absmax"), [3, 0, 4, 1, 2]
    w, loss = weights(q, 5, seed), Polynomial(5, seed)
    law = lt.law(w, q)
    rounded = conditional_expectation(loss, w, q, order=order)
    kept = np.ones(len(law.probs), dtype=bool)

    def expected(mask):
        return (law.probs * loss(law.points))[mask].sum() / law.probs[mask].sum()

    level = expected(kept)
    for i in order:
        options = {v: expected(kept & (law.points[:, i] == v)) for v in set(law.points[kept][:, i])}
        assert rounded[i] == min(options, key=options.get)
        kept &= law.points[:, i] == rounded[i]
        assert expected(kept) <= level
        level = expected(kept)


def test_separable_losses_are_rounded_to_their_best_point():
    """Without coupling each coordinate decides for itself: the result is the best of all 2^d points, in every order."""
    q = local("int4/absmax")
    for seed in range(5):
        w, loss = weights(q, 5, seed), quadratic(5, seed, diagonal=True)
        law = lt.law(w, q)
        best = min(loss(law.points))
        for order in itertools.islice(itertools.permutations(range(5)), 0, 120, 17):
            assert value(loss, conditional_expectation(loss, w, q, order=order)) == best


def test_nearest_rounding_has_no_such_guarantee():
    """h = 1, w* = 1, levels 0 and 1: at w = .4 the nearest level costs .5, the smoothed loss is .3, and the rule takes 1."""
    q = Quantizer.parse("int4").with_scale(Fraction(1))
    loss, w = Quadratic(array([1]), array([1])), array([Fraction(2, 5)])
    assert lt.smoothed_loss(loss, w, q).value == Fraction(3, 10)
    assert value(loss, q.cast(w)) == Fraction(1, 2)
    assert conditional_expectation(loss, w, q).tolist() == [1]


def test_ties_go_up_and_levels_stay():
    q = Quantizer.parse("int4").with_scale(Fraction(1))
    constant = Quadratic(array([0, 0, 0]), array([0, 0, 0]))
    w = array([Fraction(1, 3), -2, Fraction(-9, 4)])
    for loss in (constant, lambda points: 0 * points[:, 0]):
        assert conditional_expectation(loss, w, q).tolist() == [1, -2, -2]
    assert conditional_expectation(constant, array([9, -9, 0]), q).tolist() == [7, -7, 0]


@pytest.mark.parametrize("kind", ["float64", "float32", "float16"])
def test_floats_keep_the_guarantee(kind):
    """200 dense problems a type. Every step's comparison may be off by the rounding of the slope it looks at: 2 d² products
    of |H| with distances of at most the block's gap, each rounded once in float64."""
    rng = np.random.default_rng(43)
    for trial in range(200):
        d = 8
        half = rng.standard_normal((d, d))
        loss = Quadratic(half + half.T, rng.standard_normal(d))
        w = rng.standard_normal(d).astype(kind)
        text = ("int3/absmax", "nf4", "int4full/absmax7.5")[trial % 3]
        rounded = conditional_expectation(loss, w, text)
        assert rounded.dtype == w.dtype
        lo, hi = Quantizer.parse(text).bracket(w)
        assert ((rounded == lo) | (rounded == hi)).all()
        found = value(loss, rounded.astype(np.float64))
        smooth = lt.smoothed_loss(loss, w, text).value
        size = np.abs(loss.hessian).sum() * (np.abs(w.astype(np.float64)).max() + np.abs(loss.center).max()) ** 2
        # The law's own probabilities are of the working type.
        eps = 2.0**-52 if kind == "float64" else 2.0**-23
        assert found <= smooth + 2 * d * d * eps * size


def test_large_quadratics_need_no_enumeration():
    d = 300
    rng = np.random.default_rng(44)
    half = rng.standard_normal((d, d)) / d**0.5
    loss = Quadratic(half @ half.T, rng.standard_normal(d))
    w = loss.center + 0.1 * rng.standard_normal(d)
    rounded = conditional_expectation(loss, w, "int4/block=30")
    smooth = lt.smoothed_loss(loss, w, "int4/block=30", "closed_form").value
    # d² products summed, each step and each loss: relative error far below 1e-9.
    assert value(loss, rounded) <= smooth * (1 + 1e-9)
    assert value(loss, rounded) < value(loss, Quantizer.parse("int4/block=30").cast(w))


def test_shapes_and_torch():
    torch = pytest.importorskip("torch")
    w = np.random.default_rng(0).standard_normal((2, 3))
    loss = Quadratic(np.eye(6) + 1, np.zeros((2, 3)))
    rounded = conditional_expectation(loss, w, "int4/row")
    assert rounded.shape == (2, 3)
    assert np.array_equal(conditional_expectation(loss, torch.tensor(w), "int4/row"), rounded)
    assert np.array_equal(conditional_expectation(loss, w.tolist(), "int4/row"), rounded)


def test_inputs_are_not_changed():
    q = local("int4/absmax")
    w, loss = weights(q, 4, 45).astype(float), as_float(quadratic(4, 45))
    before = w.copy()
    conditional_expectation(loss, w, q)
    conditional_expectation(lambda p: loss(p), w, q)
    directed(w, q, "up")
    assert np.array_equal(w, before)


def test_errors_name_what_is_wrong():
    loss, w = Quadratic(np.ones(3), np.zeros(3)), np.array([0.1, 0.2, 0.3])
    for order in ([0, 1], [0, 1, 1], [1, 2, 3], [[0, 1, 2]], [0.5, 1, 2]):
        with pytest.raises(ValueError, match=r"order must be a permutation of 0 \.\.\. 2"):
            conditional_expectation(loss, w, "int4", order=order)
    with pytest.raises(ValueError, match="drawn between two lattices"):
        conditional_expectation(loss, w, "mxfp4/sr/tensor")
    with pytest.raises(ValueError, match="complex levels have no order"):
        conditional_expectation(loss, w + 1j, "fairy")
    many = np.random.default_rng(0).standard_normal(30)
    with pytest.raises(ValueError, match=r"29 weights are off the lattice.*at most 20"):
        conditional_expectation(lambda p: p.sum(axis=1), many, "int4")
    with pytest.raises(ValueError, match="points have shape"):
        conditional_expectation(Quadratic(np.ones(2), np.zeros(2)), w, "int4")

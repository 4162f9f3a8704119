"""Gradients of the smoothed loss: by enumeration, closed form, finite differences and autograd."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lotion_theory as lt
from lotion_theory import Quadratic, Quantizer
from lotion_theory.smoothing import GRADIENT_METHODS, closed_form, gradients
from tests import smoothing_cases, strategies
from tests.smoothing_cases import DRAWN, REAL, Polynomial, array, as_float, local, quadratic, weights

STEP = Fraction(1, 2**90)
CLOSE = Fraction(1, 2**60)
"""Where a function is smooth, a central difference of step h errs by h²/6 times its third derivative: with h = 2⁻⁹⁰ this
bound leaves a factor 2¹²⁰ for that derivative, and no mistake in a formula is so small."""


def differences(function, w):
    """Central differences of an exact function in every weight."""
    out = []
    for i in range(w.size):
        step = array([0] * w.size)
        step[i] = STEP
        out.append((function(w + step) - function(w - step)) / (2 * STEP))
    return np.array(out, dtype=object)


def agree(found, expected):
    """Equal up to the error of a central difference."""
    return all(abs(a - b) <= CLOSE * (1 + abs(b)) for a, b in zip(found, expected, strict=True))


# --- exact arithmetic ------------------------------------------------------------------------------------------------

SHAPES = (("tensor", 5, 0), ("block=3", 6, 1))


@pytest.mark.parametrize("text", REAL)
def test_enumeration_and_closed_form_are_equal(text):
    """Exactly, lattice moving and detached, dense Hessians, several blocks, drawn scales inside their zone."""
    for partition, d, seed in SHAPES:
        q = local(text, partition)
        w, loss = weights(q, d, seed), quadratic(d, seed)
        for moving in (True, False):
            assert (gradients.exact(loss, w, q, moving) == closed_form.smoothed_gradient(loss, w, q, moving)).all()


@pytest.mark.parametrize("text", REAL)
def test_moving_gradient_is_the_slope_of_the_smoothed_loss(text):
    for partition, d, seed in SHAPES:
        q = local(text, partition)
        w, loss = weights(q, d, seed), quadratic(d, seed)
        slopes = differences(lambda x, q=q, loss=loss: closed_form.smoothed_loss(loss, x, q), w)
        assert agree(closed_form.smoothed_gradient(loss, w, q), slopes)


@pytest.mark.parametrize("text", REAL)
def test_gradient_of_any_loss_is_its_slope(text):
    """A cubic and quartic loss: enumeration against differences of the enumerated loss itself."""
    q = local(text)
    w, loss = weights(q, 3, seed=7), Polynomial(3, 7)
    slopes = differences(lambda x: lt.smoothed_loss(loss, x, q).value, w)
    assert agree(gradients.exact(loss, w, q), slopes)


@pytest.mark.parametrize("text", [f for f in REAL if f not in DRAWN])
def test_detached_gradient_is_the_slope_on_a_frozen_lattice(text):
    """For weights inside a cell or clipped. On a level the slope is one-sided and the gradient is E ∂L/∂q_i, that of a
    weight which rounding leaves alone."""
    q = local(text, "block=2")
    w, loss = weights(q, 4, seed=3), Polynomial(4, 3)
    frozen = q.freeze(w)
    cell = q.branches(w)[0].cell
    on_level = (cell.lo == cell.hi).ravel() & (cell.target.ravel() == w)
    detached = gradients.exact(loss, w, q, moving=False)
    slopes = differences(lambda x: lt.smoothed_loss(loss, x, frozen).value, w)
    assert agree(detached[~on_level], slopes[~on_level])
    law = lt.law(w, q)
    alone = (law.probs[:, None] * loss.gradient(law.points)).sum(axis=0)
    assert (detached[on_level] == alone[on_level]).all()
    # The frozen quantizer itself has no other gradient, moving or not.
    for moving in (True, False):
        assert (gradients.exact(loss, w, frozen, moving) == detached).all()


@pytest.mark.parametrize("text", DRAWN)
def test_drawn_lattices_hardly_move(text):
    """Stored scales are constant between their breakpoints, so holding the lattice changes nothing; what moves is the
    probability of the draw, which a detached gradient keeps."""
    q = local(text, "block=3")
    w, loss = weights(q, 6, seed=4), Polynomial(6, 4)
    branch = q.branches(w)[1]
    assert ((branch.prob > 0) & (branch.prob < 1)).all(), "the blocks are not in the drawn zone"
    moving = gradients.exact(loss, w, q)
    assert (moving == gradients.exact(loss, w, q, moving=False)).all()
    leaders = np.argmax(abs(w.reshape(2, 3)), axis=1) + np.array([0, 3])
    slopes = differences(lambda x: lt.smoothed_loss(loss, x, q).value, w)
    assert agree(moving[leaders], slopes[leaders])


@pytest.mark.parametrize("text", REAL)
def test_penalty_gradient_is_the_slope_of_the_penalty(text):
    q = local(text, "block=3")
    w = weights(q, 6, seed=5)
    curvature = array([3, 1, 0, 2, 5, 1]) / 2
    slopes = differences(lambda x: closed_form.penalty(x, q, curvature), w)
    assert agree(closed_form.penalty_gradient(w, q, curvature), slopes)
    found = lt.smoothed_gradient(Polynomial(6, 5), w, q, "second_order", curvature=curvature, ramp=Fraction(1, 3)).value
    assert (found == Polynomial(6, 5).gradient(w[None])[0] + closed_form.penalty_gradient(w, q, curvature) / 3).all()


@given(strategies.exact_blocks(max_rows=2, max_size=3), st.sampled_from(["int4/absmax", "int4full/gauge", "e2m1/e8m0-sr", "int4full/absmax7.5", "uint4/zp-real", "ternary/absmean", "nf4/e4m3-sr"]))  # fmt: skip
@strategies.examples(40)
def test_enumeration_and_closed_form_are_equal_at_kinks(w, text):
    """Ties for the largest weight, zeros, weights on levels: both take the same element of the subdifferential."""
    q = Quantizer.parse(text + "/row")
    loss = Quadratic(quadratic(w.size, 6).hessian, quadratic(w.size, 6).center.reshape(w.shape))
    for moving in (True, False):
        assert (gradients.exact(loss, w, q, moving) == closed_form.smoothed_gradient(loss, w, q, moving)).all()


def test_ties_share_the_scale():
    """Two weights of the largest magnitude, of either sign: half of the gradient through the scale each, so that the slope
    along the direction which keeps them tied is right from both sides."""
    q, loss = Quantizer.parse("int4"), quadratic(3, 8)
    w = array([2, -2, Fraction(5, 7)])
    found = gradients.exact(loss, w, q)
    through = found - gradients.exact(loss, w, q, moving=False)
    assert through[0] == -through[1] != 0 and through[2] == 0
    along = array([1, -1, 0])
    for sign in (1, -1):
        slope = (lt.smoothed_loss(loss, w + sign * STEP * along, q).value - lt.smoothed_loss(loss, w, q).value) / (
            sign * STEP
        )
        # One-sided: the error is h/2 times the second derivative.
        assert abs(slope - found @ along) <= CLOSE


def test_matrices_keep_their_shape():
    w = np.random.default_rng(0).standard_normal((2, 3))
    loss = Quadratic(np.eye(6) + 1, np.zeros((2, 3)))
    for method in GRADIENT_METHODS:
        options = {"curvature": np.ones((2, 3))} if method == "second_order" else {}
        found = lt.smoothed_gradient(loss, w, "int4/row", method, lattice="detached", **options)
        assert found.value.shape == found.standard_error.shape == (2, 3)


# --- floating point --------------------------------------------------------------------------------------------------


def tolerance(q, w, loss, eps, points=0):
    """Rounding errors of a gradient, in multiples of its parts' size.

    A closed form adds about d products of a row of H with distances no larger than the block's reach, and d shares
    through the anchors, each with a few roundings: 64 d eps |H|₁ reach. Enumeration divides a difference of two sums of
    ``points`` terms, each at most max |L|, by a gap. Drawn scales magnify both (``amplification``), and the derivative of
    the draw divides them by its width, no smaller than the smallest gap.
    """
    d = w.size
    hessian = np.abs(loss.hessian.astype(float))
    rows = hessian.max() if hessian.ndim == 1 else hessian.sum(axis=1).max()
    reach = 2 * float(np.abs(w).max() + np.abs(loss.center.astype(float)).max())
    cells = [b.cell for b in q.branches(w)]
    gaps = np.concatenate([(c.hi - c.lo)[c.hi > c.lo] for c in cells])
    gap = float(gaps.min()) if gaps.size else 1.0
    size = rows * reach * max(1, reach / gap if q.scale.is_drawn else 1)
    summed = points * smoothing_cases.magnitude(loss, w) / gap
    return eps * smoothing_cases.amplification(q, w) * (64 * d * size + 4 * summed)


@pytest.mark.parametrize("text", REAL)
def test_float_gradients_are_the_exact_ones(text):
    """float64 against rational arithmetic on the same numbers, closed form and enumeration, dense H."""
    for partition, d, seed in (("tensor", 6, 10), ("block=4", 8, 11), ("tensor", 7, 12)):
        q = local(text, partition)
        w, loss = weights(q, d, seed).astype(float), quadratic(d, seed)
        floats = as_float(loss)
        for moving in (True, False):
            exactly = strategies.as_fractions(w)
            truth = closed_form.smoothed_gradient(loss, exactly, q, moving).astype(float)
            # On a level a detached gradient is one-sided, and two-level scales are products that miss it by an ulp.
            kept = (q.variance(exactly) > 0) | (moving or not q.scale.couples_blocks)
            fast = closed_form.smoothed_gradient(floats, w, q, moving)
            assert np.abs(fast - truth)[kept].max() <= tolerance(q, w, loss, 2.0**-53)
            slow = gradients.exact(floats, w, q, moving)
            assert np.abs(slow - truth)[kept].max() <= tolerance(q, w, loss, 2.0**-53, points=2 ** (d + 1))


TORCH = (
    "int4/absmax", "nf4/absmax", "int4full/gauge", "uint4/zp-real", "uint4/zp-int", "ternary/absmean", "ternary/l2l1",
    "int4full/absmax7.5", "int4full/signed-absmax", "int4/slack1.1", "e2m1/absmax", "dynamic8/gauge",
    "e2m1/e4m3-nearest-2level", "e2m1/e4m3-up-2level", "e2m1/e4m3-sr", "e2m1/e8m0-sr", "nf4/e4m3-sr", "e2m1/e8m0-ceil",
)  # fmt: skip


@pytest.mark.parametrize("kind", ["float64", "float32"])
@pytest.mark.parametrize("text", TORCH)
def test_autograd_is_the_moving_gradient(text, kind):
    """``L(mean) + ½ Σ g Var`` in torch, differentiated by autograd, against the closed form in numpy. Where a scale is drawn
    the Hessian is diagonal: only then is that formula the smoothed loss."""
    torch = pytest.importorskip("torch")
    for seed in (20, 21, 22):
        q = local(text, "block=3")
        w = weights(q, 6, seed).astype(kind)
        loss = quadratic(6, seed, diagonal=q.scale.is_drawn)
        t = torch.tensor(w, requires_grad=True)
        center, hessian = (torch.tensor(part.astype(kind)) for part in (loss.center, loss.hessian))
        away = q.mean(t) - center
        product = away * hessian if hessian.ndim == 1 else hessian @ away
        curvature = hessian if hessian.ndim == 1 else hessian.diagonal()
        (away @ product / 2 + (curvature * q.variance(t)).sum() / 2).backward()
        numpy_loss = Quadratic(loss.hessian.astype(kind), loss.center.astype(kind))
        allowed = tolerance(q, w.astype(float), loss, {"float64": 2.0**-53, "float32": 2.0**-24}[kind])
        assert np.abs(t.grad.numpy() - closed_form.smoothed_gradient(numpy_loss, w, q)).max() <= 2 * allowed
        # A detached lattice gives another gradient wherever the scale is a real number that moves.
        if kind == "float64" and q.scale.name in ("absmax", "gauge", "zp-real", "absmean"):
            detached = closed_form.smoothed_gradient(numpy_loss, w, q, moving=False)
            assert np.abs(t.grad.numpy() - detached).max() > 4 * allowed


@pytest.mark.parametrize("text", TORCH)
def test_autograd_through_the_variance_is_the_penalty_gradient(text):
    torch = pytest.importorskip("torch")
    q = local(text, "block=3")
    w = weights(q, 6, seed=23).astype(float)
    curvature = np.array([1.5, 0.5, 0, 1, 2.5, 0.5])
    t = torch.tensor(w, requires_grad=True)
    (torch.tensor(curvature) * q.variance(t)).sum().div(2).backward()
    allowed = tolerance(q, w, Quadratic(curvature, w), 2.0**-53)
    assert np.abs(t.grad.numpy() - closed_form.penalty_gradient(w, q, curvature)).max() <= 2 * allowed


@pytest.mark.parametrize("text", ["int4/row", "e2m1/row"])
def test_a_learned_scale_gets_its_gradient(text):
    """``Σ g [c_hi (w - lo) - c_lo (hi - w)]`` over the weights inside the range; a clipped one pulls its mean instead."""
    torch = pytest.importorskip("torch")
    w = torch.tensor([[0.3, -0.72, 1.1], [0.5, 0.21, -40]], dtype=torch.float64)
    scale = torch.tensor([[0.25], [0.5]], dtype=torch.float64, requires_grad=True)
    curvature = torch.tensor([[1.0, 2, 3], [4, 5, 6]], dtype=torch.float64)
    q = Quantizer.parse(text).with_scale(scale)
    lo, hi = (part.detach() for part in q.bracket(w))
    (curvature * q.variance(w)).sum().backward()
    inside = hi > lo
    expected = curvature * ((hi / scale) * (w - lo) - (lo / scale) * (hi - w)) * inside
    # Two products and a difference of numbers below 8, on either side.
    assert (scale.grad - expected.sum(dim=1, keepdim=True)).abs().max() <= 64 * 2.0**-53 * 8
    scale.grad = None
    q.mean(w).sum().backward()
    assert scale.grad.tolist() == [[0], [-float(q.codebook.high)]]


def test_clipped_and_zero_blocks_have_finite_gradients():
    torch = pytest.importorskip("torch")
    w = np.array([[0.0, 0, 0], [1e-300, -1e-310, 0], [5, 5, -5]])
    loss = Quadratic(np.ones(9), np.zeros((3, 3)))
    for text in (
        "int4",
        "e2m1/e8m0-sr",
        "ternary/absmean",
        "ternary/l2l1",
        "int4full/absmax7.5",
        "uint4",
        "nf4/e4m3-sr",
        "int4full/gauge",
    ):
        q = Quantizer.parse(text + "/row")
        assert np.isfinite(lt.smoothed_gradient(loss, w, q).value).all()
        assert np.isfinite(lt.smoothed_gradient(loss, w, q, "closed_form").value).all()
        t = torch.tensor(w, requires_grad=True)
        q.variance(t).sum().backward()
        assert bool(t.grad.isfinite().all())


@pytest.mark.parametrize("dtype", strategies.FLOATS)
def test_extreme_blocks_have_finite_gradients(dtype):
    """Blocks at scale breakpoints, ties, zeros, subnormals: no warning, no NaN, moving or detached. Only blocks whose squares
    overflow are left out."""
    limit = {"float64": 1e150, "float32": 1e18, "float16": 1e9, "bfloat16": 1e18}[dtype]
    for text in strategies.FORMATS:
        w = strategies.probes(text, dtype, rows=4, size=4, seed=0)
        w = w[np.abs(w.astype(np.float64)).max(axis=1) < limit]
        half = np.random.default_rng(1).standard_normal((w.size, w.size))
        loss = Quadratic(half + half.T, np.zeros(w.shape))
        for lattice in ("moving", "detached"):
            for method in ("exact", "closed_form"):
                found = lt.smoothed_gradient(loss, w, f"{text}/row", method, lattice).value
                assert np.isfinite(np.asarray(found, dtype=np.float64)).all(), (text, method, lattice)


# --- errors ----------------------------------------------------------------------------------------------------------


def test_errors_name_what_is_valid():
    loss, w = Quadratic(np.ones(3), np.zeros(3)), np.array([0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=r"unknown method 'ste'; valid: exact, closed_form.*cage"):
        lt.smoothed_gradient(loss, w, "int4", "ste")
    with pytest.raises(ValueError, match="unknown lattice 'frozen'; valid: moving, detached"):
        lt.smoothed_gradient(loss, w, "int4", lattice="frozen")
    for method in ("conditional_difference", "score_function"):
        with pytest.raises(ValueError, match="lattice='detached' or a frozen quantizer"):
            lt.smoothed_gradient(loss, w, "int4", method)
        frozen = Quantizer.parse("int4").with_scale(0.1)
        assert lt.smoothed_gradient(loss, w, frozen, method, samples=16).samples == 16
        with pytest.raises(ValueError, match="one lattice per block"):
            lt.smoothed_gradient(loss, w, "e2m1/e8m0-sr", method, lattice="detached")
    with pytest.raises(ValueError, match="samples=1 is too few"):
        lt.smoothed_gradient(loss, w, "int4", "straight_through", samples=1)
    with pytest.raises(ValueError, match="unknown estimator 'x'"):
        gradients.sampled("x", loss, w, "int4")
    with pytest.raises(ValueError, match=r"gradient\(points\)"):
        lt.smoothed_gradient(lambda p: p.sum(axis=1), w, "int4")
    with pytest.raises(ValueError, match="give pointwise"):
        lt.smoothed_gradient(lt.pointwise(lambda p: p.sum()), w, "int4", "straight_through")
    with pytest.raises(ValueError, match="curvature has shape"):
        lt.smoothed_gradient(loss, w, "int4", "second_order", curvature=np.ones(2))
    with pytest.raises(ValueError, match="closed_form"):
        lt.smoothed_gradient(lt.pointwise(lambda p: p.sum()), w, "int4", "closed_form")


def test_values_alone_serve_on_a_fixed_lattice():
    """Off the lattice, C13 needs no gradient of the loss."""
    w = np.array([0.31, -0.77, 1.15])
    q = Quantizer.parse("int4").with_scale(0.25)
    loss = Quadratic(np.eye(3) + 1, np.zeros(3))
    found = lt.smoothed_gradient(lambda p: loss(p), w, q, lattice="detached").value
    assert np.abs(found - lt.smoothed_gradient(loss, w, q, "closed_form").value).max() <= tolerance(
        q, w, loss, 2.0**-53, points=8
    )


def test_complex_gradients_are_refused_by_name():
    w = np.array([0.3 + 0.4j, -0.2 + 0.1j])
    loss = lt.pointwise(lambda z: float((abs(z) ** 2).sum()), lambda z: z)
    for lattice in ("moving", "detached"):
        with pytest.raises(ValueError, match="complex"):
            lt.smoothed_gradient(loss, w, "fairy", lattice=lattice)
    with pytest.raises(ValueError, match="complex"):
        lt.smoothed_gradient(Quadratic(np.ones(2), np.zeros(2)), w, "fairy", "closed_form")
    with pytest.raises(ValueError, match="complex"):
        lt.smoothed_loss(Quadratic(np.ones(2), np.zeros(2)), w, "fairy", "closed_form")

"""Gradients of the smoothed loss: by enumeration, closed form, finite differences and autograd; sampled estimators, and
the baselines that estimate something else."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lotion_theory as lt
from lotion_theory import Quadratic, Quantizer
from lotion_theory.smoothing import GRADIENT_METHODS, closed_form, gradients, sampling
from tests import smoothing_cases, strategies, tolerances
from tests.smoothing_cases import DRAWN, REAL, Polynomial, array, as_float, local, quadratic, weights

FALSE_ALARM = 1e-6
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

SHAPES = (("tensor", 5, 0), ("block=3", 6, 1), ("block=2", 8, 2))


@pytest.mark.parametrize("text", REAL)
def test_enumeration_and_closed_form_are_equal(text):
    """Exactly, lattice moving and detached, dense Hessians, several blocks, drawn scales inside their zone."""
    for partition, d, seed in SHAPES[:2]:
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
    q = local(text, "block=3")
    w, loss = weights(q, 6, seed=3), Polynomial(6, 3)
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
    leaders = np.argmax(abs(w.reshape(2, 3)), axis=1) + [0, 3]
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


# --- estimators ------------------------------------------------------------------------------------------------------

FIXED = ("int4/absmax", "e2m1/absmax", "nf4/absmax", "int4full/absmax7.5", "ternary/absmean", "uint4/zp-real")


def law_and_case(text, d=4, seed=30):
    """A quantizer, exact weights and their law."""
    q = local(text)
    w = weights(q, d, seed)
    return q, w, lt.law(w, q)


@pytest.mark.parametrize("text", FIXED)
def test_straight_through_expects_the_plain_gradient(text):
    """C14, exactly: on a quadratic the mean over the whole law is ∇L at the mean, ∇L(w) where nothing is clipped. Neither
    straight-through nor detached noise sees the smoothing."""
    q, w, law = law_and_case(text)
    loss = quadratic(4, 30)
    plain = loss.gradient(q.mean(w)[None])[0]
    for rule in (gradients.straight_through, gradients.detached_noise):
        assert ((law.probs[:, None] * rule(loss, q, w, law.points)).sum(axis=0) == plain).all()
    truth = gradients.exact(loss, w, q, moving=False)
    free = q.variance(w) > 0
    assert (truth != plain)[free].any()


@pytest.mark.parametrize("text", FIXED)
def test_conditional_difference_and_score_are_unbiased(text):
    """Over the whole law their means are the exact fixed-lattice gradient, for a loss that is no quadratic; the score
    function with no baseline and, over all pairs of draws, with its leave-one-out baseline."""
    q, w, law = law_and_case(text)
    loss = Polynomial(4, 31)
    truth = gradients.exact(loss, w, q, moving=False).astype(float)
    free = (q.variance(w) > 0) & (q.mean(w) == w)
    cell = q.branches(w)[0].cell
    w = w.astype(float)
    law = lt.law(w, q)
    probs, points = law.probs, law.points
    plain = Polynomial(4, 31)
    plain.cubic, plain.quartic = loss.cubic.astype(float), loss.quartic.astype(float)
    # Sums of up to 256 pairs; a score is the reciprocal of a distance to a level.
    distance = float(np.minimum(cell.target - cell.lo, cell.hi - cell.target).ravel()[free].min())
    allowed = 2.0**-52 * 1024 * np.abs(plain(points)).max() * (1 + 1 / distance)
    each = gradients.conditional_difference(plain, q, w, points)
    assert np.abs(probs @ each - truth)[free].max() <= allowed
    single = np.array([gradients.score_function(plain, q, w, point[None])[0] for point in points])
    assert np.abs(probs @ single - truth)[free].max() <= allowed
    pairs = np.array(
        [[gradients.score_function(plain, q, w, np.stack([a, b])).mean(axis=0) for b in points] for a in points]
    )
    assert np.abs(np.einsum("i,j,ijk->k", probs, probs, pairs) - truth)[free].max() <= allowed
    for found in (each, single):
        assert not found[:, ~free].any()


@pytest.mark.parametrize("method", ["conditional_difference", "score_function", "straight_through", "detached_noise"])
@pytest.mark.parametrize("text", ["int4/absmax", "nf4/absmax", "int4full/absmax7.5"])
def test_sampled_gradients_are_within_bounds(method, text):
    """N = 8192 draws. Value: Bernstein's bound from the exact variance of one draw, over the weights. Reported error: s² is
    a mean of squares, of variance (μ₄ - σ⁴)/N. The leave-one-out baseline adds terms of relative order 1/N."""
    q = local(text)
    w, loss = weights(q, 5, 32).astype(float), as_float(quadratic(5, 32))
    law = lt.law(w, q)
    n = 2**13
    found = lt.smoothed_gradient(loss, w, q, method, lattice="detached", samples=n, seed=4)
    assert found.samples == n
    if method == "score_function":
        centred = lambda p: loss(p) - law.probs @ loss(law.points)  # noqa: E731
        each = np.array([gradients.score_function(centred, q, w, p[None])[0] for p in law.points])
    else:
        each = gradients.PER_SAMPLE[method](loss, q, w, law.points)
    mean = law.probs @ each
    variance, fourth = law.probs @ (each - mean) ** 2, law.probs @ (each - mean) ** 4
    moves = variance > 1e-20 * (1 + mean**2)
    bound = tolerances.bernstein_bound(variance, np.abs(each - mean).max(axis=0), n, FALSE_ALARM, 5)
    assert (np.abs(found.value - mean) <= bound * (1 + 4 / np.sqrt(n)) + 1e-12 * (1 + np.abs(mean))).all()
    ratio = found.standard_error[moves] ** 2 * n / variance[moves]
    within = tolerances.standard_error_bound(fourth[moves] / variance[moves] ** 2 - 1, n, FALSE_ALARM, 5)
    assert (np.abs(ratio - 1) <= within * (1 + 4 / np.sqrt(n)) + 4 / n).all()
    assert (found.standard_error[~moves] <= 1e-12 * (1 + np.abs(mean[~moves]))).all()


def test_standard_errors_survive_a_distant_centre():
    """A gradient of 10⁹ with a spread of 0.04: the squares of its draws need 60 bits, their spread does not."""
    q, w = Quantizer.parse("int4"), np.array([0.3, -0.72, 1.1, 0.05])
    far = lt.smoothed_gradient(Quadratic(np.ones(4), np.full(4, 1e9)), w, q, "straight_through", samples=512)
    near = lt.smoothed_gradient(Quadratic(np.ones(4), np.zeros(4)), w, q, "straight_through", samples=512)
    # One rounding of a draw is 10⁹ 2⁻⁵³ = 10⁻⁷, against a standard deviation of at least 10⁻².
    assert np.allclose(far.standard_error, near.standard_error, rtol=1e-4, atol=1e-6)


def test_deterministic_estimators_report_no_error():
    """In one dimension conditional differences do not vary; equal draws have no spread, not even a rounding's."""
    q = Quantizer.parse("int4").with_scale(0.1)
    found = lt.smoothed_gradient(
        Quadratic(np.ones(1), np.array([0.2])), np.array([0.32]), q, "conditional_difference", lattice="detached"
    )
    assert tolerances.within_ulps(found.value, 0.15, 4)
    assert found.standard_error <= 1e-15


@pytest.mark.parametrize("method", list(gradients.PER_SAMPLE))
def test_a_seed_is_a_gradient_and_chunks_do_not_show(method, monkeypatch):
    q = local("int4/absmax")
    w, loss = weights(q, 4, 33).astype(float), as_float(quadratic(4, 33))

    def sample(seed):
        return lt.smoothed_gradient(loss, w, q, method, lattice="detached", samples=200, seed=seed)

    found = sample(1)
    again = sample(1)
    assert np.array_equal(found.value, again.value) and np.array_equal(found.standard_error, again.standard_error)
    if method != "conditional_difference":
        assert not np.array_equal(found.value, sample(2).value)
    for chunk in (1, 21, 300):
        monkeypatch.setattr(sampling, "_CHUNK", chunk)
        again = sample(1)
        # Sums in another order: a few hundred roundings of the largest draw.
        size = np.abs(found.value).max() + np.sqrt(200) * found.standard_error.max()
        assert np.abs(again.value - found.value).max() <= 200 * 2.0**-52 * size
        assert np.abs(again.standard_error - found.standard_error).max() <= 200 * 2.0**-52 * size


def test_sampled_gradients_of_complex_and_exact_weights():
    """Standard errors are those of the modulus, and exact weights are sampled in floats."""
    w = np.array([0.3 + 0.4j, -0.2 + 0.1j])
    loss = lt.pointwise(lambda z: float((abs(z) ** 2).sum()), lambda z: z)
    found = lt.smoothed_gradient(loss, w, "fairy", "straight_through", samples=4096, seed=5)
    law = lt.law(w, "fairy")
    spread = np.sqrt(law.probs @ np.abs(law.points - w) ** 2)
    assert not np.iscomplexobj(found.standard_error)
    # The squared modulus of an error is bounded by (2·0.7)² and n = 4096: 10 % is over 6 deviations.
    assert np.allclose(found.standard_error * 64, spread, rtol=0.1)
    exactly = array([[1, 3, -2]])[0] / 7
    for method in gradients.PER_SAMPLE:
        found = lt.smoothed_gradient(quadratic(3, 34), exactly, "int4", method, lattice="detached", samples=64)
        assert np.isfinite(np.asarray(found.standard_error, dtype=float)).all()


def test_comparison_tells_the_biased_from_the_unbiased():
    """z beyond 6 has probability 2e-9 per weight under the null; the biases here are dozens of standard errors."""
    w = np.array([0.31, -0.77, 1.2, 0.5])
    loss = Quadratic(
        np.array([[2.0, 1, 0, 0], [1, 3, 0, 1], [0, 0, 4, 0], [0, 1, 0, 2]]), np.array([0.3, -0.2, 0.4, 1])
    )
    reports = {r.method: r for r in gradients.compare(loss, w, "int4", samples=2**14, seed=6)}
    assert set(reports) == {*gradients.PER_SAMPLE, "rtn_straight_through", "cage"}
    for method in ("conditional_difference", "score_function"):
        assert reports[method].z < 6
    for method in ("straight_through", "detached_noise", "rtn_straight_through", "cage"):
        assert reports[method].z > 10
    for report in reports.values():
        assert report.bias.shape == w.shape and report.bias[2] == 0, "the leader stands on a level"


# --- the baselines ---------------------------------------------------------------------------------------------------


def test_one_weight_table():
    """h = 2, w* = .3, levels at the integers. At w = .10 and .80 the smoothed slope is +.400, the chord from L(0) to L(1);
    straight-through on a randomized rounding follows ∇L(w), -.400 and +1.000; on the nearest level, -.6 and +1.4."""
    q = Quantizer.parse("int4").with_scale(Fraction(1))
    loss = Quadratic(array([2]), array([Fraction(3, 10)]))
    for w, plain, nearest in (
        (Fraction(1, 10), Fraction(-2, 5), Fraction(-3, 5)),
        (Fraction(4, 5), Fraction(1), Fraction(7, 5)),
    ):
        at = array([w])
        for method in ("exact", "closed_form"):
            for lattice in ("moving", "detached"):
                assert lt.smoothed_gradient(loss, at, q, method, lattice).value == [Fraction(2, 5)]
        law = lt.law(at, q)
        assert (law.probs @ gradients.straight_through(loss, q, at, law.points)) == [plain]
        assert lt.smoothed_gradient(loss, at, q, "rtn_straight_through").value == [nearest]
        pull = 10 * (w - q.cast(at)[0])
        assert lt.smoothed_gradient(loss, at, q, "cage").value == [nearest + pull]


def test_moving_gradient_of_one_block_by_hand():
    """int4, w = (7, 2.5), h = 1, w* = 0: Var = ¼ at scale 1; through the scale, with w₂ between the codes 2 and 3, dVar/ds =
    3 (2.5 - 2) - 2 (3 - 2.5) = ½, so ½ · ½ / 7 reaches the leader, beside its own 7."""
    loss, w = Quadratic(array([1, 1]), array([0, 0])), array([7, Fraction(5, 2)])
    assert closed_form.smoothed_gradient(loss, w, Quantizer.parse("int4")).tolist() == [
        7 + Fraction(1, 28),
        Fraction(5, 2),
    ]
    assert closed_form.smoothed_gradient(loss, w, Quantizer.parse("int4"), moving=False).tolist() == [7, Fraction(5, 2)]


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

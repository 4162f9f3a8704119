"""Estimators of the smoothed gradient from samples, and the baselines that estimate something else."""

from fractions import Fraction

import numpy as np
import pytest

import lotion_theory as lt
from lotion_theory import Quadratic, Quantizer
from lotion_theory.smoothing import closed_form, gradients, sampling
from tests import tolerances
from tests.smoothing_cases import Polynomial, array, as_float, local, quadratic, weights

FALSE_ALARM = 1e-6
"""Probability that a correct program fails one sampled test; the seeds are fixed."""

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


@pytest.mark.parametrize("method", list(gradients.PER_SAMPLE))
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
    for method in ("conditional_difference", "score_function", "corrected"):
        assert reports[method].z < 6
    for method in ("straight_through", "detached_noise", "rtn_straight_through", "cage"):
        assert reports[method].z > 10
    without = gradients.compare(lt.pointwise(lambda w: float(w @ w), lambda w: 2 * w), w, "int4", samples=8)
    assert "corrected" not in {r.method for r in without}
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

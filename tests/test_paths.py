"""Curvature along mixtures of w and RR(w) (claim C21), and gradients sampled at RR(w) (C22)."""

from fractions import Fraction

import numpy as np
import pytest

import lotion_theory as lt
from lotion_theory import Quadratic
from lotion_theory.methods.rule import mixed
from lotion_theory.smoothing import closed_form, gradients, mixtures, path_curvature
from lotion_theory.theory.claims.paths import QuadraticInEach
from testbeds.problems.two_layer import two_layer
from tests import tolerances
from tests.smoothing_cases import array, local, quadratic, weights

FALSE_ALARM = 1e-6
"""Probability that a correct program fails one sampled test; the seeds are fixed."""

KEPT = ("int2/absmax", "int4/absmax", "e2m1/absmax", "nf4/absmax", "uint4/zp-real")


class Net:
    """A two-layer linear net of 2 + 2 weights as a batched loss, with its curvature."""

    def __init__(self, seed):
        self.problem = two_layer(d=1, k=2, m=1, seed=seed)
        self.shape, self.known = self.problem.shape, {}

    def __call__(self, points):
        return self.problem(points)

    def gradient(self, points):
        return self.problem.gradient(points)

    def curvature_at(self, w):
        # There are few points to round to.
        key = w.tobytes()
        if key not in self.known:
            self.known[key] = self.problem.curvature_at(w)
        return self.known[key]


@pytest.mark.parametrize("text", KEPT)
def test_the_path_makes_the_penalty_exact(text):
    """Losses of degree 2 in each of four weights, in rational arithmetic: L + ½ Σ g Var with the mean curvature of all
    mixtures is the smoothed loss; with the curvature at w, or at RR(w) alone, it is not."""
    q = local(text)
    for seed in (40, 42):
        w, loss = weights(q, 4, seed), QuadraticInEach(f"test/{seed}", 4)
        smoothed = lt.smoothed_loss(loss, w, q).value
        law = lt.law(w, q)
        rounded = sum(p * loss.curvature_at(x) for p, x in zip(law.probs, law.points, strict=True))
        stated = [
            closed_form.second_order_loss(loss, w, q, g)
            for g in (path_curvature(loss, w, q), loss.curvature_at(w), rounded)
        ]
        assert stated[0] == smoothed and stated[1] != smoothed != stated[2]


def test_mixtures_are_a_law():
    """Two weights at p = 1/4 and 1/2: every weight stays with probability 1/2, and both do with ∫ (1 - t)² dt = 1/3."""
    w = array([Fraction(1, 4), Fraction(1, 2)])
    q = lt.Quantizer.parse("int4").with_scale(Fraction(1))
    points, probs = mixtures(w, q)
    assert probs.sum() == 1
    kept = points == w
    assert (probs[kept.all(axis=1)]).sum() == Fraction(1, 3)
    for i, p in enumerate((Fraction(1, 4), Fraction(1, 2))):
        assert probs[kept[:, i]].sum() == Fraction(1, 2)
        assert probs[points[:, i] == 1].sum() == p / 2
    assert (probs @ points == w).all()
    with pytest.raises(ValueError, match="mixtures exceed the limit of 8"):
        mixtures(w, q, limit=8)


def test_drawn_mixtures_follow_their_law():
    """N = 2¹⁵ mixtures drawn with a uniform t each: how often one, and how often both weights, come from RR(w)."""
    n = 2**15
    u, t = lt.Stream(0, "test/mixtures").uniforms((n, 3)), lt.Stream(0, "test/t").uniforms((n, 1))
    drawn = mixed(np.zeros((n, 3)), np.ones((n, 3)), u, t)
    for found, chance in ((drawn[:, 0], 1 / 2), (drawn[:, :2].prod(axis=1), 1 / 3), (drawn.prod(axis=1), 1 / 4)):
        bound = tolerances.bernstein_bound(chance * (1 - chance), 1.0, n, FALSE_ALARM, 3)
        assert abs(found.mean() - chance) <= bound


def test_a_quadratic_has_one_curvature():
    """At w, at RR(w) and along the path it is the same, so that the three places coincide."""
    q, loss = local("int3/absmax"), quadratic(3, 41)
    w = weights(q, 3, 41)
    assert (path_curvature(loss, w, q) == loss.curvature).all()


def test_losses_without_curvature_are_refused():
    loss = lt.pointwise(lambda w: float((w**2).sum()), lambda w: 2 * w)
    w = np.array([0.3, -0.7])
    with pytest.raises(ValueError, match="give the loss a method curvature_at"):
        path_curvature(loss, w, "int4")
    with pytest.raises(ValueError, match="give the loss a method curvature_at"):
        lt.smoothed_gradient(loss, w, "int4", "corrected")

    class Wrong(Quadratic):
        def curvature_at(self, w):
            return np.ones(3)

    with pytest.raises(ValueError, match=r"curvature_at returned shape \(3,\); expected \(2,\)"):
        path_curvature(Wrong(np.ones(2), np.zeros(2)), w, "int4")


@pytest.mark.parametrize("text", (*KEPT, "int4full/absmax7.5", "ternary/absmean"))
@pytest.mark.parametrize("moving", [False, True])
def test_corrected_gradients_expect_the_smoothed_one(text, moving):
    """C22, exactly, over the whole law; clipping formats included."""
    q = local(text)
    w, loss = weights(q, 3, 43), QuadraticInEach("test/corrected", 3)
    law = lt.law(w, q)
    each = gradients.corrected(loss, q, w, law.points, moving)
    assert ((law.probs[:, None] * each).sum(axis=0) == gradients.exact(loss, w, q, moving)).all()
    assert (each[0] == gradients.corrected(loss, q, w, law.points[:1], moving)[0]).all()


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("lattice", ["detached", "moving"])
def test_sampled_gradients_of_a_net_are_within_bounds(lattice, pairs):
    """N = 2¹³ draws against the exact gradient, by the exact variance of a draw or pair."""
    loss, n = Net(3), 2**13
    w = 0.3 + loss.problem.start
    q = lt.Quantizer.parse("int3/absmax/block=2")
    truth = lt.smoothed_gradient(loss, w, q, lattice=lattice).value
    found = lt.smoothed_gradient(loss, w, q, "corrected", lattice=lattice, samples=n, seed=5, pairs=pairs)
    assert found.samples == n
    law = lt.law(w, q)
    each = gradients.corrected(loss, q, w, law.points, lattice == "moving")
    variance, reach = law.probs @ (each - truth) ** 2, np.abs(each - truth).max(axis=0)
    # A pair's mean varies no more than two independent draws would where it helps, and at most twice that.
    bound = tolerances.bernstein_bound(variance * (2 if pairs else 1), reach, n, FALSE_ALARM, w.size)
    assert (np.abs(found.value - truth) <= bound).all()
    if not pairs:
        assert np.allclose(found.standard_error**2 * n, variance, rtol=0.2, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("lattice", ["detached", "moving"])
def test_a_million_draws_are_within_four_standard_errors(lattice):
    """10⁶ draws over 8 nets: each entry of each mean; 64 comparisons at 4 standard errors have a false-alarm rate of 0.4 %,
    and the seed is fixed."""
    for seed in range(8):
        loss = Net(seed)
        w, q = 0.3 + loss.problem.start, "int3/absmax/block=2"
        truth = lt.smoothed_gradient(loss, w, q, lattice=lattice).value
        found = lt.smoothed_gradient(loss, w, q, "corrected", lattice=lattice, samples=125_000, seed=seed)
        assert (np.abs(found.value - truth) <= 4 * found.standard_error + 1e-12).all()


def test_antithetic_pairs_of_a_quadratic_cancel_what_is_odd():
    """½ (∇L(q) + ∇L(q')) of a quadratic at w halfway between two levels: q and q' lie on either side, so the mean of a pair
    is ∇L(w) without any spread."""
    q = lt.Quantizer.parse("int4").with_scale(1.0)
    loss = Quadratic(np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([0.2, 0.1]))
    w = np.array([1.5, -2.5])
    found = lt.smoothed_gradient(loss, w, q, "corrected", lattice="detached", samples=256, pairs=True)
    assert (found.standard_error <= 1e-15).all()
    assert np.allclose(found.value, lt.smoothed_gradient(loss, w, q, lattice="detached").value, rtol=1e-12)
    plain = lt.smoothed_gradient(loss, w, q, "corrected", lattice="detached", samples=256)
    assert (plain.standard_error > 0.01).all()
    for bad, why in ((3, "too few"), (5, "must be even")):
        with pytest.raises(ValueError, match=why):
            lt.smoothed_gradient(loss, w, q, "corrected", samples=bad, pairs=True)

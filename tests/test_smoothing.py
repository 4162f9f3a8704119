"""The law of RR(w) by enumeration, and the smoothed loss by every method."""

import itertools
import math
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lotion_theory as lt
from lotion_theory import Quadratic, Quantizer, landscape
from lotion_theory.rounding import conditional_expectation
from lotion_theory.smoothing import LOSS_METHODS, closed_form
from tests import reference, smoothing_cases, strategies
from tests.smoothing_cases import REAL, array, local, quadratic, weights

# --- the law ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", REAL)
def test_law_is_a_law(text):
    """Rational weights: distinct points of positive probability that sum to one, with the stated mean and variance."""
    q = local(text, "block=3")
    w = weights(q, 6, seed=1)
    law = lt.law(w, q)
    assert law.points.shape == (len(law.probs), 6)
    assert law.probs.sum() == 1 and (law.probs > 0).all()
    outcomes = {(tuple(u.ravel()), tuple(b)) for u, b in zip(law.up, law.branch, strict=True)}
    assert len(outcomes) == len(law.probs), "an outcome is listed twice"
    mean = (law.probs[:, None] * law.points).sum(axis=0)
    assert (mean == q.mean(w)).all()
    assert ((law.probs[:, None] * (law.points - mean) ** 2).sum(axis=0) == q.variance(w)).all()


def reference_law(q, block):
    """Points and probabilities of one block from the second, slow implementation."""
    table = {}
    for drawn in reference.law(q.codebook, q.scale.name, list(block)):
        ends = [reference.neighbours(drawn, i) for i in range(len(block))]
        ups = [
            (t - lo) / (hi - lo) if hi > lo else Fraction(0) for t, (lo, hi) in zip(drawn.targets, ends, strict=True)
        ]
        for choice in itertools.product((0, 1), repeat=len(block)):
            chance = drawn.prob
            for c, p in zip(choice, ups, strict=True):
                chance *= p if c else 1 - p
            if chance:
                point = tuple(e[c] for e, c in zip(ends, choice, strict=True))
                table[point] = table.get(point, 0) + chance
    return table


@pytest.mark.parametrize("text", [f for f in REAL if not Quantizer.parse(f).scale.is_frozen and "2level" not in f])
def test_law_is_the_slow_one(text):
    """Two blocks: the product of the laws that ``reference`` gives each of them."""
    q = local(text, "block=2")
    w = weights(q, 4, seed=2)
    law = lt.law(w, q)
    found = {}
    for point, chance in zip(law.points, law.probs, strict=True):
        found[tuple(point)] = found.get(tuple(point), 0) + chance
    first, second = (reference_law(q, w[i : i + 2]) for i in (0, 2))
    assert found == {a + b: p * r for a, p in first.items() for b, r in second.items()}


@given(data=st.data(), text=st.sampled_from(strategies.FORMATS), seed=st.integers(0, 2**32 - 1))
@strategies.examples(40)
def test_rounding_draws_from_the_law(data, text, seed):
    """Whatever the uniforms, ``round`` returns a point of the law. Blocks sit on scale breakpoints, ties, zeros, levels and
    one ulp beside them."""
    dtype = data.draw(st.sampled_from(["float64", "float32", "float16"]))
    w = data.draw(strategies.blocks(text, dtype, max_rows=2, max_size=3))
    q = Quantizer.parse(text + "/row")
    if np.abs(w.astype(np.float64)).max() > strategies.LARGEST[dtype] / 4:
        w = (w * np.asarray(0.125, w.dtype)).astype(w.dtype)  # A gap of two huge levels does not fit the type.
    law = lt.law(w, q)
    # p and 1 - p of at most 6 weights and 2 draws, each with at most 3 roundings of the working type, in products.
    slack = 64 * len(law.probs) * (2.0**-53 if dtype == "float64" else 2.0**-24)
    assert abs(law.probs.astype(np.float64).sum() - 1) <= slack
    assert law.points.dtype == (np.float64 if dtype == "float16" else w.dtype)
    cells = [branch.cell for branch in law.branches]
    shares = [(c.target - c.lo) / (c.hi - c.lo + (c.hi == c.lo)) for c in cells]
    # A probability that rounds to 0 or 1 takes a point out of the law, though not out of ``round``.
    whole = not any(((c.hi > c.lo) & ((p == 0) | (p == 1))).any() for c, p in zip(cells, shares, strict=True))
    rng = np.random.default_rng(seed)
    for _ in range(8 * whole):
        u = strategies.uniforms(rng, w.shape, "float64")
        v = strategies.uniforms(rng, (len(w),), "float64") if q.scale.is_drawn else None
        point = q.round(w, u, v)
        assert (law.points == point).all(axis=(1, 2)).any()


def test_law_in_sixteen_bits_is_that_of_the_type():
    """A tensor's own lattice: the levels are bfloat16 numbers, as ``bracket`` and ``round`` see them."""
    torch = pytest.importorskip("torch")
    w = torch.randn(5, generator=torch.Generator().manual_seed(0))
    for kind in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        t = w.to(kind)
        q = Quantizer.parse("int4")
        lo, hi = q.bracket(t)
        levels = set(lo.double().tolist()) | set(hi.double().tolist())
        assert set(np.asarray(lt.law(t, q).points, dtype=np.float64).ravel().tolist()) <= levels, kind
        estimate = lt.smoothed_loss(
            lt.pointwise(lambda p, levels=levels: float(not set(map(float, p)) <= levels)),
            t,
            q,
            "monte_carlo",
            samples=8,
        )
        assert estimate.value == 0


def test_law_of_complex_weights():
    w = np.array([0.3 + 0.4j, -0.2 + 0.1j, 0])
    law = lt.law(w, "fairy")
    assert np.iscomplexobj(law.points) and law.points.shape[1:] == (3,)
    assert abs(law.probs.sum() - 1) <= 8 * np.finfo(float).eps
    assert np.abs(law.probs @ law.points - w).max() <= 8 * np.finfo(float).eps
    # One scale, 0.7: each weight, zero as well, becomes 0.7 times 1, -1, i or -i.
    units = law.points / 0.7
    assert np.abs(np.abs(units) - 1).max() <= 8 * np.finfo(float).eps and np.abs(units.real * units.imag).max() == 0
    pairs = array([[Fraction(3, 10), Fraction(4, 10)], [Fraction(-2, 10), Fraction(1, 10)]])
    exactly = lt.law(pairs, "fairy")
    assert exactly.probs.sum() == 1
    assert ((exactly.probs[:, None, None] * exactly.points).sum(axis=0) == pairs).all()


def test_law_of_a_scalar_a_level_and_a_zero_block():
    q = Quantizer.parse("int4").with_scale(0.25)
    assert lt.law(np.array(0.3), q).points.tolist() == [0.25, 0.5]
    assert lt.law(np.array([0.5, -1.75]), q).points.tolist() == [[0.5, -1.75]]
    for text in ("int4", "e2m1/e8m0-sr", "pot4", "uint4", "binary"):
        law = lt.law(np.zeros(3), text)
        assert law.points.tolist() == [[0, 0, 0]] and law.probs.tolist() == [1]


@pytest.mark.parametrize(("shape", "text"), [((22,), "int4"), ((30,), "e2m1/e8m0-sr"), ((100, 20), "int4/row")])
def test_law_refuses_before_it_enumerates(shape, text):
    """Naming the alternatives, in little memory: the points of the first case would fill 350 MB."""
    w = np.random.default_rng(0).standard_normal(shape)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"limit.*closed_form.*monte_carlo"):
            lt.law(w, text)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_law_limit_is_the_callers():
    w = np.random.default_rng(0).standard_normal(6)
    assert len(lt.law(w, "int4", limit=32).probs) == 32
    with pytest.raises(ValueError, match="32 support points exceed the limit of 31"):
        lt.law(w, "int4", limit=31)


# --- the smoothed loss -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", REAL)
def test_enumeration_is_the_closed_form(text):
    """Exactly, in rational arithmetic, for a dense indefinite Hessian: couplings within a block that share a draw too."""
    for partition, d, seed in (("tensor", 5, 0), ("block=3", 6, 1), ("block=2", 6, 2)):
        q = local(text, partition)
        w, loss = weights(q, d, seed), quadratic(d, seed)
        assert lt.smoothed_loss(loss, w, q).value == lt.smoothed_loss(loss, w, q, "closed_form").value


@pytest.mark.parametrize("text", REAL)
def test_float_losses_are_the_exact_ones(text):
    """float64 against the rational law of the same numbers.

    The closed form adds about d² products, each with a few roundings; the enumeration one dot product over its n points.
    A weight's share of a drawn lattice is a quotient of differences, which magnify an ulp by lead / (p width).
    """
    q = local(text, "block=3")
    w = weights(q, 6, seed=3).astype(float)
    loss = quadratic(6, 3)
    truth = float(lt.smoothed_loss(loss, strategies.as_fractions(w), q).value)
    size = smoothing_cases.magnitude(loss, w) * smoothing_cases.amplification(q, w)
    eps = 2.0**-53
    fast = lt.smoothed_loss(smoothing_cases.as_float(loss), w, q, "closed_form").value
    slow = lt.smoothed_loss(smoothing_cases.as_float(loss), w, q)
    assert abs(fast - truth) <= 64 * 36 * eps * size
    assert abs(slow.value - truth) <= (64 * 36 + slow.evaluations) * eps * size


@given(
    strategies.exact_blocks(max_rows=1, max_size=4),
    st.sampled_from(["int4", "e2m1/e8m0-sr", "int4full/absmax7.5", "ternary/absmean", "nf4/e4m3-sr", "uint2/zp-int"]),
)
@strategies.examples(30)
def test_enumeration_is_the_closed_form_at_kinks(w, text):
    """Ties, zeros and weights on levels included."""
    q = Quantizer.parse(text)
    loss = quadratic(w.size, 4)
    w = w.ravel()
    assert lt.smoothed_loss(loss, w, q).value == lt.smoothed_loss(loss, w, q, "closed_form").value


def test_second_order_is_exact_for_quadratics_on_one_unclipped_lattice():
    for text in ("int4/absmax", "nf4", "int4full/gauge", "uint4/zp-real"):
        w, loss = weights(Quantizer.parse(text), 5, 0), quadratic(5, 0)
        found = lt.smoothed_loss(loss, w, text, "second_order", curvature=loss.curvature).value
        assert found == lt.smoothed_loss(loss, w, text).value
        half = lt.smoothed_loss(loss, w, text, "second_order", curvature=loss.curvature, ramp=Fraction(1, 2)).value
        assert half == (found + loss(w[None])[0]) / 2


@pytest.mark.parametrize("size", [1e-3, 1.0, 3e4])
def test_sixteen_bit_weights_keep_their_penalty(size):
    """Variances of float16 weights leave float16's range at both ends; the closed forms do not."""
    w = (size * np.clip(np.random.default_rng(0).standard_normal(64), -2, 2)).astype(np.float16)
    loss = Quadratic(np.ones(64), np.zeros(64))
    plain = loss(w.astype(np.float64)[None])[0]
    full = lt.smoothed_loss(loss, w, "int4/block=32", "closed_form").value
    found = lt.smoothed_loss(loss, w, "int4/block=32", "second_order", curvature=loss.curvature).value
    # Variances are of float32: 64 of them, each with a few roundings of 2⁻²⁴; the losses are sums in float64.
    assert abs(found - full) <= 64 * 2.0**-24 * (full - plain) + 64 * 2.0**-53 * full


def test_every_input_kind_and_method():
    """Lists, numpy arrays and tensors give the same estimate from every method."""
    torch = pytest.importorskip("torch")
    plain = [0.3, -0.7, 1.1]
    loss = Quadratic(np.array([[2.0, 1, 0], [1, 3, 0], [0, 0, 1]]), np.zeros(3))
    for method in LOSS_METHODS:
        options = {"curvature": loss.curvature} if method == "second_order" else {}
        found = [
            lt.smoothed_loss(loss, w, "int4", method, **options)
            for w in (plain, np.array(plain), torch.tensor(plain, dtype=torch.float64))
        ]
        assert found[0] == found[1] == found[2]
        assert found[0].method == method
        assert (found[0].standard_error > 0) == (method in ("monte_carlo", "antithetic", "quasi_monte_carlo"))


def test_losses_of_matrices():
    """The loss sees points of the weights' own shape, whatever the partition."""
    w = np.random.default_rng(0).standard_normal((2, 4))
    seen = []

    def loss(points):
        seen.append(points.shape[1:])
        return (points[:, 0] * points[:, 1]).sum(axis=1)

    for method in ("exact", "monte_carlo", "antithetic", "quasi_monte_carlo"):
        for text in ("int2/row", "e2m1/e8m0-sr/block=2"):
            lt.smoothed_loss(loss, w, text, method)
    assert set(seen) == {(2, 4)}


def test_errors_name_what_is_valid():
    loss, w = Quadratic(np.ones(3), np.zeros(3)), np.array([0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=r"unknown method 'mc'; valid: exact, closed_form.*quasi_monte_carlo"):
        lt.smoothed_loss(loss, w, "int4", "mc")
    with pytest.raises(ValueError, match=r"closed_form.*Quadratic losses only.*monte_carlo"):
        lt.smoothed_loss(lambda p: p.sum(axis=1), w, "int4", "closed_form")
    with pytest.raises(ValueError, match="curvature has shape"):
        lt.smoothed_loss(loss, w, "int4", "second_order", curvature=np.ones(2))
    for method, options in (("monte_carlo", {"samples": 1}), ("antithetic", {"samples": 2}), ("antithetic", {"samples": 9}),
                            ("quasi_monte_carlo", {"samples": 8}), ("quasi_monte_carlo", {"randomizations": 1})):  # fmt: skip
        with pytest.raises(ValueError, match="samples="):
            lt.smoothed_loss(loss, w, "int4", method, **options)
    for method in ("exact", "monte_carlo"):
        with pytest.raises(ValueError, match=r"the loss returned shape \(\)"):
            lt.smoothed_loss(lambda p: p.sum(), w, "int4", method)
    with pytest.raises(ValueError, match=r"21201 dimensions.*monte_carlo"):
        lt.smoothed_loss(lambda p: p.sum(axis=1), np.ones(21202) * 0.3, "int4", "quasi_monte_carlo")


WEIGHTS = np.array([0.1, 0.25, 0.3])
BOX = (np.full(3, -1.0), np.full(3, 1.0))
ENTRIES = {
    **{
        method: lambda loss, method=method, **more: lt.smoothed_loss(loss, WEIGHTS, "int3", method, **more)
        for method in ("exact", "monte_carlo", "antithetic", "quasi_monte_carlo")
    },
    "second_order": lambda loss: lt.smoothed_loss(loss, WEIGHTS, "int3", "second_order", curvature=np.ones(3)),
    "gradient": lambda loss: lt.smoothed_gradient(
        loss, WEIGHTS, Quantizer.parse("int3").with_scale(0.13), "exact", "detached"
    ),
    "score": lambda loss: lt.smoothed_gradient(loss, WEIGHTS, "int3", "score_function", "detached"),
    "difference": lambda loss: lt.smoothed_gradient(loss, WEIGHTS, "int3", "conditional_difference", "detached"),
    "greedy": lambda loss: conditional_expectation(loss, WEIGHTS, "int3"),
    "slice": lambda loss: landscape.slice_1d(loss, WEIGHTS, np.ones(3), "int3", points=3, scan=9),
    "plane": lambda loss: landscape.slice_2d(loss, WEIGHTS, (np.eye(3)[0], np.eye(3)[1]), "int3", points=3),
    "levels": lambda loss: landscape.local_minima_quantized(loss, [np.array([0.0, 1.0])] * 3),
    "global": lambda loss: landscape.global_minimum_quantized(loss, "int2", (3,), reach=1.0),
    "search": lambda loss: landscape.local_minima_smoothed(loss, "int2", *BOX, starts=4, iterations=2),
}


def _of_one(w):
    return float(w[0]) ** 2 + math.exp(w[1]) * w[2]  # a batch has no float


def _summed(w):
    return float((w**2).sum())  # one number for all points


def _over_points(w):
    return (w**2).sum(axis=0)  # one number per weight


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
@pytest.mark.parametrize("loss", [_of_one, _summed, _over_points])
def test_a_loss_of_one_point_is_named_and_pointwise_takes_it(entry, loss):
    with pytest.raises(ValueError, match=r"loss (fails on a batch|returned shape).*a batch of points, here a numpy array "
                       r"of shape \(\d+, 3\); lotion_theory\.pointwise"):  # fmt: skip
        entry(loss)
    if loss is not _over_points:
        entry(lt.pointwise(loss))


def test_a_sum_over_the_wrong_axis_is_seen_where_the_numbers_agree():
    """Two weights off the lattice have four support points, and so has a tensor of four weights."""
    w = np.array([7.0, 0.25, 0.5, 0.0])
    assert len(lt.law(w, "int4").points) == 4
    with pytest.raises(ValueError, match=r"returned shape \(4,\) for 1 point; expected \(1,\).*pointwise"):
        lt.smoothed_loss(lambda p: (p**2).sum(axis=0), w, "int4")


def test_faults_inside_a_loss_stay_what_they_are():
    def broken(points):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        lt.smoothed_loss(broken, WEIGHTS, "int4")
    with pytest.raises(KeyError, match="mine"):
        lt.smoothed_loss(lt.pointwise(broken), WEIGHTS, "int4")
    with pytest.raises(TypeError, match="the loss is a float; valid: a function of a batch"):
        lt.smoothed_loss(1.0, WEIGHTS, "int4")
    with pytest.raises(ValueError, match=r"given to pointwise returned shape \(3,\) for one point of shape \(3,\)"):
        lt.smoothed_loss(lt.pointwise(lambda w: w**2), WEIGHTS, "int4")
    with pytest.raises(ValueError, match="returned complex128 values"):
        lt.smoothed_loss(lambda p: p.sum(axis=1) * 1j, WEIGHTS, "int4")


def test_gradients_of_a_loss_have_the_shape_of_the_points():
    class Loss:
        def __call__(self, points):
            return (points**2).sum(axis=1)

        def gradient(self, points):
            return 2 * points[0]

    for method in ("exact", "straight_through", "rtn_straight_through"):
        with pytest.raises(ValueError, match=r"gradient returned shape \(3,\); expected \(\d+, 3\).*pointwise"):
            lt.smoothed_gradient(Loss(), WEIGHTS, "int4", method)


def test_a_loss_may_spoil_its_points_and_may_be_written_in_torch():
    def spoils(points):
        points -= 1
        return (points**2).sum(axis=1)

    def in_torch(points):
        return ((torch.from_numpy(points).requires_grad_() - 1) ** 2).sum(dim=1)

    expected = {}
    for loss in (lambda p: ((p - 1) ** 2).sum(axis=1), spoils, in_torch):
        for method in ("exact", "monte_carlo", "antithetic"):
            value = lt.smoothed_loss(loss, WEIGHTS, "int3", method).value
            assert value == pytest.approx(expected.setdefault(method, value), rel=1e-14)
        score = lt.smoothed_gradient(loss, WEIGHTS, "int3", "score_function", "detached", samples=64).value
        np.testing.assert_allclose(score, expected.setdefault("score", score), rtol=1e-12)


@pytest.mark.parametrize(
    ("method", "options"), [("exact", {"samples": 5}), ("monte_carlo", {"randomizations": 4}), ("second_order", {})]
)
def test_wrong_options_are_value_errors(method, options):
    with pytest.raises(ValueError, match=method):
        lt.smoothed_loss(Quadratic(np.ones(3), np.zeros(3)), np.array([0.1, 0.2, 0.3]), "int4", method, **options)


def test_quadratic_refuses_what_it_is_not():
    with pytest.raises(ValueError, match="symmetric"):
        Quadratic(np.array([[1.0, 2], [0, 1]]), np.zeros(2))
    with pytest.raises(ValueError, match=r"hessian has shape \(3,\), expected \(2,\) or \(2, 2\)"):
        Quadratic(np.ones(3), np.zeros(2))
    with pytest.raises(ValueError, match="points have shape"):
        Quadratic(np.ones(2), np.zeros(2))(np.ones((4, 3)))


def test_penalty_is_the_smoothing_of_a_quadratic():
    """``½ Σ g Var`` is ``E[L(RR(w))] - L(w)`` for ``L = ½ Σ g (w - c)²``, drawn lattices included."""
    for text in ("int4/absmax", "e2m1/e8m0-sr", "nf4/e4m3-sr"):
        q = local(text)
        w, loss = weights(q, 4, 6), quadratic(4, 6, diagonal=True)
        assert closed_form.penalty(w, q, loss.curvature) == lt.smoothed_loss(loss, w, q).value - loss(w[None])[0]

"""The checks of the claims bite: each formula made wrong in one way is refuted by the claim that states it.

What no claim states (the score function, the gradient of the penalty alone, sampled estimates) is held by the other tests
of this folder, run once more on the broken program.
"""

import dataclasses

import numpy as np
import pytest

from lotion_theory import Quadratic, Quantizer, kernels, rounding
from lotion_theory.formats import scaling
from lotion_theory.formats.lattice import AffineLattice, Lattice
from lotion_theory.smoothing import chain, closed_form, exact, gradients, paths, sampling
from lotion_theory.theory.claims import CLAIMS, losses, minima, training
from lotion_theory.theory.claims import paths as path_claims
from lotion_theory.theory.verification import check, surprises
from testbeds import cli
from tests import test_estimators, test_gradients, test_rounding, test_sampling, test_smoothing


class Original:
    """The functions as they are, for replacements to call."""

    absmax = staticmethod(scaling.absmax)
    affine = staticmethod(AffineLattice.coefficients)
    conditional_difference = staticmethod(gradients.conditional_difference)
    conditional_expectation = staticmethod(rounding.conditional_expectation)
    expectation = staticmethod(exact.expectation)
    gradient = staticmethod(gradients.exact)
    locate = staticmethod(Lattice.locate)
    points = staticmethod(sampling.randomized_points)
    score = staticmethod(gradients.score_function)
    variance = staticmethod(kernels.variance)
    curvatures = staticmethod(gradients.curvatures_of)
    two_layer = staticmethod(losses.TwoLayerNet.curvatures)


def uniform_noise(w, lo, hi):
    """Mean square of an error uniform over the cell: it does not depend on the weight."""
    return (hi - lo) * (hi - lo) / 12


def half_probability(w, lo, hi):
    """Too close to one half, though 0 on a level."""
    return ((w - lo) / 2 + (hi - lo) / 4) / ((hi - lo) + (hi == lo))


def top_alone(self, index):
    """A lattice whose bottom anchor does not move with the block's minimum."""
    top, bottom = Original.affine(self, index)
    return top, 0 * bottom


def jumping_absmax(x):
    """A scale that depends on the sign of the first weight."""
    return Original.absmax(x) * (1 + (x[:, :1] > 0))


def straight_through(loss, w, q, moving=True):
    """QAT's gradient in place of the smoothed one."""
    return loss.gradient(Quantizer.parse(q).cast(w)[None])[0]


def at_the_weight(loss, w, q):
    """The curvature of the paper's penalty, where the path's is asked for."""
    return loss.curvature_at(w)


def half_way(w, q, limit=0):
    """Mixtures that take each weight from RR(w) with probability ½: the middle of the path, not its mean."""
    found = exact.law(w, q)
    d = w.size
    taken = np.array([[k >> i & 1 for i in range(d)] for k in range(2**d)], dtype=bool)
    points = np.where(taken[:, None], found.points[None], w[None, None]).reshape(-1, d)
    return points, np.tile(found.probs / 2**d, 2**d)


# What is broken (owner, name, replacement), on which format, and the claims that must see it.
MUTATIONS = {
    "variance, uniform noise": (kernels, "variance", uniform_noise, "int4", ["C2", "C8", "C8b", "C15", "C16", "C17"]),
    "variance, uniform noise, drawn scale": (kernels, "variance", uniform_noise, "mxfp4/sr", ["C2", "C8b"]),
    "variance, half": (kernels, "variance", lambda *a: Original.variance(*a) / 2, "nf4", ["C2", "C8", "C16", "C17"]),
    "variance, slope in w": (kernels, "variance_dw", lambda w, lo, hi: (w - lo) - (hi - w), "int4", ["C15", "C18"]),
    "variance, slope in lo": (kernels, "variance_dlo", lambda w, lo, hi: 0 * w, "int4", ["C15"]),
    "variance, slope in hi": (kernels, "variance_dhi", lambda w, lo, hi: lo - w, "nf4", ["C15"]),
    "penalty without its half": (closed_form, "penalty", lambda w, q, g: (g * q.variance(w)).sum(), "int4", ["C8"]),
    "anchors detached": (chain, "_through_anchors", lambda lattice, cell, *rest: 0 * cell.lo, "int4", ["C15"]),
    "bottom anchor detached": (AffineLattice, "coefficients", top_alone, "uint4", ["C15"]),
    "draw without coupling": (Quadratic, "block_products", lambda self, blocks: 0 * blocks, "mxfp4/sr", ["C8b"]),
    "target without the threshold": (kernels, "mixture_target", lambda m, t, p: m / p, "mxfp4/sr", ["C1", "C6"]),
    "target not conditional": (kernels, "mixture_target", lambda m, t, p: m, "nvfp4/sr", ["C1"]),
    "probability near one half": (kernels, "prob_up", half_probability, "int4", ["C8", "C10", "C13", "C14"]),
    "always up": (kernels, "prob_up", lambda w, lo, hi: 0 * w + (hi > w), "int4", ["C8", "C10", "C14"]),
    "difference over another gap": (
        gradients, "conditional_difference", lambda *a: Original.conditional_difference(*a) / 2, "int4", ["C13"]
    ),
    "enumerated gradient doubled": (gradients, "exact", lambda *a, **k: 2 * Original.gradient(*a, **k), "int4", ["C13"]),
    "conditional expectation takes the nearest": (
        minima, "conditional_expectation", lambda loss, w, q: q.cast(w), "int4", ["C12"]
    ),
    "conditional expectation takes the worse end": (
        rounding, "_quadratic_steps", lambda loss, shape, mean, lo, hi, free: np.where(mean - lo > hi - mean, lo, hi), "int4", ["C12"]
    ),
    "expectation off by one off the lattice": (
        exact, "expectation", lambda law, v: Original.expectation(law, v) + (len(v) > 1), "int4", ["C8", "C10", "C11", "C19"]
    ),
    "a neighbour's cell": (
        Lattice, "locate", lambda self, x: Original.locate(self, x * 33 / 32), "int4", ["C1", "C4", "C5"]
    ),
    "scale that clips": (scaling, "absmax", lambda x: Original.absmax(x) / 2, "int4", ["C1", "C4", "C14"]),
    "scale that jumps": (scaling, "absmax", jumping_absmax, "int4", ["C4", "C6"]),
    "scale with slack": (scaling, "absmax", lambda x: Original.absmax(x) * 8 / 7, "int4", ["C4", "C7"]),
    "descent along straight-through": (closed_form, "smoothed_gradient", straight_through, "int4", ["C18"]),
    "curvature of the weight alone": (path_claims, "path_curvature", at_the_weight, "int4", ["C21"]),
    "curvature of the middle of the path": (paths, "mixtures", half_way, "int4", ["C21"]),
    "half of the curvature of two layers": (
        losses.TwoLayerNet, "curvatures", lambda *a: tuple(g / 2 for g in Original.two_layer(*a)), "int4", ["C17", "C21b"]
    ),
    "sampled gradients without their curvature": (
        gradients, "curvatures_of", lambda loss, points: 0 * points, "int4", ["C22"]
    ),
    "sampled gradients with twice their curvature": (
        gradients, "curvatures_of", lambda *a: 2 * Original.curvatures(*a), "nf4", ["C22"]
    ),
    "no chatter": (training, "rounded_to_nearest", lambda loss, w, q: loss.gradient(w[None])[0], None, ["C18b"]),
}  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_wrong_formulas_are_refuted(mutation, monkeypatch):
    owner, name, wrong, text, ids = MUTATIONS[mutation]
    monkeypatch.setattr(owner, name, wrong)
    q = None if text is None else Quantizer.parse(text)
    for id in ids:
        rows = check(CLAIMS[id], q)
        assert rows and all(r.verdict == "fails" and r.counterexample for r in rows), (
            f"{id} does not notice: {mutation}"
        )
        assert surprises(rows) == rows


# --- what no claim states --------------------------------------------------------------------------------------------


def full_baseline(loss, q, w, points):
    """The mean of all draws as the baseline, this one included: biased by a factor 1 - 1/n."""
    n = len(points)
    return Original.score(loss, q, w, points) * ((n - 1) / n if n > 1 else 1)


def biased_points(q, w, uniforms):
    """Rounding up a hundredth too often."""
    return Original.points(q, w, np.maximum(uniforms - 0.02, 0))


def independent_pairs(loss, q, w, u, antithetic):
    """Pairs of the right law that are not mirrored."""
    values = loss(Original.points(q, w, u))
    return (values + loss(Original.points(q, w, (u + 0.618) % 1))) / 2 if antithetic else values


class Flattered(sampling.Estimate):
    """Standard errors a fifth too small."""

    def __init__(self, value, standard_error, evaluations, method):
        super().__init__(value, standard_error / 1.25, evaluations, method)


ELSEWHERE = {
    "score, sign": (
        gradients, "score_function", lambda *a: -Original.score(*a),
        lambda: test_estimators.test_conditional_difference_and_score_are_unbiased("nf4/absmax"),
    ),
    "score, own draw in the baseline": (
        gradients, "score_function", full_baseline,
        lambda: test_estimators.test_conditional_difference_and_score_are_unbiased("int4/absmax"),
    ),
    "straight-through that sees the smoothing": (
        gradients, "straight_through", Original.conditional_difference,
        lambda: test_estimators.test_straight_through_expects_the_plain_gradient("int4/absmax"),
    ),
    "penalty gradient doubled": (
        closed_form, "variance_partials", lambda branch, weight: chain.variance_partials(branch, 2 * weight),
        lambda: test_gradients.test_penalty_gradient_is_the_slope_of_the_penalty("int4/absmax/block=32"),
    ),
    "gradient of a drawn scale without its probability": (
        closed_form, "pull_back", lambda q, w, branches, partials, moving: chain.pull_back(
            q, w, branches, [dataclasses.replace(p, prob=None) for p in partials], moving
        ),
        lambda: test_gradients.test_moving_gradient_is_the_slope_of_the_smoothed_loss("mxfp4/sr"),
    ),
    "rounding up too often": (
        sampling, "randomized_points", biased_points, lambda: test_sampling.test_monte_carlo_is_unbiased_and_its_error_honest("int4/absmax"),
    ),
    "pairs not mirrored": (
        sampling, "_evaluate", independent_pairs, lambda: test_sampling.test_antithetic_pairs_are_mirrored("int4/absmax"),
    ),
    "flattering standard errors": (
        sampling, "Estimate", Flattered, lambda: test_sampling.test_monte_carlo_is_unbiased_and_its_error_honest("int4/absmax"),
    ),
    "probability near one half": (
        kernels, "prob_up", half_probability, lambda: test_smoothing.test_law_is_the_slow_one("int4/absmax/block=32"),
    ),
    "ties of conditional expectation": (
        rounding, "_enumerated_steps", lambda loss, shape, mean, lo, hi, free: lo.copy(), test_rounding.test_ties_go_up_and_levels_stay,
    ),
    "worse ends": (
        rounding, "_quadratic_steps", lambda loss, shape, mean, lo, hi, free: hi.copy(),
        lambda: test_rounding.test_quadratic_and_enumerated_paths_are_one("int4/absmax/block=32"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("mutation", ELSEWHERE)
def test_wrong_programs_fail_other_tests(mutation, monkeypatch):
    owner, name, wrong, test = ELSEWHERE[mutation]
    test()
    monkeypatch.setattr(owner, name, wrong)
    if name in gradients.PER_SAMPLE:
        monkeypatch.setitem(gradients.PER_SAMPLE, name, wrong)
    with pytest.raises(AssertionError):
        test()


# --- promises --------------------------------------------------------------------------------------------------------


def promise(monkeypatch, **changes):
    """Every scale rule now promises otherwise."""
    parse = Quantizer.parse

    def parsed(text):
        q = parse(text)
        if isinstance(text, Quantizer):
            return q
        rule = q.scale.promise
        return dataclasses.replace(
            q, scale=dataclasses.replace(q.scale, promise=lambda book: rule(book)._replace(**changes))
        )

    monkeypatch.setattr(Quantizer, "parse", parsed)


# Format, the promise made wrong, the claim that notices.
WRONG_PROMISES = (
    ("ternary/absmean", {"unbiased": True}, "C1"),
    ("mxfp4", {"continuous": True}, "C6"),
    ("int4/slack1.1", {"fixed": True}, "C4"),
    ("int4full/absmax7.5", {"fixed": True}, "C4"),
    ("int4", {"unbiased": False}, "C1"),
    ("nf4", {"continuous": False}, "C6"),
    ("int2", {"fixed": False}, "C4"),
)


@pytest.mark.parametrize(("text", "changes", "id"), WRONG_PROMISES, ids=[f"{t}-{i}" for t, _, i in WRONG_PROMISES])
def test_wrong_promises_are_surprises(text, changes, id, monkeypatch, capsys):
    """One that is broken, and one that denies what holds; the command says which and exits with 1."""
    arguments = [
        "verify",
        "--formats",
        text,
        "--claims",
        id,
        "--evidence",
        "exhaustive",
        "property",
        "--processes",
        "1",
    ]
    with pytest.raises(SystemExit) as honest:
        cli.main(arguments)
    assert honest.value.code == 0 and "UNEXPECTED" not in capsys.readouterr().out
    promise(monkeypatch, **changes)
    with pytest.raises(SystemExit) as wrong:
        cli.main(arguments)
    out = capsys.readouterr().out
    assert wrong.value.code == 1
    assert f"UNEXPECTED {text} {id}" in " ".join(out.split())
    assert "0 against expectation" not in out

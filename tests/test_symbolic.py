"""The algebraic proofs hold for the kernels as they are, and fail for kernels that are wrong."""

import numpy as np
import pytest
import sympy as sp

from lotion_theory import kernels
from lotion_theory.theory import symbolic
from lotion_theory.theory.symbolic import _lift

ALL = [proof for proofs in symbolic.PROOFS.values() for proof in proofs]


@pytest.mark.parametrize("proof", ALL, ids=lambda p: f"{p.claim}-{p.name}")
def test_proves(proof):
    result = proof.run()
    assert result.proved, result.detail
    assert result.counterexample is None
    assert result.seconds >= 0


def test_proofs_are_well_formed():
    assert len({(p.claim, p.name) for p in ALL}) == len(ALL)
    for claim, proofs in symbolic.PROOFS.items():
        for proof in proofs:
            assert proof.claim == claim
            assert proof.scope in symbolic.SCOPES
            assert proof.method == "sympy"
            assert proof.statement and "\n" not in proof.statement and "  " not in proof.statement
    # C18 rests on a cited theorem; what is proved is its counterpart for straight-through training.
    assert {f"C{i}" for i in range(1, 23)} - {"C18"} | {"C18b", "C21b"} == set(symbolic.PROOFS)


def test_run_all_selects_and_names_what_it_lacks():
    answers = symbolic.run_all(["C2", "C1"])
    assert [p.claim for p, _ in answers] == ["C2"] * len(symbolic.PROOFS["C2"]) + ["C1"] * len(symbolic.PROOFS["C1"])
    assert all(result.proved for _, result in answers)
    with pytest.raises(KeyError, match=r"'C99'.*C1, C2.*C22"):
        symbolic.run_all(["C99"])


# Every formula of the kernels that algebra can see, made wrong in one way each, and the claims that must notice.
MUTATIONS = {
    "probability of going down": ("prob_up", lambda w, lo, hi: (hi - w) / (hi - lo), ["C1", "C3", "C6", "C8"]),
    "probability without the guard": ("prob_up", lambda w, lo, hi: (w - lo) / (hi - lo), ["C3"]),
    "probability one half": ("prob_up", lambda w, lo, hi: (w - lo) / ((hi - lo) * 2) + 0.25, ["C1", "C10"]),
    "levels swapped": ("select", lambda lo, hi, up: hi * (up == 0) + lo * up, ["C1", "C4", "C5", "C13"]),
    "nearest-rounding variance": ("variance", lambda w, lo, hi: (hi - lo) * (hi - lo) / 12, ["C2", "C3", "C8", "C16"]),
    "variance too small": (
        "variance",
        lambda w, lo, hi: (hi - w) * (w - lo) / 2,
        ["C2", "C8", "C9", "C16", "C17", "C21"],
    ),
    "derivative in w, sign": ("variance_dw", lambda w, lo, hi: (w - lo) - (hi - w), ["C14", "C15", "C18b", "C22"]),
    "derivative in w, one side": ("variance_dw", lambda w, lo, hi: hi - w, ["C14", "C15", "C18b"]),
    "derivative in lo, sign": ("variance_dlo", lambda w, lo, hi: hi - w, ["C15"]),
    "derivative in hi, other end": ("variance_dhi", lambda w, lo, hi: hi - w, ["C15"]),
    "anchor: no lower level": ("variance_danchor", lambda w, lo, hi, c_lo, c_hi: c_hi * (w - lo), ["C15", "C22"]),
    "anchor: detached": ("variance_danchor", lambda w, lo, hi, c_lo, c_hi: 0 * w, ["C15"]),
    "probability in lo, sign": ("prob_up_dlo", lambda w, lo, hi: (hi - w) / ((hi - lo) * (hi - lo)), ["C15"]),
    "probability in hi, power": ("prob_up_dhi", lambda w, lo, hi: -(w - lo) / (hi - lo), ["C15"]),
    "third moment, sign": ("third_moment", lambda w, lo, hi: (hi - w) * (w - lo) * ((w - lo) - (hi - w)), ["C2", "C9"]),
    "target not divided by p": ("mixture_target", lambda m, t, p: m - (1 - p) * t, ["C1", "C4", "C6"]),
    "target without the threshold": ("mixture_target", lambda m, t, p: m / p, ["C1", "C6"]),
    "nearest goes up": ("compare_distances", lambda w, lo, hi: (True, False), ["C12", "C18b"]),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_wrong_kernels_are_caught(mutation, monkeypatch):
    name, wrong, claims = MUTATIONS[mutation]
    monkeypatch.setattr(kernels, name, wrong)
    for claim in claims:
        failed = [result for proof, result in symbolic.run_all([claim]) if not result.proved]
        assert failed, f"{claim} does not notice: {mutation}"
        assert all(result.detail for result in failed)


def test_every_kernel_is_pinned():
    public = {name for name, value in vars(kernels).items() if callable(value) and not name.startswith("_")}
    # Comparisons of symbols and rounding errors are left to the solver; the weighted variance has the test below.
    solved = {"goes_up", "pick", "difference_error", "distances", "weighted_variance"}
    assert public - {name for name, _, _ in MUTATIONS.values()} == solved


def test_the_weighted_variance_is_the_weight_times_the_variance():
    h, *cell = sp.symbols("h w lo hi")
    assert sp.expand(kernels.weighted_variance(h, *cell) - h * kernels.variance(*cell)) == 0
    # The order matters in floating point: no overflow where the weight is 0.
    assert kernels.weighted_variance(*np.float32([0, 1e30, 0, 3e30])) == 0


def test_counterexample_separates(monkeypatch):
    monkeypatch.setattr(kernels, "variance", lambda w, lo, hi: (hi - w) * (w - lo) / 12)
    (result,) = (r for p, r in symbolic.run_all(["C2"]) if p.name == "variance")
    point = {name: sp.Rational(value) for name, value in result.counterexample.items()}
    a, b = point["a"], point["b"]
    # With lo = w - a and hi = w + b the variance is a b; the residual is what the wrong formula leaves out.
    assert 0 < a and 0 < b
    assert point["residual"] == a * b - a * b / 12


def test_nothing_checked_is_not_a_proof():
    registry = _lift.Registry("sympy", _lift.check)

    @registry.proof("C1", "nothing")
    def empty():
        yield from ()

    assert not registry.proofs["C1"][0].run().proved
    with pytest.raises(ValueError, match="unknown scope 'everywhere'; valid: any, uniform"):
        registry.proof("C1", "nothing", "everywhere")


@pytest.mark.parametrize("expr", ["x/x - 1", "(x**2-y**2)/(x-y) - x - y", "1/(x*(x+1)) - 1/x + 1/(x+1)"])
def test_zero_is_recognised(expr):
    assert _lift.is_zero(sp.sympify(expr))


@pytest.mark.parametrize("expr", ["x - y", "1/x", "zoo", "nan", "(x+1)**2 - x**2 - 2*x"])
def test_anything_else_is_not_zero(expr):
    assert not _lift.is_zero(sp.sympify(expr))

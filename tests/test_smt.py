"""The solver's proofs hold for the kernels as they are, and fail for kernels that are wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

z3 = pytest.importorskip("z3")

from lotion_theory import kernels  # noqa: E402
from lotion_theory.theory import smt, symbolic  # noqa: E402
from lotion_theory.theory.smt import _lift  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
ALL = [proof for proofs in smt.PROOFS.values() for proof in proofs]


@pytest.mark.parametrize("proof", ALL, ids=lambda p: f"{p.claim}-{p.name}")
def test_proves(proof):
    result = proof.run()
    assert result.proved, result.detail
    # A statement that something exists comes with the thing, and no other statement comes with a point.
    assert (result.counterexample is not None) == ("(witness)" in proof.statement)


def test_proofs_are_well_formed():
    names = {(p.claim, p.name) for p in ALL} | {(p.claim, p.name) for ps in symbolic.PROOFS.values() for p in ps}
    assert len(names) == len(ALL) + sum(map(len, symbolic.PROOFS.values()))
    for proof in ALL:
        assert proof.scope in smt.SCOPES
        assert proof.method == "z3"
        assert proof.statement and "\n" not in proof.statement and "  " not in proof.statement


def uniform_noise(w, lo, hi):
    """Mean square of a uniform error in the whole cell: the variance that does not depend on the weight."""
    return (hi - lo) * (hi - lo) / 12


# One wrong formula each, and the proofs that must notice.
MUTATIONS = {
    "probability of going down": ("prob_up", lambda w, lo, hi: (hi - w) / (hi - lo), "uniform_decides"),
    "probability above one": ("prob_up", lambda w, lo, hi: (w - lo) * 2 / (hi - lo), "uniform_decides smooth_bound"),
    "up where not below": ("goes_up", lambda w, lo, hi, u: (w - lo) < u * (hi - lo), "uniform_decides"),
    "up too often": ("goes_up", lambda w, lo, hi, u: (u - 0.25) * (hi - lo) < (w - lo), "levels_are_fixed"),
    "levels swapped": ("select", lambda lo, hi, up: hi * (up == 0) + lo * up, "levels_are_fixed monotone_coupling"),
    "select by difference": ("select", lambda lo, hi, up: lo + (hi - lo) * up, "select_is_exact"),
    "pick off the lattice": ("pick", lambda w, lo, hi, u: w, "support"),
    "pick ignores u": ("pick", lambda w, lo, hi, u: lo, "levels_are_fixed block_scale_is_fixed"),
    "variance without the weight": ("variance", uniform_noise, "variance_range smooth_bound"),
    "third moment": ("third_moment", lambda w, lo, hi: (hi - w) * (w - lo) * (hi - lo), "third_moment_range"),
    "target not divided by p": ("mixture_target", lambda m, t, p: m - (1 - p) * t, "sr_targets_stay_inside"),
    "derivative, sign": ("variance_dw", lambda w, lo, hi: (w - lo) - (hi - w), "smoothed_points_to_lattice"),
    "nearest, reversed": (
        "compare_distances",
        lambda w, lo, hi: (hi - w > w - lo, hi - w == w - lo),
        "straight_through_points_to_threshold cast_lipschitz_bound nearest_is_exact",
    ),
    "nearest, without the rounding errors": (
        "compare_distances",
        lambda w, lo, hi: (w - lo > hi - w, w - lo == hi - w),
        "nearest_is_exact",
    ),
    "half of the rounding error": ("difference_error", lambda a, b: (a - (a - b)) - b, "difference_error_is_exact"),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_wrong_kernels_are_caught(mutation, monkeypatch):
    name, wrong, proofs = MUTATIONS[mutation]
    monkeypatch.setattr(kernels, name, wrong)
    for proof in ALL:
        if proof.name in proofs.split():
            result = proof.run()
            assert not result.proved, f"{proof.name} does not notice: {mutation}"
            assert "refuted" in result.detail and result.counterexample


def test_every_named_proof_exists():
    assert {name for _, _, names in MUTATIONS.values() for name in names.split()} <= {p.name for p in ALL}


def test_an_impossible_assumption_proves_nothing():
    x = z3.Real("x")
    assert not _lift.check(_lift.Forall([x < 0, x > 0], x == 1))[0]
    assert not _lift.check(_lift.Exists([x < 0, x > 0]))[0]


def test_counterexample_is_a_point():
    x, y = z3.Reals("x y")
    holds, why, point = _lift.check(_lift.Forall([x > y], x * x > y * y))
    assert not holds and why == "refuted"
    values = {name: z3.simplify(z3.RealVal(value)).as_fraction() for name, value in point.items()}
    assert values["x"] > values["y"] and values["x"] ** 2 <= values["y"] ** 2


def test_division_by_zero_is_not_assumed_away():
    k = _lift.Kernels()
    x, zero = z3.Reals("x zero")
    quotient = (_lift.Term(x, k.facts) / _lift.Term(zero, k.facts)).ref
    assert not _lift.check(_lift.Forall([zero == 0, *k.facts], quotient == x))[0]


def test_missing_solver_says_what_to_install():
    code = "import sys; sys.modules['z3'] = None; import lotion_theory.theory.symbolic; import lotion_theory.theory.smt"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode != 0
    assert "ImportError" in done.stderr and "lotion-theory[proofs]" in done.stderr

"""The claims: complete, well formed, true where they should be and refuted where the theory says so."""

import dataclasses
import math
import operator
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lotion_theory import Quantizer
from lotion_theory.formats.catalog import FORMATS, formats
from lotion_theory.theory.claims import CLAIMS, EVIDENCE, Outcome, _base, blocks, floats, laws
from lotion_theory.theory.claims.rational import Rational, rational
from lotion_theory.theory.verification import check
from tests.smoothing_cases import array

# --- the registry ----------------------------------------------------------------------------------------------------


def test_every_claim_of_the_theory_is_there():
    """C1 ... C22, in order, variants after their number; each with a check, and each check named once."""
    numbers = [int(id[1:].rstrip("bcd")) for id in CLAIMS]
    assert sorted(set(numbers)) == list(range(1, 23))
    assert list(CLAIMS) == sorted(CLAIMS, key=lambda id: (int(id[1:].rstrip("bcd")), id))
    for id, claim in CLAIMS.items():
        assert claim.id == id
        assert claim.kind in ("equality", "bound")
        assert claim.title and claim.statement and "\n" not in claim.statement
        assert claim.checks, f"{id} has no check"
        assert {level for level, _, _ in claim.checks} <= set(EVIDENCE)
        names = [name for _, name, _ in claim.checks]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("text", FORMATS)
def test_expectations_are_verdicts(text):
    """For every format: a reason not to apply, or an expectation; promises are those of the catalogue."""
    q = Quantizer.parse(text)
    (row,) = formats([text])
    for claim in CLAIMS.values():
        reason = claim.applies(q)
        assert reason is None or (isinstance(reason, str) and reason)
        assert claim.expected(q) in (True, False, None)
    assert CLAIMS["C1"].expected(q) is row.unbiased
    assert CLAIMS["C6"].expected(q) is row.continuous
    assert CLAIMS["C4"].expected(q) is row.support_fixed
    # A complex level is a pair of real ones.
    levels = len(q.codebook.levels) ** (2 if q.codebook.is_complex else 1)
    assert row.canonical == q.canonical and row.levels == levels


def test_registering_checks_its_arguments():
    with pytest.raises(ValueError, match="kind must be equality or bound, not 'inequality'"):
        _base.claim("C99", "x", "inequality", "y")
    assert "C99" not in CLAIMS
    with pytest.raises(ValueError, match="unknown evidence 'hearsay'; valid: proved, exhaustive, property"):
        CLAIMS["C1"].check("hearsay", "x")


# --- which formats keep which promise --------------------------------------------------------------------------------

# Format, E RR(w) = w, law continuous in w, support points fixed: as derived by hand, not read from the code.
TABLE = (
    ("int4/absmax/block=32", True, True, True),
    ("nf4/absmax/block=64", True, True, True),
    ("int4full/absmax7.5/block=32", False, True, False),
    ("int4full/absmax8/block=32", False, True, False),
    ("int4full/signed-absmax/block=32", False, False, True),
    # The same rule with its scale stored in fp16, as GGUF does: the leader itself is rounded, and comes out smaller.
    ("q4_0", False, False, False),
    ("int4full/gauge/block=32", True, True, True),
    ("int4/slack1.1/block=32", True, True, False),
    ("uint4/zp-int/block=32", False, False, False),
    ("uint2/zp-real", True, True, True),
    ("mxfp4", False, False, True),
    ("mxfp4/ceil", True, False, True),
    ("mxfp4/sr", True, True, True),
    ("nvfp4", False, False, False),
    ("nvfp4/up", True, False, False),
    ("nvfp4/sr", True, True, True),
    ("bitnet", False, True, False),
    ("ternary/l2l1", False, True, True),
    ("fairy", True, True, True),
    ("fairy/modulus", False, True, True),
)


# Seconds each, and of the same kind as others.
SLOW = ("nvfp4/sr", "fairy/modulus", "uint2/zp-real")


@pytest.mark.parametrize(
    ("text", "unbiased", "continuous", "fixed"),
    [pytest.param(*row, id=row[0], marks=[pytest.mark.slow] * (row[0] in SLOW)) for row in TABLE],
)
def test_verdicts_are_those_of_the_theory(text, unbiased, continuous, fixed):
    """Measured by the exact checks (the float one for a modulus, which is irrational), and declared by the scale rule."""
    q = Quantizer.parse(text)
    continuity = floats.float_continuity if q.scale.name == "modulus" else laws.exact_continuity
    found = [function(q) for function in (laws.exact_mean, continuity, laws.exact_support_fixed)]
    assert [o.counterexample is None for o in found] == [unbiased, continuous, fixed]
    assert all(o.checked > 0 for o in found)
    assert tuple(q.scale.promise(q.codebook)) == (unbiased, continuous, fixed)


def mean(text, *w):
    """``E RR(w)`` of exact weights."""
    return Quantizer.parse(text).with_partition("tensor").mean(array(w)).tolist()


def moves(text, *w):
    """Whether a block is not a fixed point of RR."""
    q = Quantizer.parse(text).with_partition("tensor")
    return bool((q.variance(array(w)) != 0).any() or (q.mean(array(w)) != array(w)).any())


def reaches(text, source, target):
    """Whether RR(source) is ``target`` with positive probability."""
    from lotion_theory import law

    points = law(array(source), Quantizer.parse(text).with_partition("tensor")).points
    return bool((points == array(target)).all(axis=1).any())


def test_smallest_counterexamples():
    """Those one can follow by hand."""
    h = Fraction(1, 2)
    tiny = Fraction(1, 2**20)
    assert mean("int4full/absmax7.5", 15 * h) == [7]
    assert reaches("int4full/absmax7.5", (-15 * h, 1), (-8, 1)) and moves("int4full/absmax7.5", -8, 1)
    assert reaches("int4full/signed-absmax", (8, -8 + tiny), (8, -7))
    assert reaches("int4full/signed-absmax", (8 - tiny, -8), (7 - 7 * tiny / 8, -8 + tiny)) is False
    assert mean("int4full/signed-absmax", 8 - tiny, -8)[0] == 7
    assert mean("mxfp4", 7) == [6] and mean("mxfp4", 8 - tiny) == [6] and mean("mxfp4", 8) == [8]
    assert not moves("mxfp4/ceil", 6, h)
    assert reaches("mxfp4/ceil", (6 + tiny, h), (6, 0)) and reaches("mxfp4/ceil", (6 + tiny, h), (6, 1))
    assert mean("nvfp4", Fraction(63, 10)) == [6]
    scales = [
        Quantizer.parse("nvfp4/tensor").branches(array([v]))[0].draw.lattice.top[0, 0]
        for v in (Fraction(51, 8) - tiny, Fraction(51, 8) + tiny)
    ]
    assert scales == [1, Fraction(9, 8)]
    assert reaches("bitnet", (2, 1, 0, 1), (1, 1, 0, 1)) and moves("bitnet", 1, 1, 0, 1)
    assert Quantizer.parse("fairy/modulus").mean(array([[3, 4]])).tolist() == [[2, 3]]
    assert Quantizer.parse("fairy").mean(array([[3, 4]])).tolist() == [[3, 4]]


def test_nested_scale_of_mxfp4():
    """T = 6, T⁺ = 8: a leader of 7 draws either scale with probability ½ and is 6 or 8; 6.5 beside it has conditional mean
    (6.5 - ½·6)/½ = 7 on the coarse lattice {..., 6, 8}."""
    q = Quantizer.parse("mxfp4/sr/tensor")
    fine, coarse = q.branches(array([7, Fraction(13, 2)]))
    assert fine.prob[0, 0] == coarse.prob[0, 0] == Fraction(1, 2)
    assert fine.cell.target.tolist() == [[6, 6]] and coarse.cell.target.tolist() == [[8, 7]]
    assert (coarse.cell.lo[0, 1], coarse.cell.hi[0, 1]) == (6, 8)


# --- every claim -----------------------------------------------------------------------------------------------------


def consistent(row):
    """The verdict is what the two sides say."""
    gap = row.measured - row.theoretical
    return (gap if row.kind == "bound" else abs(gap)) <= row.tolerance


@pytest.mark.parametrize("text", ["int2/absmax/block=32", "uint2/zp-int/block=32"])
def test_all_claims_on_a_format(text):
    """No surprise, and each row's numbers agree with its verdict."""
    q = Quantizer.parse(text)
    for claim in CLAIMS.values():
        if not claim.per_format or claim.applies(q):
            continue
        rows = check(claim, q)
        assert rows, f"{claim.id} checks nothing"
        for row in rows:
            assert not row.surprising, row
            assert consistent(row) == (row.verdict == "holds"), row
            assert bool(row.counterexample) == (row.verdict == "fails"), row
            assert math.isfinite(row.measured) and math.isfinite(row.theoretical) and row.tolerance >= 0
            assert row.checked > 0 and row.format == str(q)


@pytest.mark.parametrize(
    "text",
    [
        "nf4",
        "int4full/absmax7.5",
        "int4full/gauge",
        "q4_0",
        "uint4/zp-int",
        "mxfp4/ceil",
        "mxfp4/sr",
        "nvfp4/sr",
        "bitnet",
    ],
)
def test_losses_on_a_format(text):
    """Claims on losses and gradients, on every kind of scale."""
    q = Quantizer.parse(text)
    for id in ("C2", "C8", "C8b", "C9", "C14", "C15", "C17", "C19"):
        if not CLAIMS[id].applies(q):
            for row in check(CLAIMS[id], q):
                assert not row.surprising, row
                assert consistent(row) == (row.verdict == "holds"), row


@pytest.mark.slow
@pytest.mark.parametrize("text", FORMATS)
def test_all_claims_on_all_formats(text):
    test_all_claims_on_a_format(text)


@pytest.mark.parametrize("id", [c.id for c in CLAIMS.values() if not c.per_format])
def test_claims_without_a_format(id):
    rows = check(CLAIMS[id], None)
    assert rows and all(r.verdict == "holds" and consistent(r) and r.format == "any" for r in rows)


def test_a_drawn_scale_needs_more_than_the_diagonal():
    """C8 fails there with the program's own counterexample, and C8b repairs it."""
    q = Quantizer.parse("mxfp4/sr")
    (row,) = check(CLAIMS["C8"], q)
    assert row.verdict == row.expected == "fails" and "w = " in row.counterexample
    assert [r.verdict for r in check(CLAIMS["C8b"], q)] == ["holds"]


@pytest.mark.parametrize("text", ["nvfp4/e4m3-nearest-2level", "nvfp4/e4m3-up-2level"])
def test_nothing_judged_is_no_verdict(text):
    """Support points move there (C4 fails), and whether another weight is rounded to them with certainty is not searched."""
    q = Quantizer.parse(text)
    assert {r.verdict for r in check(CLAIMS["C4"], q, ["exhaustive"])} == {"fails"}
    assert not [r for r in check(CLAIMS["C7"], q) if r.verdict == "holds"]


def test_a_refutation_stands_alone(monkeypatch):
    """A search that found nothing is no evidence beside one that found a counterexample; checks of nothing are no rows."""
    claim = _base.Claim("C1", "t", "equality", "s", _base.always, lambda q: None)
    claim.check("exhaustive", "finds")(lambda q: Outcome(1, 0, 3, "w = 1"))
    claim.check("property", "misses")(lambda q: Outcome(0, 0, 5))
    claim.check("property", "looks at nothing")(lambda q: Outcome(0, 0, 0))
    q = Quantizer.parse("int4")
    assert [(r.check, r.verdict) for r in check(claim, q)] == [("finds", "fails")]
    assert [r.check for r in check(claim, q, ["property"])] == ["misses"]
    # The level that would find a predicted failure was left out: no verdict on the prediction.
    predicted = _base.Claim("C1", "t", "equality", "s", lambda q: False, lambda q: None, checks=claim.checks)
    assert [r.expected for r in check(predicted, q, ["property"])] == ["open"]
    assert [r.expected for r in check(predicted, q)] == ["fails"]
    claim.checks.pop(0)
    missed = _base.Claim("C1", "t", "equality", "s", lambda q: False, lambda q: None, checks=claim.checks[:1])
    assert [r.surprising for r in check(missed, q)] == [True]


# --- the blocks that claims look at ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["int4/absmax", "mxfp4/sr", "int4full/absmax7.5", "uint4/zp-int", "fairy", "nvfp4/e4m3-up-2level", "int4/frozen"],
)
def test_probes_and_supports(text):
    """Read-only blocks, the leader at the clip edge and beside it among them; supports are laws with the right mean."""
    q = Quantizer.parse(text)
    top = max(q.codebook.high, -q.codebook.low)
    for batch in blocks.batches(q):
        points, probs = batch.supports
        assert (probs.sum(axis=0) == 1).all()
        assert ((probs[:, :, None] * points).sum(axis=0) == batch.law.mean()).all()
        back = batch.q.blocks(blocks.real_blocks(q, batch.x))[0]
        assert (back == batch.x).all()
    if not q.codebook.is_complex:
        single = set(blocks.probes(q, 1)[:, 0])
        step = Fraction(1, 4096)
        assert {0, top, -top, top + step, top - step} <= single
        with pytest.raises(ValueError, match="read-only"):
            blocks.probes(q, 1)[0] = 0


def test_probes_are_simplest_first():
    sizes = [blocks._complexity(v) for v in blocks.magnitudes(Quantizer.parse("e2m1"))]
    assert sizes == sorted(sizes)


def test_float_blocks_cover_the_types():
    q = Quantizer.parse("mxfp4/sr")
    for kind in floats.float_types():
        local, w = floats.random_blocks(q, kind, "test")
        assert local.partition.size == w.shape[1] == 32
        x = np.abs(w.astype(np.float64))
        assert np.isfinite(x).all() and x.max() <= float(q.codebook.high * q.scale.largest_scale)
        assert (x.max(axis=1) > 0).all()
        # A leader on a breakpoint leads: nothing in its block is larger.
        again = floats.random_blocks(q, kind, "test")[1]
        assert np.array_equal(w.astype(np.float64), again.astype(np.float64))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Fraction(1, 3), "1/3"), (Fraction(5, 2), "2.5"), (Fraction(-7), "-7"), (Fraction(1, 2**40), "1/1099511627776"),
        (0.5, "0.5"), (3, "3"), ((Fraction(1, 2), -1), "(0.5, -1)"), (np.array([Fraction(3)], dtype=object), "3"),
        (np.array([Fraction(3), Fraction(1, 7)], dtype=object), "(3, 1/7)"), ([1.25], "(1.25)"),
    ],
)  # fmt: skip
def test_numbers_as_people_write_them(value, text):
    assert _base.show(value) == text


def test_complex_blocks_as_text():
    pairs = array([[3, 4], [Fraction(-1, 2), -1]])
    assert blocks.describe(pairs) == "(3+4i, -0.5-1i)"
    assert blocks.describe(pairs[:1]) == "3+4i"


def test_w1_of_known_laws():
    half = Fraction(1, 2)
    assert laws.marginal_w1([(0, half), (1, half)], [(half, 1)]) == half
    assert laws.marginal_w1([(0, 1)], [(3, 1)]) == 3
    assert laws.marginal_w1([(0, half), (2, half)], [(0, half), (2, half)]) == 0


# --- exact numbers ---------------------------------------------------------------------------------------------------

FRACTIONS = st.fractions(max_denominator=60) | st.fractions()
EXACT = FRACTIONS | st.integers(-9, 9) | st.booleans()
ARITHMETIC = (operator.add, operator.sub, operator.mul, operator.truediv)
ORDER = (operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne)


@given(FRACTIONS, EXACT | st.floats(-9, 9))
def test_rationals_are_fractions(x, other):
    """Every operation has the value that it has on fractions, in lowest terms, and stays exact where that is."""
    mine = rational(x)
    others = [other] if isinstance(other, (int, float)) else [other, rational(other)]
    for ask in (*ARITHMETIC, *ORDER):
        for theirs in others:
            for swapped in (False, True):
                pair, plain = (mine, theirs), (x, other)
                if swapped:
                    pair, plain = pair[::-1], plain[::-1]
                if ask is operator.truediv and plain[1] == 0:
                    with pytest.raises(ZeroDivisionError):
                        ask(*pair)
                    continue
                found, stated = ask(*pair), ask(*plain)
                assert found == stated
                if isinstance(stated, Fraction):
                    assert type(found) is Rational
                    assert found.as_integer_ratio() == stated.as_integer_ratio()
    assert (str(mine), float(mine), hash(mine), bool(mine)) == (str(x), float(x), hash(x), bool(x))
    assert (-mine, abs(mine), mine**2, mine**3, math.floor(mine)) == (-x, abs(x), x**2, x**3, math.floor(x))


def test_rationals_stay_exact_in_laws():
    """A law computed from rationals is made of rationals, whatever fractions stand in the format's tables."""
    for text in ("int4/absmax", "mxfp4/sr", "nf4/absmax"):
        for batch in blocks.batches(Quantizer.parse(text)):
            for exact in (batch.law.mean(), batch.law.variance(), batch.supports[1]):
                assert {type(v) for v in exact.ravel()} == {Rational}


@pytest.mark.parametrize("text", ["int4full/absmax7.5", "nvfp4/e4m3-up-2level", "fairy"])
def test_shared_batches_change_no_row(text):
    """What checks have in common is computed once; alone, each finds the same."""
    q = Quantizer.parse(text)
    chosen = [CLAIMS[id] for id in ("C1", "C2", "C3", "C4", "C7") if not CLAIMS[id].applies(q)]
    alone = [dataclasses.replace(r, seconds=0) for c in chosen for r in check(c, q, ["exhaustive"])]
    with blocks.shared_batches():
        together = [dataclasses.replace(r, seconds=0) for c in chosen for r in check(c, q, ["exhaustive"])]
        assert blocks.batches(q) is blocks.batches(q)
    assert together == alone
    assert blocks.batches(q) is not blocks.batches(q)


def test_unfixed_points_are_those_that_round_again():
    """Trying each distinct support point once finds what trying all of them finds."""
    for text in ("int4full/absmax7.5", "mxfp4/ceil", "bitnet", "fairy/modulus"):
        for batch in blocks.batches(Quantizer.parse(text)):
            points, probs = batch.supports
            moved = [blocks.moved_blocks(batch.q, blocks.real_blocks(batch.q, p)) for p in points]
            assert np.array_equal(batch.unfixed, np.array(moved) & (probs > 0).astype(bool))

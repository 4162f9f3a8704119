"""Running the kernels on z3 terms (real numbers or IEEE floats), and deciding statements about them."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import count
from typing import Any

import z3

from ... import kernels
from ..symbolic._proof import Registry, Verdict

# A resource limit, not a time limit: the same verdict on a fast and on a busy machine.
RESOURCES = 200_000_000


class Term:
    """A z3 real or float with the arithmetic the kernels expect.

    Division of reals by ``d`` introduces ``q`` with ``q d = n``: a solver of polynomial constraints is far faster
    without fractions. These definitions are appended to ``facts`` and become assumptions.
    """

    __slots__ = ("facts", "ref")
    __hash__ = None  # type: ignore[assignment]
    _fresh = count()

    def __init__(self, ref: Any, facts: list[Any]) -> None:
        self.ref, self.facts = ref, facts

    def _number(self, value: Any) -> Any:
        """``value`` in the sort of this term; truth values count as 0 and 1."""
        ref = lower(value)
        if z3.is_bool(ref):
            return z3.If(ref, self._number(1), self._number(0))
        if z3.is_expr(ref):
            return ref
        return z3.FPVal(float(ref), self.ref.sort()) if z3.is_fp(self.ref) else z3.RealVal(str(Fraction(ref)))

    def __add__(self, other: Any) -> "Term":
        return Term(self.ref + self._number(other), self.facts)

    def __sub__(self, other: Any) -> "Term":
        return Term(self.ref - self._number(other), self.facts)

    def __rsub__(self, other: Any) -> "Term":
        return Term(self._number(other) - self.ref, self.facts)

    def __mul__(self, other: Any) -> "Term":
        return Term(self.ref * self._number(other), self.facts)

    def __truediv__(self, other: Any) -> "Term":
        divisor = self._number(other)
        if z3.is_fp(self.ref):
            return Term(self.ref / divisor, self.facts)
        quotient = z3.Real(f"quotient!{next(Term._fresh)}")
        self.facts.append(z3.Implies(divisor != 0, quotient * divisor == self.ref))
        return Term(quotient, self.facts)

    def __neg__(self) -> "Term":
        return Term(-self.ref, self.facts)

    def __lt__(self, other: Any) -> "Truth":
        return Truth(self.ref < self._number(other))

    def __gt__(self, other: Any) -> "Truth":
        return Truth(self.ref > self._number(other))

    def __eq__(self, other: object) -> "Truth":  # type: ignore[override]
        right = self._number(other)
        return Truth(z3.fpEQ(self.ref, right) if z3.is_fp(self.ref) else self.ref == right)

    __radd__, __rmul__ = __add__, __mul__


class Truth:
    """A z3 truth value; ``== 0`` negates it, as it does for a Boolean array."""

    __slots__ = ("ref",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, ref: Any) -> None:
        self.ref = ref

    def __eq__(self, zero: object) -> "Truth":  # type: ignore[override]
        if zero != 0:
            raise TypeError("a truth value is only ever compared with 0")
        return Truth(z3.Not(self.ref))

    def __and__(self, other: "Truth") -> "Truth":
        return Truth(z3.And(self.ref, other.ref))

    def __or__(self, other: "Truth") -> "Truth":
        return Truth(z3.Or(self.ref, other.ref))


def lower(value: Any) -> Any:
    """The z3 term behind ``value``; plain numbers and tuples pass through."""
    if isinstance(value, tuple):
        return tuple(lower(v) for v in value)
    return value.ref if isinstance(value, Term | Truth) else value


class Kernels:
    """``kernels`` with z3 terms in and out; ``facts`` collects the definitions of the quotients met on the way.

    Functions are looked up at each call, so a replaced one is the one proved.
    """

    def __init__(self) -> None:
        self.facts: list[Any] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            return lower(getattr(kernels, name)(*(self._lift(a) for a in args)))

        return call

    def _lift(self, value: Any) -> Any:
        if not z3.is_expr(value):
            return value
        return Truth(value) if z3.is_bool(value) else Term(value, self.facts)

    def law(self, w: Any, lo: Any, hi: Any) -> list[tuple[Any, Any]]:
        """``[(1 - p, lower point), (p, upper point)]`` of randomized rounding."""
        p = self.prob_up(w, lo, hi)
        return [(1 - p, self.select(lo, hi, 0)), (p, self.select(lo, hi, 1))]


@dataclass(frozen=True)
class Forall:
    """``goal`` follows from ``given``, which must itself be satisfiable."""

    given: list[Any]
    goal: Any


@dataclass(frozen=True)
class Exists:
    """``given`` is satisfiable: the statement is that such a point exists, and the point is reported."""

    given: list[Any]


def _value(model: Any, symbol: Any) -> str:
    value = model[symbol]
    if z3.is_fp(value) and not (value.isNaN() or value.isInf()):
        value = z3.simplify(z3.fpToReal(value))
    return str(value)


def _point(model: Any) -> dict[str, str]:
    constants = [d for d in model.decls() if d.arity() == 0 and "!" not in d.name()]
    return {d.name(): _value(model, d) for d in sorted(constants, key=lambda d: d.name())}


def _solver(given: list[Any]) -> Any:
    solver = z3.Solver()
    solver.set("rlimit", RESOURCES)
    solver.add(*given)
    return solver


def check(obligation: object) -> Verdict:
    """Decide a :class:`Forall` or an :class:`Exists`; an undecided one counts as not proved."""
    if isinstance(obligation, Exists):
        solver = _solver(obligation.given)
        answer = solver.check()
        if answer == z3.sat:
            return True, "", _point(solver.model())
        return False, f"no such point ({answer})", None
    if not isinstance(obligation, Forall):
        raise TypeError(f"not an obligation: {obligation!r}")
    solver = _solver(obligation.given)
    answer = solver.check()
    if answer != z3.sat:
        return False, f"the assumptions are not known to be satisfiable ({answer})", None
    solver = _solver([*obligation.given, z3.Not(obligation.goal)])
    answer = solver.check()
    if answer == z3.unsat:
        return True, "", None
    if answer == z3.sat:
        return False, "refuted", _point(solver.model())
    return False, "undecided within the resource limit", None


registry = Registry("z3", check)


def cell(k: Kernels, suffix: str = "") -> tuple[Any, Any, Any, list[Any]]:
    """``(w, lo, hi, given)`` for a non-degenerate bracket of real numbers."""
    w, lo, hi = z3.Reals(f"w{suffix} lo{suffix} hi{suffix}")
    return w, lo, hi, [lo < hi, lo <= w, w <= hi]


def absolute(x: Any) -> Any:
    """``|x|`` of a real term."""
    return z3.If(x < 0, -x, x)


def minimum(first: Any, *others: Any) -> Any:
    """Smallest of some real terms."""
    for other in others:
        first = z3.If(other < first, other, first)
    return first

"""Running the kernels on sympy expressions, and deciding whether a rational function vanishes identically."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import sympy as sp

from ... import kernels
from ._proof import Registry, Verdict

Law = list[tuple[Any, Any]]  # (probability, point)


class Lifted:
    """A sympy expression with the arithmetic the kernels expect: truth values count as 0 and 1, which sympy itself
    refuses, and ``==`` asks whether two expressions are the same function."""

    __slots__ = ("expr",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, expr: Any) -> None:
        self.expr = sp.Integer(int(expr)) if isinstance(expr, bool) else sp.sympify(expr)

    def __add__(self, other: Any) -> "Lifted":
        return Lifted(self.expr + lower(other))

    def __sub__(self, other: Any) -> "Lifted":
        return Lifted(self.expr - lower(other))

    def __rsub__(self, other: Any) -> "Lifted":
        return Lifted(lower(other) - self.expr)

    def __mul__(self, other: Any) -> "Lifted":
        return Lifted(self.expr * lower(other))

    def __truediv__(self, other: Any) -> "Lifted":
        return Lifted(self.expr / lower(other))

    def __rtruediv__(self, other: Any) -> "Lifted":
        return Lifted(lower(other) / self.expr)

    def __neg__(self) -> "Lifted":
        return Lifted(-self.expr)

    def __eq__(self, other: object) -> bool:
        return is_zero(self.expr - lower(other))

    __radd__, __rmul__ = __add__, __mul__


def lower(value: Any) -> Any:
    """The sympy expression behind ``value``."""
    return value.expr if isinstance(value, Lifted) else Lifted(value).expr


class _LiftedKernels:
    """``kernels`` with sympy in and out. Functions are looked up at each call: a replaced one is the one proved."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args: lower(getattr(kernels, name)(*(Lifted(a) for a in args)))


K = _LiftedKernels()


def is_zero(expr: Any) -> bool:
    """Whether a rational function is identically zero: expanding the numerator over a common denominator decides it."""
    numerator, denominator = sp.fraction(sp.together(sp.sympify(expr)))
    return bool(sp.expand(numerator) == 0) and denominator != 0


def separating_point(expr: Any) -> dict[str, str] | None:
    """Rational values in (0, 1) of the symbols at which ``expr`` is not zero, with that value as ``residual``."""
    names = sorted(expr.free_symbols, key=str)
    for shift in range(1, 6):
        values = {s: sp.Rational(sp.prime(i + 1), sp.prime(i + 1 + shift)) for i, s in enumerate(names)}
        residual = sp.nsimplify(expr.subs(values))
        if residual != 0:
            return {str(s): str(v) for s, v in values.items()} | {"residual": str(residual)}
    return None


def check(obligation: object) -> Verdict:
    """A truth value must be true; anything else is a residual that must be the zero function."""
    if isinstance(obligation, bool):
        return obligation, "false", None
    if is_zero(obligation):
        return True, "", None
    residual = sp.factor(obligation)
    return False, f"residual {residual} is not zero", separating_point(residual)


registry = Registry("sympy", check)


def law(w: Any, lo: Any, hi: Any) -> Law:
    """The two-point law of randomized rounding, made of ``prob_up`` and ``select``."""
    p = K.prob_up(w, lo, hi)
    return [(1 - p, K.select(lo, hi, 0)), (p, K.select(lo, hi, 1))]


def ends(w: Any, lo: Any, hi: Any) -> Law:
    """The law as ``[(probability, up)]``, ``up`` being 1 where the point is ``hi``."""
    return [(p, int(is_zero(q - hi))) for p, q in law(w, lo, hi)]


def joint(laws: Sequence[Law]) -> Law:
    """Independent product of laws: points are tuples."""
    return [(sp.Mul(*(p for p, _ in atoms)), tuple(q for _, q in atoms)) for atoms in product(*laws)]


def expect(f: Callable[..., Any], atoms: Law) -> Any:
    """Expectation of ``f`` under a finite law."""
    return sp.Add(*(p * f(q) for p, q in atoms))


def around(suffix: str = "") -> tuple[Any, Any, Any]:
    """``(w, lo, hi)`` with ``lo = w - a < w < w + b = hi``: every non-degenerate bracket, without side conditions."""
    w = sp.Symbol(f"w{suffix}", real=True)
    a, b = sp.symbols(f"a{suffix} b{suffix}", positive=True)
    return w, w - a, w + b


def free(suffix: str = "") -> tuple[Any, Any, Any]:
    """``(w, lo, hi)`` as three independent symbols, for derivatives."""
    return sp.symbols(f"w{suffix} lo{suffix} hi{suffix}", real=True)

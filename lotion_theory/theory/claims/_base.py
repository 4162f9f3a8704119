"""What a claim is, and what checking it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from ...formats.quantizer import Quantizer

EVIDENCE = ("proved", "exhaustive", "property")


@dataclass(frozen=True)
class Outcome:
    """Result of one check.

    ``measured`` and ``theoretical``: the two sides at the worst case found. ``kind`` decides how they compare: for an
    equality they may differ by ``tolerance``, for a bound ``measured`` may exceed ``theoretical`` by ``tolerance``.
    ``counterexample``: the simplest case that breaks the claim, None where it held. ``checked``: how many cases.
    """

    measured: float
    theoretical: float
    checked: int
    counterexample: str | None = None
    tolerance: float = 0.0
    note: str = ""


# Takes the format, or None for claims that involve none.
Check = Callable[[Any], Outcome]


@dataclass(frozen=True)
class Claim:
    """A statement with its checks. ``expected(q)``: True, False, or None where the theory leaves it open.

    ``applies(q)``: None, or the reason why the claim does not make sense for a format. ``per_format`` is False for
    statements that involve no number format; they are checked once.
    """

    id: str
    title: str
    kind: str
    statement: str
    expected: Callable[[Quantizer], bool | None]
    applies: Callable[[Quantizer], str | None]
    per_format: bool = True
    checks: list[tuple[str, str, Check]] = field(default_factory=list)

    def check(self, evidence: str, name: str) -> Callable[[Check], Check]:
        """Register a check of this claim under an evidence level and a short name."""
        if evidence not in EVIDENCE:
            raise ValueError(f"unknown evidence {evidence!r}; valid: {', '.join(EVIDENCE)}")

        def register(function: Check) -> Check:
            self.checks.append((evidence, name, function))
            return function

        return register


CLAIMS: dict[str, Claim] = {}


def in_order(claims: dict[str, Claim]) -> None:
    """Sort a registry by number, then letter, whatever order the modules were imported in."""
    ordered = sorted(claims, key=lambda id: (int(id[1:].rstrip("bcd")), id))
    for id in ordered:
        claims[id] = claims.pop(id)


def always(_: Quantizer) -> bool:
    """Expected to hold for every format it applies to."""
    return True


def to_all(_: Quantizer) -> str | None:
    """A claim that makes sense for every format."""
    return None


def claim(
    id: str,
    title: str,
    kind: str,
    statement: str,
    expected: Callable[[Quantizer], bool | None] = always,
    applies: Callable[[Quantizer], str | None] = to_all,
    per_format: bool = True,
) -> Claim:
    """Create and register a claim; ``kind`` is ``equality`` or ``bound``."""
    if kind not in ("equality", "bound"):
        raise ValueError(f"claim {id}: kind must be equality or bound, not {kind!r}")
    CLAIMS[id] = Claim(id, title, kind, statement, expected, applies, per_format)
    return CLAIMS[id]


def real_only(q: Quantizer) -> str | None:
    """Reason for claims written for real coordinates."""
    return (
        "complex weights are two real ones, Re + Im and Re - Im, rounded as binary" if q.codebook.is_complex else None
    )


def one_lattice(q: Quantizer) -> bool:
    """Whether a block is rounded on one lattice, so that its weights are rounded independently."""
    return not q.scale.is_drawn


def unbiased(q: Quantizer) -> bool:
    """The rule's promise that nothing is clipped."""
    return q.scale.promise(q.codebook).unbiased


def is_continuous(q: Quantizer) -> bool:
    """The rule's promise that the law does not jump."""
    return q.scale.promise(q.codebook).continuous


def keeps_support(q: Quantizer) -> bool:
    """The rule's promise that support points stay."""
    return q.scale.promise(q.codebook).fixed


def show(x: Any) -> str:
    """A number or a vector as a person writes it: finite decimals as decimals, other rationals as fractions."""
    if isinstance(x, np.ndarray):
        return show(x.item()) if x.size == 1 else "(" + ", ".join(show(v) for v in x.tolist()) + ")"
    if isinstance(x, (list, tuple)):
        return "(" + ", ".join(show(v) for v in x) + ")"
    if isinstance(x, Fraction):
        denominator = x.denominator
        while denominator % 2 == 0:
            denominator //= 2
        while denominator % 5 == 0:
            denominator //= 5
        if denominator == 1 and len(f"{float(x):.12g}") <= 10 and Fraction(f"{float(x):.12g}") == x:
            return f"{float(x):.12g}"
        return str(x) if len(str(x)) <= 24 else f"{float(x):.6g}"
    return f"{x:.6g}" if isinstance(x, float) else str(x)


def worst(measured: np.ndarray, theoretical: np.ndarray, broken: np.ndarray) -> tuple[float, float]:
    """Both sides as floats at the entry furthest off, or at the first entry where nothing is."""
    gap = abs(measured - theoretical)
    at = int(np.argmax(np.asarray(gap, dtype=float).ravel())) if broken.any() else 0
    return float(measured.ravel()[at]), float(theoretical.ravel()[at])

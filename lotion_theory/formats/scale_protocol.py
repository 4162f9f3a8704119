"""What a scale rule is: the lattices it draws, how they move with the weights, and what it promises.

Shapes: ``x`` is always (blocks, weights per block); anchors, probabilities and thresholds are (blocks, 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from .._arrays import Array
from .codebooks import Codebook
from .grammar import check_name
from .lattice import Lattice
from .scale_formats import ScaleFormat


class Promise(NamedTuple):
    """What a scale rule guarantees with a codebook, in exact arithmetic.

    ``unbiased``: ``E[RR(w)] = w``. ``continuous``: the law of ``RR(w)`` is continuous in ``w``, scale included.
    ``fixed``: every support point of ``RR(w)`` is itself a fixed point, its own scale included.
    """

    unbiased: bool
    continuous: bool
    fixed: bool


@dataclass
class Draw:
    """One lattice that may be drawn. ``prob``: its probability, None for certainty. ``sign``: d prob / d p, 0 or ±1.

    ``mixture``: None, or ``(threshold, p, reach)``: magnitudes above ``threshold`` are rounded from their conditional
    mean, which for the largest one is exactly ``reach``.
    """

    lattice: Lattice
    prob: Array | None = None
    sign: int = 0
    mixture: tuple[Array, Array, Array] | None = None

    def of(self, blocks: slice) -> Draw:
        """The same for some of the blocks."""
        prob = None if self.prob is None else self.prob[blocks]
        mixture = None
        if self.mixture is not None:
            threshold, p, reach = (part[blocks] for part in self.mixture)
            mixture = threshold, p, reach
        return Draw(self.lattice.of(blocks), prob, self.sign, mixture)


@dataclass
class Jacobian:
    """Derivatives of the anchors in the weights of their block, shape (blocks, n), for unrounded anchors.

    ``shared``: None, or ``(factor, rate)`` for ``top = factor * g`` with one ``g`` for the whole tensor and ``rate``
    its derivative in every weight. ``p``: derivative of the probability of the coarse lattice. Ties for the largest
    magnitude share the derivative equally: the mean of the one-sided gradients, a Clarke subgradient.
    """

    top: Array | None = None
    bottom: Array | None = None
    p: Array | None = None
    shared: tuple[Array, Array] | None = None


@dataclass(frozen=True)
class ScaleRule:
    """``name`` as written in format strings; ``draws(x, book, kind)``; ``jacobian(x, book, kind)``; ``promise(book)``.

    ``check(book)`` raises ValueError where the rule does not apply to a codebook. What else a caller may ask for is a
    trait below; none compares names.
    """

    name: str
    summary: str
    draws: Callable[[Array, Codebook, str], list[Draw]]
    jacobian: Callable[[Array, Codebook, str], Jacobian]
    promise: Callable[[Codebook], Promise]
    check: Callable[[Codebook], None]
    is_drawn: bool = False
    # Blocks share nothing but, for two-level scales, one factor over the whole tensor.
    couples_blocks: bool = False
    # Largest stored scale, for rules that have one: promises hold for magnitudes up to ``high * largest_scale``.
    largest_scale: Fraction | None = None
    # The lattice does not follow the weights.
    is_frozen: bool = False
    # On codebooks from -c to c the top level is the largest magnitude, unrounded.
    spans_absmax: bool = False
    # Weights that are fractions have levels that are.
    is_rational: bool = True
    # "real", "stored" for one in a small float format, "integer" for one that is a code; None where 0 is level 0.
    zero_point: str | None = None
    # The small float format that scales are stored in, and for two-level scales the rule of blocks over their factor.
    storage: ScaleFormat | None = None
    one_level: ScaleRule | None = None
    # Where the quantized points of a block are all ``s c`` (with a zero point ``m + s c``), s > 0, for code vectors c
    # that set their own scale: whether the rows of (n, size) levels do, (n,). None where they are not.
    sets_scale: Callable[[np.ndarray, Codebook], np.ndarray] | None = None

    @property
    def has_rays(self) -> bool:
        """Whether the quantized points of a block fill whole rays ``s c``."""
        return self.sets_scale is not None and self.zero_point is None

    @property
    def is_built_in(self) -> bool:
        """Whether its functions are this package's."""
        module = getattr(self.draws, "__module__", None) or type(self.draws).__module__
        return module.partition(".")[0] == "lotion_theory"

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        """What pickle and copy keep: the name of a rule that format strings know, the fields of any other. The
        functions of the latter must be picklable themselves: of a module, or objects that hold their data."""
        if _RULES.get(self.name) is self or _of_family(self.name) is self:
            return scale_rule, (self.name,)
        return type(self), tuple(getattr(self, f.name) for f in fields(self))


def need(condition: bool, message: str) -> None:
    """ValueError with ``message`` unless ``condition``."""
    if not condition:
        raise ValueError(message)


def need_signed_real(book: Codebook) -> None:
    """ValueError for the unsigned and the complex codebooks, which have scales of their own."""
    if book.unsigned or book.is_complex:
        kind = "unsigned" if book.unsigned else "complex"
        other = "zp-real or zp-int" if book.unsigned else "l1 or modulus"
        raise ValueError(f"codebook {book.name} is {kind} and needs scale {other}")


# --- rules by name ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """Rules with a number in their name. ``spelled``: how to write them; ``made(name)``: the rule, None for others."""

    spelled: str
    summary: str
    made: Callable[[str], ScaleRule | None]


_RULES: dict[str, ScaleRule] = {}
_FAMILIES: list[Family] = []


@cache
def _of_family(name: str) -> ScaleRule | None:
    return next((rule for family in _FAMILIES if (rule := family.made(name)) is not None), None)


def rules() -> tuple[ScaleRule, ...]:
    """The rules that have no number in their name."""
    return tuple(_RULES.values())


def rule_names() -> tuple[str, ...]:
    """Every scale name, with the two parametric families written ``absmaxD`` and ``slackR``."""
    return (*_RULES, *(family.spelled for family in _FAMILIES))


def scale_rule(name: str) -> ScaleRule:
    """The scale rule called ``name``. ``absmax7.5`` is absmax / 7.5; ``slack1.1`` is 1.1 absmax / top level.

    Raises ValueError, listing the names, for an unknown one.
    """
    rule = _RULES.get(name) or _of_family(name)
    if rule is not None:
        return rule
    families = (f"{family.spelled} ({family.summary})" for family in _FAMILIES)
    raise ValueError(
        f"unknown scale {name!r}; valid: {', '.join((*_RULES, *families))}; a rule of your own is known in the "
        "processes that called register_scale(rule)"
    )


def register_scale(rule: ScaleRule) -> ScaleRule:
    """Make ``rule`` known by its name, in format strings and pickles of this process; returns it.

    Raises ValueError for a name that is taken or that cannot be part of a format string. Pickles hold the name only:
    a process that reads them must have registered the rule too, or gets a ValueError.
    """
    check_name("scale", rule.name)
    known = _RULES.get(rule.name) or _of_family(rule.name)
    if known is not None and known != rule:
        raise ValueError(f"scale {rule.name!r} is taken ({known.summary}); give the rule another name")
    _RULES[rule.name] = rule
    return rule


def register_family(family: Family) -> None:
    """Make the rules of ``family`` known by their names."""
    _FAMILIES.append(family)

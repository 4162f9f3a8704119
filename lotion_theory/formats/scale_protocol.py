"""What a scale rule is: the lattices it draws, how they move with the weights, and what it promises.

Shapes: ``x`` is always (blocks, weights per block); anchors, probabilities and thresholds are (blocks, 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any, NamedTuple

from .._arrays import Array
from .codebooks import Codebook
from .lattice import Lattice


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

    ``check(book)`` raises ValueError where the rule does not apply to a codebook.
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

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        """What pickle and copy keep: the name of a rule that format strings know, the fields of any other. The
        functions of the latter must be picklable themselves: of a module, or objects that hold their data."""
        # The registry is built on this module.
        from .scaling import scale_rule

        try:
            known = scale_rule(self.name)
        except ValueError:
            known = None
        if known is self:
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

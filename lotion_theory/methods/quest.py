"""QuEST's quantizer and trust estimator: an RMS grid with the Gaussian-optimal clip, and STE without far outliers.

The Hadamard rotation of the paper belongs to the problem, not to the method: see ``linear_regression(rotation=...)``.
"""

from fractions import Fraction

from ..formats.codebooks import Codebook
from .rule import Method, Place, Rule, at_nearest, choice, constant, step_over_top

CLIPS = {
    2: 0.79788, 3: 1.22401, 4: 1.49353, 8: 2.05107, 16: 2.51393, 32: 2.91609, 64: 3.27660, 128: 3.60105, 256: 3.88494,
}  # fmt: skip
"""Clip over RMS of least squared error for a standard normal, by number of levels: the paper's constants (those of 6 to
8 bits exceed the least error by 2e-6, 1e-4 and 2e-3 of it)."""


def trusted(p: Place, g, h, a):
    """``g`` where the rounding error is at most ``T σ``, half a step, else 0: ``a[0]`` is half a step over ``top``.

    Within the range the error never exceeds half a step, so the condition is ``|w| <= top + T σ``. In this form a
    weight midway between two levels cannot fail it by a rounding error.
    """
    return g * (abs(p.w) <= p.top * (1 + a[0]))


def midrise(book: Codebook) -> Codebook:
    """The grid of as many levels as ``book`` has bits: ±1, ±3, ..., ±(2^b - 1); -2, 0, 2 for ternary."""
    step_over_top(book, "quest")
    count = round(2**book.bits)
    levels = tuple(Fraction(k) for k in range(1 - count, count, 2))
    return Codebook(
        f"midrise{count}", levels, tuple(i % 2 == 0 for i in range(count)), book.bits, f"{count} levels around 0"
    )


def _on_absmax(book: Codebook) -> dict[str, object]:
    return {"parameters": constant(step_over_top(book, "quest") / 2)}


def _on_rms(book: Codebook) -> dict[str, object]:
    return {"rms": CLIPS[len(book.levels)], **_on_absmax(book)}


def rule(settings) -> Rule:
    """``grid``: "rms", or "absmax" with the format's own levels, where the trust mask is all ones (QAT)."""
    if choice(settings, "grid", ("rms", "absmax")) == "absmax":
        return Rule(at_nearest, trusted, with_book=_on_absmax)
    return Rule(at_nearest, trusted, top="rms", book=midrise, with_book=_on_rms)


METHOD = Method(
    "quest",
    rule=rule,
    information="gradient at RTN(w)",
    grid="rms",
    source="Panferov et al., arXiv 2502.05003, without the rotation",
    settings={"grid": "rms"},
)

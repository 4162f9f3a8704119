"""The codebooks that the page computes with."""

from __future__ import annotations

from typing import Any

from lotion_theory.formats.codebooks import codebook

from .section import Section

NAMES = (*(f"int{b}" for b in range(2, 9)), "ternary", "binary", "e2m1", "e2m3", "e3m2", "e4m3", "nf4", "pot2", "pot3",
         "pot4")  # fmt: skip
"""Codebooks whose lowest level is minus the highest: an absmax scale never clips them."""


def books() -> dict[str, dict[str, Any]]:
    """Per name: ``units``, the levels over the highest one as float64; ``even``: where ties go; ``high`` and text."""
    out = {}
    for name in NAMES:
        book = codebook(name)
        out[name] = {
            "units": [float(u) for u in book.units],
            "even": [int(e) for e in book.even],
            "high": float(book.high),
            "bits": book.bits,
            "summary": book.summary,
        }
    return out


SECTION = Section(
    "landscapes", "Landscapes", "Landscapes", data=lambda contents: {"books": books()}, template="landscapes"
)

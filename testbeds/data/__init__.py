"""Data that ship with the package."""

from .digits import DIGITS_FILE, DIGITS_SHA256, load_digits
from .text import SOTU_FILE, SOTU_SHA256, load_sotu

__all__ = ["DIGITS_FILE", "DIGITS_SHA256", "SOTU_FILE", "SOTU_SHA256", "load_digits", "load_sotu"]

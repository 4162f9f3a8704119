"""Text that ships with the package."""

from .text import SOTU_FILE, SOTU_SHA256, load_sotu

__all__ = ["SOTU_FILE", "SOTU_SHA256", "load_sotu"]

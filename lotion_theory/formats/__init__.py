"""Number formats: codebooks, scale rules, lattices, partitions, and the quantizer made of them."""

from . import uneven  # noqa: F401  (importing it registers its codebook)
from .codebooks import register_codebook
from .scale_protocol import register_scale

__all__ = ["register_codebook", "register_scale"]

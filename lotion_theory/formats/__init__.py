"""Number formats: codebooks, scale rules, lattices, partitions, and the quantizer made of them."""

from .codebooks import register_codebook
from .scale_protocol import register_scale

__all__ = ["register_codebook", "register_scale"]

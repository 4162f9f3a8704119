"""Smoothing the loss of quantized networks: number formats, randomized rounding, smoothed losses and their theory.

Importing this package needs numpy and array-api-compat only; scipy, ml_dtypes, torch, numba, sympy and z3 are imported
by the parts that use them.
"""

from .formats.catalog import formats
from .formats.codebooks import Codebook, codebook, register_codebook
from .formats.partition import Partition
from .formats.quantizer import Quantizer
from .formats.scale_protocol import register_scale
from .smoothing import Quadratic, law, pointwise, smoothed_gradient, smoothed_loss
from .streams import Stream

__all__ = [
    "Codebook", "Partition", "Quadratic", "Quantizer", "Stream", "codebook", "formats", "law", "pointwise",
    "register_codebook", "register_scale", "smoothed_gradient", "smoothed_loss", "verify",
]  # fmt: skip
__version__ = "0.1.0"


def verify(*args, **kwargs):
    """Check the claims over the formats; see :func:`lotion_theory.theory.verification.verify`, which this calls."""
    from .theory.verification import verify as run

    return run(*args, **kwargs)

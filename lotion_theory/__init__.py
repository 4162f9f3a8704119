"""Smoothing the loss of quantized networks: number formats, randomized rounding, smoothed losses and their theory.

Importing this package needs numpy and scipy only; torch, numba, sympy and z3 are imported by the parts that use them.
"""

from .grids import Codebook, codebook
from .partition import Partition
from .quantizer import Quantizer

__all__ = ["Codebook", "Partition", "Quantizer", "codebook"]

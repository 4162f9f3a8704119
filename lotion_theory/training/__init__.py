"""LOTION and straight-through training for any torch loop; model code stays untouched. Needs torch."""

from .casts import quantized
from .gnb import gnb_update
from .hutchinson import hutchinson_update
from .monitors import Monitor
from .penalty import LotionPenalty
from .recipes import lightning_callback, trainer_callback
from .rules import METHODS
from .schedules import Gate, Ramp, Split, optimal_share
from .selection import Quantized, select
from .straight_through import StraightThrough

__all__ = [
    "METHODS", "Gate", "LotionPenalty", "Monitor", "Quantized", "Ramp", "Split", "StraightThrough", "gnb_update",
    "hutchinson_update", "lightning_callback", "optimal_share", "quantized", "select", "trainer_callback",
]  # fmt: skip

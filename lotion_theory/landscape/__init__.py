"""Landscapes of quantized losses: slices, gradient fields, minima and trajectories, as plain arrays."""

from ._batch import Batch
from .fields import FIELDS, gradient_field
from .kinks import find_changes
from .minima import (
    Minima,
    Minimum,
    global_minimum_quantized,
    lattice_levels,
    local_minima_moving,
    local_minima_quantized,
)
from .search import local_minima_smoothed
from .slices import Slice1D, Slice2D, slice_1d, slice_2d
from .trajectories import Trajectory, linear_decay, linear_ramp, trajectory

__all__ = [
    "FIELDS", "Batch", "Minima", "Minimum", "Slice1D", "Slice2D", "Trajectory", "find_changes",
    "global_minimum_quantized", "gradient_field", "lattice_levels", "linear_decay", "linear_ramp",
    "local_minima_moving", "local_minima_quantized", "local_minima_smoothed", "slice_1d", "slice_2d", "trajectory",
]  # fmt: skip

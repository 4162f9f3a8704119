"""Figures, drawn only from stored arrays and rows. matplotlib is imported when the first one is drawn."""

from .gallery import landscape_figures
from .landscapes import figure_1d, figure_lambda
from .planes import figure_2d, figure_fields, figure_minima, figure_trajectories
from .style import LOSSES, METHODS, save, styled

__all__ = [
    "LOSSES", "METHODS", "figure_1d", "figure_2d", "figure_fields", "figure_lambda", "figure_minima",
    "figure_trajectories", "landscape_figures", "save", "styled",
]  # fmt: skip

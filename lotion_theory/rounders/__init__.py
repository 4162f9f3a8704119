"""Rounding schemes by name."""

from importlib import import_module

from .base import Case, Regrid, Rounder
from .grid import Grid

FILES = {
    "rtn": "rtn",
    "rr": "rr",
    "clip_search": "clip_search",
    "conditional_expectation": "conditional",
    "coordinate_descent": "coordinate_descent",
    "gptq": "gptq",
    "adaround": "adaround",
    "discquant": "discquant",
    "gsq": "gsq",
    "lotion_cell": "lotion_cell",
    "lotion_ramp": "lotion_ramp",
    "lotion_splitting": "lotion_splitting",
    "adaquant": "adaquant",
    "adaquant_learned": "adaquant_learned",
    "matgptq": "matgptq",
}


def names() -> tuple[str, ...]:
    """All rounding schemes."""
    return tuple(FILES)


def rounder(name: str) -> Rounder:
    """The scheme called ``name``; ValueError, listing the names, for an unknown one."""
    if name not in FILES:
        raise ValueError(f"unknown rounding scheme {name!r}; valid: {', '.join(FILES)}")
    return import_module(f".{FILES[name]}", __name__).ROUNDER


__all__ = ["FILES", "Case", "Grid", "Regrid", "Rounder", "names", "rounder"]

"""Block types that runtimes store, by name: frozen lattices with their bytes and scale rules."""

from functools import cache
from importlib import import_module

from .base import Parameters, StoredTensor, StoredType

FAMILIES = ("legacy", "k_quants", "micro", "ternary")
"""The files of this room whose ``TYPES`` are known."""


@cache
def _types() -> dict[str, StoredType]:
    return {t.name: t for family in FAMILIES for t in import_module(f".{family}", __name__).TYPES}


def names() -> tuple[str, ...]:
    """All stored types."""
    return tuple(_types())


def stored_type(name: str) -> StoredType:
    """The type called ``name``, in lower case or as ggml writes it; ValueError, listing the names, for others."""
    if (found := _types().get(str(name).lower())) is None:
        raise ValueError(f"unknown stored type {name!r}; valid: {', '.join(names())}")
    return found


__all__ = ["FAMILIES", "Parameters", "StoredTensor", "StoredType", "names", "stored_type"]

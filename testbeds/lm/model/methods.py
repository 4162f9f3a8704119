"""The training methods of language models by name, and what is tuned in each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lotion_theory.methods import method, names

from .hooks import Method, Plain, Setting


def _later(name: str) -> Callable[[Setting], Method]:
    """The method of that name, imported when it is made: the command line must not wait for torch."""

    def make(setting: Setting) -> Method:
        from .quantized import maker

        return maker(name)(setting)

    return make


QUANTIZED = tuple(name for name in names() if name != "ptq")
OWN_GRID = tuple(name for name in QUANTIZED if method(name).grid != "absmax")
"""Methods that train on a grid of their own, with the codebook size and the blocks of the format."""
METHODS: dict[str, Callable[[Setting], Method]] = {
    "none": Plain,
    "ptq": Plain,
    **{name: _later(name) for name in QUANTIZED},
}
"""Makers of methods by name; ``none`` is plain training evaluated as floats only."""
TUNING: dict[str, Mapping[str, tuple[Any, ...]]] = {
    **{name: method(name).looped(method(name).tuning) for name in QUANTIZED},
    # Two values each: a run of a language model costs more.
    "lotion": {"weight": (0.5, 2.0)},
    "cage": {"weight": (1.0, 10.0)},
    "crown_q": {"weight": (0.01, 0.1)},
}
"""Settings tuned beside the learning rate in experiments on language models, and the values tried."""

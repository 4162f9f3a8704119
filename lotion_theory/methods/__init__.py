"""Training methods: one file each, with its functions of one weight and its descriptor ``METHOD``.

Numba loops and numpy (``testbeds.descent``) and torch (``lotion_theory.training``) run the same functions.
"""

from importlib import import_module

from .rule import LearnedTop, Method, Place, Rule

# A method is known by its name here; its file has the same name.
NAMES = (
    "ptq", "qat", "rr_ste", "diffq", "quant_noise", "cage", "quest", "lsq", "pact", "dsq", "dgm", "hestia", "crown_q",
    "lotion",
)  # fmt: skip


def names() -> tuple[str, ...]:
    """All training methods."""
    return NAMES


def method(name: str) -> Method:
    """The method called ``name``; ValueError, listing the names, for an unknown one."""
    if name not in NAMES:
        raise ValueError(f"unknown training method {name!r}; valid: {', '.join(NAMES)}")
    return import_module(f".{name}", __name__).METHOD


__all__ = ["LearnedTop", "Method", "Place", "Rule", "method", "names"]

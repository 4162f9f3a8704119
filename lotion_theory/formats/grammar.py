"""What format strings are made of: their aliases, and which names can be part of one."""

from __future__ import annotations

from .partition import Partition

ALIASES = {
    "mxfp4": "e2m1/e8m0-floor/block=32",
    "mxfp6": "e2m3/e8m0-floor/block=32",
    "mxfp6-e3m2": "e3m2/e8m0-floor/block=32",
    "mxfp8": "e4m3/e8m0-floor/block=32",
    "mxfp8-e5m2": "e5m2/e8m0-floor/block=32",
    "mxint8": "int8/e8m0-floor/block=32",
    "nvfp4": "e2m1/e4m3-nearest/block=16",
    "q4_0": "int4full/q4_0/block=32",
    "q4_1": "uint4/zp-fp16/block=32",
    "q5_0": "int5full/q4_0/block=32",
    "q5_1": "uint5/zp-fp16/block=32",
    "q8_0": "int8/fp16-nearest/block=32",
    "iq4_nl": "iq4nl/q4_0/block=32",
    "tq1_0": "ternary/fp16-nearest/block=256",
    "tq2_0": "ternary/fp16-nearest/block=256",
    "bitnet": "ternary/absmean/tensor",
    "fairy": "fairy/l1/tensor",
}
"""Format strings by their short names."""


def check_name(what: str, name: str) -> None:
    """ValueError unless ``name`` can be the codebook or the scale (``what``) of a format string."""
    if not name or name != name.lower() or any(c.isspace() or c == "/" for c in name) or Partition.meant(name):
        raise ValueError(
            f"{what} {name!r} cannot be named in a format string; valid: lower case, without spaces and slashes, and "
            "no partition"
        )

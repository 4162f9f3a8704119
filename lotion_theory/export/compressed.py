"""Weights as compressed-tensors stores them: integers packed in words of 32 bits, and a scale per row or group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .._arrays import to_numpy
from ..files import library
from .codes import Encoded, integers
from .packed import pack

BITS = (4, 8)


def compressed_parts(name: str, encoded: Encoded) -> tuple[dict[str, Any], int, int | None]:
    """``(parts, bits, group)`` of a weight in the format ``pack-quantized``: the tensors that stand for it by ending,
    bits of a code, and weights per group, None for one scale per row.

    A loader computes ``code * scale`` with ``scale = top / c_max`` rounded once to float32, where the cast is ``top *
    (code / c_max)``: both round twice, and differ by at most four units of 2**-24 relative to the value. Raises
    ValueError for weights that are not two-dimensional or not of a torch float32 tensor, and for formats other than
    symmetric integers of 4 and 8 bits with a real scale per row, or per block of a row.
    """
    book, shape = encoded.book, encoded.shape
    width = next((bits for bits in BITS if book.high <= (1 << (bits - 1)) - 1), None)
    whole = all(level.denominator == 1 for level in book.levels) and width is not None and -book.low <= 1 << (width - 1)
    if not whole or encoded.lattice != "span" or encoded.bottom is not None or encoded.factor is not None:
        raise ValueError(
            f"{name} of format {encoded.format}: pack-quantized holds symmetric integers of 4 or 8 bits with one scale "
            "per row or block, such as int4/absmax/block=32 and int8/absmax/row"
        )
    if len(shape) != 2 or shape[1] % encoded.block or encoded.dtype != "float32":
        raise ValueError(
            f"{name} of shape {shape}, {encoded.dtype}, in blocks of {encoded.block}: pack-quantized holds float32 "
            "matrices with blocks that lie within a row"
        )
    assert width is not None
    torch = library("torch", "writing compressed-tensors", "models")
    codes, top = to_numpy(integers(encoded)).astype(np.int16), to_numpy(encoded.top)
    # Rows begin with a word of their own.
    words = np.stack([pack((row + (1 << (width - 1))).astype(np.uint8), width) for row in _padded(codes, 32 // width)])
    scale = (top / np.float32(float(book.high))).reshape(shape[0], -1)
    parts = {
        "weight_packed": torch.from_numpy(words.view("<i4")), "weight_scale": torch.from_numpy(scale),
        "weight_shape": torch.tensor(shape),
    }  # fmt: skip
    return parts, width, None if encoded.block == shape[1] else encoded.block


def _padded(codes: np.ndarray, multiple: int) -> np.ndarray:
    return np.pad(codes, ((0, 0), (0, -codes.shape[1] % multiple)))


def quantization_config(groups: Mapping[tuple[int, int | None], list[str]], ignored: list[str]) -> dict[str, Any]:
    """What ``config.json`` says of packed weights. ``groups``: names of layers by bits and group size; ``ignored``:
    layers that are not quantized."""
    config_groups = {}
    for number, ((bits, group), layers) in enumerate(groups.items()):
        weights = {
            "num_bits": bits, "type": "int", "symmetric": True, "strategy": "channel" if group is None else "group",
            "group_size": group, "dynamic": False, "observer": "minmax",
        }  # fmt: skip
        config_groups[f"group_{number}"] = {"targets": layers, "weights": weights, "input_activations": None,
                                            "output_activations": None, "format": "pack-quantized"}  # fmt: skip
    return {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
        "config_groups": config_groups, "ignore": ignored, "kv_cache_scheme": None,
    }  # fmt: skip

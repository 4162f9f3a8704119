"""Codes as tensors of torchao: their ``dequantize()`` is our cast, bit for bit, or they are refused."""

from __future__ import annotations

from typing import Any

from .._arrays import is_torch, to_numpy
from ..files import library
from .codes import Encoded, decode, integers

LAYOUTS = ("integer", "codebook")


def to_torchao(encoded: Encoded, layout: str = "integer") -> Any:
    """A weight for ``nn.Linear`` and the like, made from our codes; torchao never rounds again.

    torchao's own symmetric INT4 has scale absmax / 7.5 and would move every weight that lies on a grid of absmax / 7.

    Args:
        encoded: of a torch tensor in float32, float16 or bfloat16.
        layout: "integer": ``IntxUnpackedToInt8Tensor``, values ``code * scale`` with a float32 scale per block, for
            codebooks of integers. Exact for absmax formats on 16-bit weights and for stored scales (fp16, E4M3, E8M0)
            on all; **not for absmax on float32**, whose levels ``absmax * (code / c_max)`` are no float32 multiples
            of one number. "codebook": ``CodebookQuantizedTensor`` (a prototype in torchao), values
            ``scale * table[code]``, exact for every format with one anchor per block; 2-D weights only.

    Raises ValueError where the result would not be exact, or the layout does not apply.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout = {layout!r}; valid: {', '.join(LAYOUTS)}")
    if not is_torch(encoded.codes) or encoded.dtype == "float64":
        raise ValueError(
            f"codes are those of a {type(encoded.codes).__name__} of {encoded.dtype}; encode a torch tensor in "
            "float32, float16 or bfloat16"
        )
    torch = library("torch", "making torchao tensors")
    dtype = getattr(torch, encoded.dtype)
    size = _box(encoded)
    # The anchors per block as a grid over the axes.
    grid = [n // b for n, b in zip(encoded.shape, size, strict=True)]
    top = encoded.top if encoded.factor is None else encoded.top * encoded.factor
    build = _integer if layout == "integer" else _codebook
    tensor = build(torch, encoded, top, size, grid, dtype)
    expected, got = decode(encoded), tensor.dequantize()
    wrong = int((to_numpy(expected) != to_numpy(got)).sum())
    if wrong:
        raise ValueError(
            f"format {encoded.format} on {encoded.dtype}: {wrong} of {expected.numel()} weights would differ from the "
            f"cast in layout {layout!r}; exact are layout 'codebook', 16-bit weights, or scales stored as fp16"
        )
    return tensor


def _box(encoded: Encoded) -> tuple[int, ...]:
    """A block as a part of each axis; ValueError where it ends within one axis and begins within another."""
    size, left = [], encoded.block
    for n in reversed(encoded.shape):
        part = min(n, left)
        if n % part or left % part:
            raise ValueError(f"shape {encoded.shape}: blocks of {encoded.block} are no boxes, as torchao's are")
        size.append(part)
        left //= part
    return tuple(reversed(size))


def _integer(torch: Any, encoded: Encoded, top: Any, size: tuple[int, ...], grid: list[int], dtype: Any) -> Any:
    module = library(
        "torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor", "making torchao tensors"
    )
    book, bottom = encoded.book, encoded.bottom
    if encoded.lattice in ("affine", "offset"):
        raise ValueError(f"format {encoded.format} has a real zero point; layout 'integer' holds integer ones only")
    width = encoded.bits
    if encoded.lattice == "scaled" and bottom is not None:
        # Codes and zero point move together into the signed range.
        half = 1 << (width - 1)
        codes, zero = (encoded.codes.to(torch.int16) - half).to(torch.int8), (bottom - half).to(torch.int8)
    else:
        codes, zero = integers(encoded), torch.zeros_like(top, dtype=torch.int8)
        # Of int1, torchao's codes are -1 and 0: the signed codes of a binary or ternary book need two bits.
        width = max(width, 2)
    scale = top if encoded.lattice == "scaled" else top / float(book.high)
    return module.IntxUnpackedToInt8Tensor(
        qdata=codes, scale=scale.reshape(grid), zero_point=zero.reshape(grid),
        target_dtype=getattr(torch, f"int{width}"), block_size=size, dtype=dtype, activation_quantization=None,
    )  # fmt: skip


def _codebook(torch: Any, encoded: Encoded, top: Any, size: tuple[int, ...], grid: list[int], dtype: Any) -> Any:
    module = library("torchao.prototype.quantization.codebook.codebook_quantized_tensor", "making torchao tensors")
    if encoded.bottom is not None or encoded.lattice == "affine":
        raise ValueError(f"format {encoded.format} has two anchors per block; layout 'codebook' holds one")
    if len(encoded.shape) != 2:
        raise ValueError(f"shape {encoded.shape}: layout 'codebook' is for weights of two dimensions")
    levels = encoded.book.levels if encoded.lattice == "scaled" else encoded.book.units
    table = torch.tensor([float(v) for v in levels], dtype=torch.float64).to(top.dtype).to(top.device)
    scales = top.reshape(grid).expand(encoded.shape[0], grid[1]).contiguous()[..., None]
    return module.CodebookQuantizedTensor(
        encoded.codes.contiguous(), table.reshape(-1, 1, 1), (1, 1), scales, torch.Size(encoded.shape), dtype=dtype
    )

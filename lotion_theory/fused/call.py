"""A call of a compiled program: arrays of numpy and tensors in CPU memory as pointers, cut among threads."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from .._arrays import Array, is_torch
from . import threads
from .graph import BLOCK, TENSOR, WEIGHT
from .programs import Kernel, Program

# Fewer weights are not worth the hand-over to another thread.
_PART = 1 << 18

_SIZES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


def usable(x: Any) -> bool:
    """Whether the memory of ``x`` can be read as it is: see :func:`contiguous`."""
    if type(x) is np.ndarray:
        return x.flags.c_contiguous and x.flags.aligned
    return _is_plain_tensor(x) and x.is_contiguous()


def contiguous(x: Any) -> Array | None:
    """``x``, or its entries in C order; None for what is neither an array of numpy itself nor a dense tensor on the
    CPU, of the plain class and outside of autograd, compilation and transforms."""
    if type(x) is np.ndarray:
        return x if x.flags.c_contiguous and x.flags.aligned else np.array(x, order="C")
    return x.detach().contiguous() if _is_plain_tensor(x) else None


def _is_plain_tensor(x: Any) -> bool:
    torch = sys.modules.get("torch")
    if torch is None or type(x) not in (torch.Tensor, torch.nn.Parameter) or torch.compiler.is_compiling():
        return False
    if x.device.type != "cpu" or x.layout != torch.strided or (x.requires_grad and torch.is_grad_enabled()):
        return False
    if torch.jit.is_tracing() or torch.autograd.forward_ad._current_level >= 0 or torch._C._len_torch_dispatch_stack():
        return False
    wrapped = getattr(torch._C._functorch, "is_functorch_wrapped_tensor", None)
    return not x.is_conj() and not x.is_neg() and not (wrapped is not None and wrapped(x))


def address(x: Array) -> int:
    """Where the entries of ``x`` begin."""
    return x.data_ptr() if is_torch(x) else x.__array_interface__["data"][0]


class Arguments:
    """Arrays of a call by name, each with its address and the bytes from one block (or weight) to the next."""

    def __init__(self, arrays: Mapping[str, Array], blocks: int, columns: int) -> None:
        self.blocks, self.columns = blocks, columns
        self.kept = dict(arrays)  # alive as long as their addresses are used
        self.place = {name: address(x) for name, x in arrays.items()}

    def add(self, name: str, x: np.ndarray) -> None:
        """One more array."""
        self.kept[name], self.place[name] = x, address(x)

    def pointers(self, kernel: Kernel, block: int = 0, weight: int = 0, own: Mapping[str, int] | None = None) -> Any:
        """Pointers from a block, and a weight within it, on; ``own``: those of some arrays instead."""
        out = (ctypes.c_void_p * len(kernel.slots))()
        for k, slot in enumerate(kernel.slots):
            if own is not None and slot.name in own:
                out[k] = own[slot.name]
                continue
            start = {WEIGHT: block * self.columns + weight, BLOCK: block, TENSOR: 0}[slot.rate]
            out[k] = self.place[slot.name] + start * _SIZES[slot.dtype]
        return out


def _whole(kernel: Kernel, given: Arguments, limit: int) -> int:
    """All blocks, those of a thread in one go."""
    size = given.blocks * given.columns
    parts = max(1, min(limit, size // _PART, given.blocks // 16))
    # Whole vectors of blocks.
    step = -(-given.blocks // parts)
    step += -step % 16
    tasks = [
        partial(_one, kernel, given.pointers(kernel, b), min(step, given.blocks - b), given.columns)
        for b in range(0, given.blocks, step)
    ]
    return threads.in_parallel(tasks, limit)


def _one(kernel: Kernel, pointers: Any, blocks: int, columns: int) -> int:
    return kernel.run(blocks, columns, ctypes.addressof(pointers))


def run(program: Program, arrays: Mapping[str, Array], blocks: int, columns: int) -> bool:
    """Fill the outputs among ``arrays``; False where a condition failed, and they hold anything.

    ``arrays``: by the names of the program's inputs and outputs, each :func:`usable`.
    """
    given = Arguments(arrays, blocks, columns)
    limit = threads.count() if blocks * columns >= 2 * _PART else 1
    if program.maxima is not None:
        for slot in program.maxima.slots:
            if slot.name in program.graph.maxima:
                given.add(slot.name, np.empty(blocks, slot.dtype))
        if _whole(program.maxima, given, limit):
            return False
        for name in program.graph.maxima:
            given.add(name, given.kept[name].max(keepdims=True))
    elif limit > 1 and blocks < 16 * limit and columns >= 2 * _PART and program.stages():
        return _in_pieces(program.stages(), given, limit)
    return not _whole(program.main, given, limit)


def _in_pieces(stages: list[Kernel], given: Arguments, limit: int) -> bool:
    """Few long blocks: each is cut into pieces, and what a stage finds per piece is put together per block."""
    step = max(_PART, -(-given.columns // limit))
    pieces = [(b, j, min(step, given.columns - j)) for b in range(given.blocks) for j in range(0, given.columns, step)]
    per = -(-given.columns // step)
    for stage in stages:
        found = {s.name: np.empty(len(pieces), s.dtype) for s in stage.slots if s.name not in given.place}
        tasks: list[Callable[[], int]] = []
        for k, (b, j, length) in enumerate(pieces):
            pointers = given.pointers(stage, b, j, {n: address(x) + k * x.itemsize for n, x in found.items()})
            tasks.append(partial(_one, stage, pointers, 1, length))
        if threads.in_parallel(tasks, limit):
            return False
        for name, x in found.items():
            whole = x.reshape(given.blocks, per)
            given.add(name, np.ascontiguousarray(whole[:, 0] if name.startswith("first") else whole.max(axis=1)))
    return True

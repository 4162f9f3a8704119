"""The loops of ``_fused`` compiled, for tensors where their memory lies. Importing this needs numba."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from .. import kernels
from ..formats.compiled import largest_bits
from . import _fused

for _callee in (
    kernels.variance_dlo, kernels.variance_dhi, kernels.variance_dw, kernels.variance_danchor, largest_bits,
    _fused._integers_beside, _fused._levels_beside, _fused._fold, _fused._to_leaders, _fused.gradient_rows,
):  # fmt: skip
    register_jitable(_callee)


@intrinsic
def _pointer(context: Any, address: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.inttoptr(given[0], cgutils.voidptr_t)

    return types.voidptr(address), code


@numba.njit(nogil=True, error_model="numpy")
def gradient_at(t: _fused.Table, places: np.ndarray, n: int, kinds: Any, half: Any, attached: bool) -> None:
    """``gradient_rows`` for each of ``places`` (tensors, 4): addresses of what is added to, of the weights and of the
    curvature, and the number of blocks of ``n``. ``kinds``: arrays of the working type, and of integers of its width.
    """
    real, signed = kinds
    for k in range(places.shape[0]):
        shape = (places[k, 3], n)
        blocks = _fused.Blocks(
            numba.carray(_pointer(places[k, 0]), shape, real.dtype),
            numba.carray(_pointer(places[k, 1]), shape, real.dtype),
            numba.carray(_pointer(places[k, 1]), shape, signed.dtype),
            numba.carray(_pointer(places[k, 2]), shape, real.dtype),
        )
        _fused.gradient_rows(t, blocks, half, attached)


def _keep() -> None:
    """Have numba keep what it compiles where ``_fused.kept_in`` says; not where nothing can be written."""
    given = numba.config.CACHE_DIR
    try:
        with suppress(RuntimeError, OSError):
            numba.config.CACHE_DIR = str(_fused.kept_in())
            gradient_at.enable_caching()
    finally:
        numba.config.CACHE_DIR = given


_keep()

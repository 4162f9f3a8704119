"""The loops compiled, for tensors where their memory lies. Importing this needs numba."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from .kept import kept_in
from .rows import CALLEES, Blocks, Table, gradient_rows

for _callee in CALLEES:
    register_jitable(_callee)


def _to_pointer(context: Any, address: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.inttoptr(given[0], cgutils.voidptr_t)

    return types.voidptr(address), code


_pointer: Any = intrinsic(_to_pointer)


def _gradient_at(t: Table, places: np.ndarray, n: int, kinds: Any, half: Any, attached: bool) -> None:
    """``gradient_rows`` for each of ``places`` (tensors, 4): addresses of what is added to, of the weights and of the
    curvature, and the number of blocks of ``n``. ``kinds``: arrays of the working type, and of integers of its width.
    """
    real, signed = kinds
    for k in range(places.shape[0]):
        shape = (places[k, 3], n)
        blocks = Blocks(
            numba.carray(_pointer(places[k, 0]), shape, real.dtype),
            numba.carray(_pointer(places[k, 1]), shape, real.dtype),
            numba.carray(_pointer(places[k, 1]), shape, signed.dtype),
            numba.carray(_pointer(places[k, 2]), shape, real.dtype),
        )
        gradient_rows(t, blocks, half, attached)


_made: dict[np.dtype, Callable[..., None]] = {}
_lock = Lock()


def add_gradients(t: Table, places: np.ndarray, n: int, half: Any, attached: bool) -> None:
    """:func:`_gradient_at`, compiled."""
    kinds = t.units[:0], t.units[:0].view(t.magnitude.dtype)
    with _lock:
        run = _made.get(t.units.dtype)
        if run is None:
            run = _made[t.units.dtype] = _kept(numba.njit(nogil=True, error_model="numpy")(_gradient_at))
            # At once: what is kept is of the functions as they are.
            run(t, places[:0], n, kinds, half, attached)
    run(t, places, n, kinds, half, attached)


def _kept(run: Any) -> Any:
    """``run`` with its code kept between processes; as it is where nothing can be written."""
    config: Any = numba.config
    given = config.CACHE_DIR
    try:
        with suppress(RuntimeError, OSError):
            config.CACHE_DIR = str(kept_in())
            run.enable_caching()
    finally:
        config.CACHE_DIR = given
    return run

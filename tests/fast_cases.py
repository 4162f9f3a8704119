"""The compiled pass beside the plain path: both on demand, and what they give to the bit."""

from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import pytest

from lotion_theory.formats import fast
from lotion_theory.formats.catalog import FORMATS as CATALOG
from lotion_theory.fused import machine
from tests.strategies import (
    uniforms,
)

needs_compiler = pytest.mark.skipif(machine.features() is None, reason="llvmlite, which comes with numba, is absent")
SERVED = [text for text in CATALOG if text != "int4/frozen"]
FEW = ("int4/absmax", "nf4/absmax", "dynamic8/gauge", "e2m1/e4m3-nearest", "e2m1/e8m0-sr", "uint4/zp-real", "fairy/l1")
OPERATIONS = ("cast", "round", "mean", "variance", "bracket")


@contextmanager
def plain():
    with patch.object(fast, "compute", lambda *_, **__: None):
        yield


@contextmanager
def compiled():
    """At once, however few weights; yields the answers, None being one that was left to the plain path."""
    answers, compute = [], fast.compute

    def told(*arguments, **options):
        answers.append(compute(*arguments, **options))
        return answers[-1]

    with patch.multiple(fast, _COMPILE_AFTER=0, compute=told):
        yield answers


def bits(results):
    """The bits of arrays or tensors, and so the signs of zeros."""
    results = results if isinstance(results, tuple) else (results,)
    out = []
    for x in results:
        if not isinstance(x, np.ndarray):
            import torch

            x = x.contiguous().view(torch.uint8).numpy() if x.ndim else x.reshape(1).view(torch.uint8).numpy()
        out.append(x.tobytes())
    return out


def operations(q, w, rng, names=OPERATIONS):
    """Calls of ``q`` on ``w`` by name."""
    real = {"float64": "float64", "complex128": "float64"}.get(w.dtype.name, "float32")
    shape = (*w.shape, 2) if q.codebook.is_complex else w.shape
    u = uniforms(rng, shape, real)
    v = (uniforms(rng, (len(q.blocks(w)[0]),), real),) if q.scale.is_drawn else ()
    calls = {
        "cast": lambda: q.cast(w), "round": lambda: q.round(w, u, *v), "mean": lambda: q.mean(w),
        "variance": lambda: q.variance(w), "bracket": lambda: q.bracket(w),
    }  # fmt: skip
    if q.codebook.is_complex or q.scale.is_drawn:
        del calls["bracket"]
    return {name: call for name, call in calls.items() if name in names}


def check(q, w, rng, names=OPERATIONS, always=True):
    """Equal bits for all operations; ``always``: and none is left to the plain path."""
    kept = w.tobytes()
    for name, call in operations(q, w, rng, names).items():
        with np.errstate(all="ignore"), plain():
            expected = outcome(call)
        with np.errstate(all="ignore"), compiled() as answers:
            assert outcome(call) == expected, (str(q), name)
        assert not always or isinstance(expected, tuple) or all(a is not None for a in answers), (str(q), name)
    assert w.tobytes() == kept


def outcome(call):
    """The bits of the result, or the error with its message."""
    try:
        return bits(call())
    except (TypeError, ValueError) as error:
        return type(error), str(error)

"""Shared inputs of the tests: formats, float types, and blocks of weights that sit where quantizers go wrong.

Random weights miss most failures: a lattice that moves with its weights fails at scale breakpoints, sign ties, zeros,
clip edges, and one unit in the last place beside each of them. ``assemble`` builds blocks from such places; hypothesis
drives it value by value (``blocks``, ``cases``), sweeps drive it with a seeded generator (``probes``).
"""

from __future__ import annotations

import os
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lotion_theory import Quantizer
from lotion_theory.formats import codebooks, scaling

FLOATS = ("float64", "float32", "float16", "bfloat16")
_NUMPY_TYPES = {name: np.dtype(getattr(ml_dtypes if name == "bfloat16" else np, name)) for name in FLOATS}
LARGEST = {name: float(ml_dtypes.finfo(dtype).max) for name, dtype in _NUMPY_TYPES.items()}
SMALLEST = {name: float(ml_dtypes.finfo(dtype).smallest_subnormal) for name, dtype in _NUMPY_TYPES.items()}

SCALES = (
    "absmax", "gauge", "absmax7.5", "absmax8", "slack1.1", "signed-absmax", "q4_0", "absmean", "l2l1", "zp-int",
    "zp-real", "zp-fp16", "l1", "modulus", *(f"e8m0-{how}" for how in ("floor", "ceil", "even", "sr")),
    *(f"{fmt}-{how}" for fmt in ("e4m3", "ue5m3", "fp16") for how in ("nearest", "up", "sr")),
    "e4m3-nearest-2level", "e4m3-up-2level",
)  # fmt: skip


@lru_cache(maxsize=1)
def every_format() -> tuple[str, ...]:
    """``CODEBOOK/SCALE`` for every codebook and every scale rule that applies to it (``frozen`` aside)."""
    out = []
    for book in codebooks.names():
        for scale in SCALES:
            try:
                scaling.scale_rule(scale).check(codebooks.codebook(book))
            except ValueError:
                continue
            out.append(f"{book}/{scale}")
    return tuple(out)


# One of each kind of codebook under one of each kind of scale; every scale and every codebook family occurs.
FORMATS = (
    "int4/absmax", "int8/absmax", "int4full/absmax", "ternary/absmax", "binary/absmax", "e2m1/absmax", "e4m3/absmax",
    "e5m2/absmax", "nf4/absmax", "pot3/absmax", "dynamic8/absmax", "int4full/gauge", "int2full/gauge", "dynamic8/gauge",
    "iq4nl/gauge", "int4full/absmax7.5", "int4full/absmax8", "int4/slack1.1", "int4full/signed-absmax", "int4full/q4_0",
    "ternary/absmean", "ternary/l2l1", "uint4/zp-int", "uint8/zp-int", "uint4/zp-real", "uint2/zp-real", "uint4/zp-fp16",
    "e2m1/e8m0-floor", "e2m1/e8m0-ceil", "e2m1/e8m0-even", "e2m1/e8m0-sr", "int8/e8m0-floor", "e4m3/e8m0-even",
    "e3m2/e8m0-ceil", "int4/e8m0-sr", "binary/e8m0-sr", "e2m1/e4m3-nearest", "e2m1/e4m3-up", "e2m1/e4m3-sr",
    "int4/ue5m3-nearest", "e2m3/ue5m3-up", "e2m1/ue5m3-sr", "int8/fp16-nearest", "int8/fp16-up", "int8/fp16-sr",
    "nf4/e4m3-sr", "e2m1/e4m3-nearest-2level", "e2m1/e4m3-up-2level",
)  # fmt: skip


def promising(what: str, formats: tuple[str, ...] = FORMATS) -> list[str]:
    """Those of ``formats`` whose scale rule promises ``what``: "unbiased", "continuous" or "fixed"."""
    quantizers = [(text, Quantizer.parse(text)) for text in formats]
    return [text for text, q in quantizers if getattr(q.scale.promise(q.codebook), what)]


def examples(count: int) -> Any:
    """Hypothesis settings with ``count`` of the default profile's examples, under ``explore`` more in proportion.

    Under ``exhaustive`` no property has fewer examples than the profile names.
    """
    usual = settings.default.max_examples
    least = usual if settings.get_current_profile_name() == "exhaustive" else 1
    return settings(max_examples=max(least, count * usual // settings.get_profile("default").max_examples))


# --- types -----------------------------------------------------------------------------------------------------------


def numpy_type(dtype: str) -> np.dtype:
    """The numpy type called ``dtype``, bfloat16 included."""
    return _NUMPY_TYPES[dtype]


def as_torch(x: np.ndarray) -> Any:
    """A tensor of the same type and bits as the numpy array ``x``."""
    import torch

    if x.dtype == _NUMPY_TYPES["bfloat16"]:
        return torch.from_numpy(np.ascontiguousarray(x).view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(x.copy())


def as_fractions(x: Any) -> np.ndarray:
    """The exact values of a float array, as an object array of Fractions."""
    wide = np.asarray(x, dtype=np.float64)
    out = np.empty(wide.shape, dtype=object)
    out.reshape(-1)[:] = [Fraction(float(v)) for v in wide.reshape(-1)]
    return out


def wide(x: Any) -> np.ndarray:
    """A float64 copy of a numpy array or tensor, exact for every type here."""
    if not isinstance(x, np.ndarray):
        x = x.detach().double().numpy()
    return x.astype(np.float64)


def shifted(x: np.ndarray, ulps: np.ndarray | int) -> np.ndarray:
    """``x`` moved by ``ulps`` (-1, 0 or 1, elementwise) units in the last place of its own type."""
    ends = np.array([-np.inf, np.inf]).astype(x.dtype)
    with np.errstate(over="ignore"):
        down, up = np.nextafter(x, ends[0]), np.nextafter(x, ends[1])
    ulps = np.broadcast_to(ulps, x.shape)
    out = np.where(ulps > 0, up, np.where(ulps < 0, down, x))
    return np.where(np.isfinite(out.astype(np.float64)), out, x)


def same(a: Any, b: Any) -> bool:
    """Equal values and types; -0 equals 0."""
    return str(a.dtype).removeprefix("torch.") == str(b.dtype).removeprefix("torch.") and np.array_equal(
        wide(a), wide(b)
    )


# --- blocks ----------------------------------------------------------------------------------------------------------


@cache
def limit(text: str, dtype: str) -> float:
    """Largest magnitude that a format accepts: drawn scales refuse blocks beyond their storage format."""
    q = Quantizer.parse(text)
    if not q.scale.is_drawn:
        return LARGEST[dtype]
    fmt = scaling.SCALE_FORMATS[q.scale.name.removesuffix("-sr")]
    return min(LARGEST[dtype], float(q.codebook.high * fmt.largest))


@cache
def leads(text: str, dtype: str) -> np.ndarray:
    """Positive magnitudes at which the scale rule may change its mind, in increasing order, as values of ``dtype``.

    Every level times powers of two; the top level times every E4M3, UE5M3 or fp16 value and the midpoints of those;
    the first subnormal numbers, the smallest normal ones and the largest. Neighbours are reached by ``shifted``.
    """
    q = Quantizer.parse(text)
    kind = _NUMPY_TYPES[dtype]
    powers = 2.0 ** np.arange(-1074, 1023, 7 if dtype == "float64" else 1)
    powers = powers[(powers >= SMALLEST[dtype]) & (powers <= LARGEST[dtype])]
    tops = np.unique(np.concatenate([np.abs(q.codebook.values[[0, -1]]), [7, 7.5, 8, 5, 3.5, 7.75, 1, 1.5]]))
    with np.errstate(over="ignore"):
        points = [
            np.outer(tops, powers).ravel(),
            SMALLEST[dtype] * np.arange(1, 20),
            [LARGEST[dtype], LARGEST[dtype] / 2],
        ]
    fmt = scaling.SCALE_FORMATS.get(q.scale.name.partition("-")[0])
    if fmt is not None and fmt.mantissa_bits:
        codes = np.arange(2**fmt.mantissa_bits, 2 ** (fmt.mantissa_bits + 1), max(1, 2**fmt.mantissa_bits // 32))
        stored = np.outer(codes, 2.0 ** np.arange(fmt.min_exponent - 2 * fmt.mantissa_bits, 17)).ravel()
        stored = np.unique(np.concatenate([stored, [float(fmt.largest)]]))
        points += [stored * float(q.codebook.high), (stored[1:] + stored[:-1]) / 2 * float(q.codebook.high)]
    with np.errstate(over="ignore"):
        found = np.unique(np.concatenate(points).astype(kind).astype(np.float64))
    return found[(found > 0) & (found <= limit(text, dtype))].astype(kind)


def all_levels(lattice: Any) -> np.ndarray:
    """Every level of a lattice, shape (blocks, levels), sorted along each row, in the working type."""
    rows, count = lattice.top.shape[0], len(lattice.book.levels)
    index = np.broadcast_to(np.arange(count), (rows, count))
    if not isinstance(lattice.top, np.ndarray):
        import torch

        index = torch.from_numpy(index.copy())
    with np.errstate(over="ignore"):  # Levels are clipped to the float range after they are multiplied.
        levels = lattice.level(index)
    return np.sort(levels if isinstance(levels, np.ndarray) else levels.detach().numpy(), axis=1)


RECIPES = 8


def assemble(text: str, lead: np.ndarray, recipe: np.ndarray, pick: np.ndarray, ulps: np.ndarray) -> np.ndarray:
    """Blocks of weights, shape (rows, size), in the type of ``lead``, none larger in magnitude than the row's lead.

    ``lead``: (rows,), signed, placed in the first column. ``recipe``, ``pick`` in [0, 1) and ``ulps`` in -1..1, all of
    shape (rows, size - 1), make the others: 0, 1: a random share of the lead; 2: a level of the lattice; 3: the
    midpoint of two levels; 4: zero, of either sign; 5: plus or minus the lead; 6: the lead times a small power of two;
    7: a level of the fine and the coarse lattice by turns. Then each moves by ``ulps``.
    """
    kind = lead.dtype
    q = Quantizer.parse(text).with_partition("row")
    size = np.abs(lead)
    base = np.concatenate([lead[:, None], np.zeros(recipe.shape, dtype=kind)], axis=1)
    with np.errstate(over="ignore", invalid="ignore"):
        ladders = [all_levels(branch.draw.lattice).astype(np.float64) for branch in q.branches(base)]
        first, other = ladders[0], ladders[-1]
        place = (pick * (first.shape[1] - 1)).astype(int)
        low, high = np.take_along_axis(first, place, 1), np.take_along_axis(first, place + 1, 1)
        height = size.astype(np.float64)[:, None]
        signed = (2 * pick - 1) * height
        choices = [
            signed, signed, low, low / 2 + high / 2, np.where(pick < 0.5, -0.0, 0.0), np.copysign(height, signed),
            np.copysign(height * 2.0 ** -np.floor(pick * 40), pick - 0.5), np.take_along_axis(other, place, 1),
        ]  # fmt: skip
        rest = shifted(np.choose(recipe, choices).astype(kind), ulps)
    rest = np.clip(rest.astype(np.float64), -size.astype(np.float64)[:, None], size.astype(np.float64)[:, None])
    return np.concatenate([lead[:, None], rest.astype(kind)], axis=1)


def probes(text: str, dtype: str, rows: int, size: int, seed: int, typical: float = 0.5) -> np.ndarray:
    """``rows`` assembled blocks, the last one all zero; a share ``typical`` of the leads is log-normal around 1."""
    rng = np.random.default_rng(seed)
    table = leads(text, dtype)
    lead = table[rng.integers(table.size, size=rows)]
    plain = np.minimum(np.exp(rng.standard_normal(rows)), limit(text, dtype)).astype(lead.dtype)
    lead = np.where(rng.random(rows) < typical, plain, shifted(lead, rng.integers(-1, 2, rows)))
    lead = np.minimum(lead.astype(np.float64), limit(text, dtype)).astype(lead.dtype)
    lead = np.where(rng.random(rows) < 0.5, -lead, lead)
    shape = (rows, size - 1)
    block = assemble(text, lead, rng.integers(RECIPES, size=shape), rng.random(shape), rng.integers(-1, 2, shape))
    block[-1] = 0
    return block


@st.composite
def blocks(draw: Any, text: str, dtype: str, max_rows: int = 3, max_size: int = 6) -> np.ndarray:
    """Assembled blocks of a format, shape (rows, size)."""
    table = leads(text, dtype)
    rows, size = draw(st.integers(1, max_rows)), draw(st.integers(1, max_size))
    where = draw(hnp.arrays(np.int64, rows, elements=st.integers(0, table.size - 1)))
    lead = shifted(table[where], draw(hnp.arrays(np.int8, rows, elements=st.integers(-1, 1))))
    lead = np.minimum(lead.astype(np.float64), limit(text, dtype)).astype(lead.dtype)
    lead = np.where(draw(hnp.arrays(bool, rows)), -lead, lead)
    shape = (rows, size - 1)
    recipe = draw(hnp.arrays(np.int8, shape, elements=st.integers(0, RECIPES - 1)))
    pick = draw(hnp.arrays(np.float64, shape, elements=st.floats(0, 1, exclude_max=True, width=16)))
    return assemble(text, lead, recipe, pick, draw(hnp.arrays(np.int8, shape, elements=st.integers(-1, 1))))


@st.composite
def cases(
    draw: Any, formats: tuple[str, ...] = FORMATS, dtypes: tuple[str, ...] = FLOATS, **sizes: int
) -> tuple[Quantizer, np.ndarray]:
    """A quantizer and weights for it: of shape (rows, size), or with a third axis where the partition is by channel."""
    text, dtype = draw(st.sampled_from(formats)), draw(st.sampled_from(dtypes))
    w = draw(blocks(text, dtype, **sizes))
    divisors = [n for n in range(1, w.shape[1] + 1) if w.shape[1] % n == 0]
    kinds = ["row", "tensor", "channel", *(f"{kind}={n}" for kind in ("block", "channel-block") for n in divisors)]
    partition = draw(st.sampled_from(kinds))
    if partition.startswith("channel"):
        w = w.reshape(len(w), -1, draw(st.sampled_from(divisors)))
    return Quantizer.parse(f"{text}/{partition}"), w


def fractions(bound: int = 8) -> st.SearchStrategy[Fraction]:
    """Exact weights with small denominators, so that grid points, midpoints and ties are frequent."""
    return st.builds(Fraction, st.integers(-8 * bound, 8 * bound), st.sampled_from([1, 2, 3, 4, 7, 8]))


@st.composite
def exact_blocks(draw: Any, max_rows: int = 2, max_size: int = 5) -> np.ndarray:
    """An object array of Fractions, shape (rows, size), zeros and ties included."""
    shape = draw(st.tuples(st.integers(1, max_rows), st.integers(1, max_size)))
    out = np.empty(shape, dtype=object)
    out.reshape(-1)[:] = draw(st.lists(fractions(), min_size=out.size, max_size=out.size))
    return out


def uniforms(rng: np.random.Generator, shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    """Uniforms in [0, 1) of float32 or float64, a tenth of them at the ends 0 and 1 - ulp."""
    u = rng.random(shape, dtype=dtype)
    end = rng.random(shape)
    u[end < 0.05] = 0
    u[end > 0.95] = np.nextafter(np.ones(1, dtype), 0)[0]
    return u


def storable(name: str) -> bool:
    """Whether the file system takes the name, which an ASCII locale decides."""
    try:
        return bool(os.fsencode(name))
    except UnicodeEncodeError:
        return False

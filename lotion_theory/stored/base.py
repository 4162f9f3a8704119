"""Block types that runtimes store: their bytes, their levels, and where their scales come from.

A block of a stored type is some weights along a row: a code per weight, and scales. A weight is
``step * level + shift`` with ``step`` and ``shift`` of its group, a part of the block, in float32. Once the scales are
chosen the levels of every weight are fixed: a frozen lattice, on which any scheme can round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from .layout import Field, pieces

Fields = Mapping[str, np.ndarray]
Scales = tuple[np.ndarray, np.ndarray | None]
SEARCHES = ("own", "error")


@dataclass(frozen=True, eq=False)
class Parameters:
    """What a type stores beside codes. ``fields``: name -> array (rows, blocks, numbers per block) as stored.

    ``factor``: what all weights of the tensor are multiplied by, for types that have such a number; 1 for others.
    """

    fields: Fields
    factor: np.float32 = field(default_factory=lambda: np.float32(1))

    def rows(self, part: slice) -> Parameters:
        """The same for some of the rows."""
        return Parameters({name: numbers[part] for name, numbers in self.fields.items()}, self.factor)


@dataclass(frozen=True, eq=False)
class StoredType:
    """A block type. ``ggml``: its name in ggml and GGUF. ``block``: weights per block. ``size``: bytes per block.

    ``group``: weights that share a step and a shift. ``levels``: the level of each stored number, in the order of
    numbers; codes count the different levels upwards instead (``units``). ``codes`` and ``fields``: where codes and the
    numbers of scales stand. ``scales(fields)``: steps and shifts of groups, (rows, groups). ``own(x, importance)``:
    the fields that the reference quantizer chooses for rows ``x``. ``near(step, shift)``: the fields nearest to
    given steps and shifts. ``best(x, importance, fields)``: fields of smaller error, found from given ones.
    ``has_factor``: whether a number for the whole tensor goes with it. ``reach``: the largest magnitude without it,
    None where the scales' own overflow says it.
    """

    name: str
    ggml: str
    block: int
    size: int
    group: int
    levels: tuple[int, ...]
    codes: Field
    fields: tuple[Field, ...]
    scales: Callable[[Fields], Scales]
    own: Callable[[np.ndarray, np.ndarray | None], Fields]
    near: Callable[[np.ndarray, np.ndarray | None], Fields]
    best: Callable[[StoredType, np.ndarray, np.ndarray, Fields], Fields]
    has_factor: bool = False
    reach: np.float32 | None = None

    @property
    def bits(self) -> float:
        """Bits per weight, scales included."""
        return 8 * self.size / self.block

    @cached_property
    def units(self) -> np.ndarray:
        """The levels of codes 0, 1, ..., increasing, float64, read-only."""
        units = np.array(sorted(set(self.levels)), dtype=np.float64)
        units.flags.writeable = False
        return units

    @cached_property
    def has_shift(self) -> bool:
        """Whether there are shifts: whether levels need not contain 0."""
        empty = {f.name: np.zeros((1, 1, f.count), f.dtype) for f in self.fields}
        return self.scales(empty)[1] is not None

    # --- bytes -------------------------------------------------------------------------------------------------------

    def pack(self, parameters: Parameters, codes: np.ndarray) -> np.ndarray:
        """The rows as stored: uint8 (rows, bytes). ``codes``: integers (rows, n), places in ``units``.

        Raises ValueError for codes of another shape or range, TypeError where they are no integers.
        """
        codes = self._codes(parameters, codes)
        rows, n = codes.shape
        out = np.zeros((rows * (n // self.block), self.size), np.uint8)
        numbers = {name: part.reshape(len(out), -1) for name, part in parameters.fields.items()}
        flat = codes.reshape(len(out), self.block)
        for part in pieces(len(out), self.block):
            self.codes.write(self._numbers[flat[part]], out[part])
            for stored in self.fields:
                stored.write(numbers[stored.name][part], out[part])
        return out.reshape(rows, -1)

    def unpack(self, data: np.ndarray, shape: tuple[int, ...]) -> tuple[Parameters, np.ndarray]:
        """``(parameters, codes)`` of stored rows; ``codes`` uint8 (rows, n), where ``shape`` ends in n.

        ``data``: uint8 of any shape, row after row. Scales that are infinite or NaN are taken as they are. Raises
        ValueError for another number of bytes, and for stored numbers that are no level.
        """
        rows, n = self._rows(shape)
        data = np.asarray(data)
        if data.dtype != np.uint8:
            raise TypeError(f"bytes of {self.name} have type {data.dtype}; valid: uint8")
        blocks = rows * (n // self.block)
        if data.size != blocks * self.size:
            raise ValueError(
                f"{self.name} of shape {tuple(shape)} takes {blocks * self.size} bytes, and {data.size} are given"
            )
        data = data.reshape(blocks, self.size)
        codes = np.empty((blocks, self.block), np.uint8)
        fields = {f.name: np.empty((blocks, f.count), f.dtype) for f in self.fields}
        for part in pieces(blocks, self.block):
            numbers = self.codes.read(data[part])
            if len(self.levels) < 256 and (wrong := numbers >= len(self.levels)).any():
                raise ValueError(
                    f"{wrong.sum()} weights of {self.name} hold the number {numbers[wrong][0]}, which is no level; "
                    f"valid: 0 to {len(self.levels) - 1}"
                )
            codes[part] = self._places[numbers]
            for stored in self.fields:
                fields[stored.name][part] = stored.read(data[part])
        shaped = {name: part.reshape(rows, -1, part.shape[1]) for name, part in fields.items()}
        return Parameters(shaped), codes.reshape(rows, n)

    @cached_property
    def _places(self) -> np.ndarray:
        """The code of each stored number."""
        return np.searchsorted(self.units, self.levels).astype(np.uint8)

    @cached_property
    def _numbers(self) -> np.ndarray:
        """The stored number of each code: the first of those that have its level."""
        return np.array([self.levels.index(level) for level in self.units], np.uint8)

    # --- the lattice -------------------------------------------------------------------------------------------------

    def steps(self, parameters: Parameters) -> Scales:
        """``(step, shift)`` of every group, float32 (rows, n // group), the factor left out; ``shift`` may be None."""
        with np.errstate(all="ignore"):
            return self.scales(parameters.fields)

    def lattice(self, parameters: Parameters) -> Scales:
        """``(step, shift)`` of every weight, float32 (rows, n); ``shift`` is None for types without.

        Level k of a weight is ``shift + step * units[k]``: computed in float32, these are the bits of :meth:`values`
        where the factor is 1, and within three roundings of them where it is not.
        """
        step, shift = self.steps(parameters)
        with np.errstate(all="ignore"):
            step = step * parameters.factor
            shift = None if shift is None else shift * parameters.factor
        return np.repeat(step, self.group, axis=1), None if shift is None else np.repeat(shift, self.group, axis=1)

    def values(self, parameters: Parameters, codes: np.ndarray) -> np.ndarray:
        """The weights that runtimes compute, float32 (rows, n): those of ``gguf`` bit for bit, times the factor.

        Where a scale is infinite or NaN, so are weights. Runtimes that fuse ``step * level + shift`` into one rounding
        may differ in the last bit.
        """
        codes = self._codes(parameters, codes)
        step, shift = self.steps(parameters)
        out = np.empty(codes.shape, np.float32)
        units = self.units.astype(np.float32)
        for part in pieces(*codes.shape):
            grouped = out[part].reshape(*step[part].shape, self.group)
            units.take(codes[part].reshape(grouped.shape), out=grouped)
            with np.errstate(all="ignore"):
                grouped *= step[part][..., None]
                if shift is not None:
                    grouped += shift[part][..., None]
                if parameters.factor != 1:
                    grouped *= parameters.factor
        return out

    def nearest(self, parameters: Parameters, w: np.ndarray) -> np.ndarray:
        """The code of the level nearest to every weight of ``w`` (rows, n), uint8; of two the one of even place.

        Where a step is 0 all levels are equal, and the code is that of level 0. Raises ValueError for NaN, infinite
        values and another shape than that of the parameters.
        """
        x = self._weights(w)
        step, shift = self.steps(parameters)
        if step.size * self.group != x.size:
            raise ValueError(f"weights of shape {x.shape} do not belong to parameters of {step.size} groups")
        codes = np.empty(x.shape, np.uint8)
        for part in pieces(*x.shape):
            grouped = x[part].reshape(*step[part].shape, self.group)
            if parameters.factor != 1:
                grouped = grouped / parameters.factor
            moved = None if shift is None else shift[part][..., None]
            codes[part] = nearest_level(self.units, grouped, step[part][..., None], moved)[0].reshape(x[part].shape)
        return codes

    # --- scales ------------------------------------------------------------------------------------------------------

    def fit(self, w: np.ndarray, importance: np.ndarray | None = None, search: str = "own") -> Parameters:
        """Scales for the weights of a whole tensor ``w``, (rows, n), taken as float32.

        ``importance``: None, or not negative, (n,) or (rows, n), such as the diagonal of the inputs' second moment. A
        block in which all are 0 counts as one without.
        ``search``: "own" for the rule of the type's reference quantizer, which has an objective of its own and, in
        some types, knows no importance; "error" to look for less ``sum(importance * (w - nearest level)**2)`` than the
        own rule gives: never more, block by block.

        Raises ValueError, naming what is wrong, for rows that blocks do not divide, NaN, infinite values, magnitudes
        beyond the scales' reach, and an unknown search.
        """
        if search not in SEARCHES:
            raise ValueError(f"search = {search!r}; valid: {', '.join(SEARCHES)}")
        x = self._weights(w)
        weight = self._importance(importance, x.shape)
        if not self.has_factor or search == "own":
            return self._fitted(x, weight, search, np.float32(1))
        # The largest magnitude at the highest level of the largest scale; without it small weights have coarse scales.
        factor = np.abs(x).max() / self.reach
        found = [self._fitted(x, weight, search, f) for f in (np.float32(1), factor) if f > 0]
        errors = [self._error(x, weight, one) for one in found]
        return found[int(np.argmin(errors))]

    def _fitted(self, x: np.ndarray, importance: np.ndarray | None, search: str, factor: np.float32) -> Parameters:
        found: dict[str, list[np.ndarray]] = {f.name: [] for f in self.fields}
        for part in pieces(*x.shape):
            rows = x[part] if factor == 1 else x[part] / factor
            with np.errstate(all="ignore"):
                fields = self.own(rows, None if importance is None else importance[part])
                if search == "error":
                    weight = np.ones_like(rows) if importance is None else importance[part]
                    fields = self.best(self, rows, weight, fields)
                step, shift = self.scales(fields)
            most = np.abs(rows).max()
            finite = bool(np.isfinite(step).all() and (shift is None or np.isfinite(shift).all()))
            if shift is None:  # a search whose sums overflow leaves no step at all
                empty = (step.reshape(len(rows), -1, self.block // self.group) == 0).all(axis=2)
                finite = finite and not (empty & (np.abs(rows).reshape(*empty.shape, self.block).max(axis=2) > 1)).any()
            if not finite or (search == "own" and self.reach is not None and most > self.reach):
                raise ValueError(f"magnitudes up to {most:g} exceed what the scales of {self.name} reach")
            for name, numbers in fields.items():
                found[name].append(numbers)
        return Parameters({name: np.concatenate(parts) for name, parts in found.items()}, factor)

    def project(self, step: np.ndarray, shift: np.ndarray | None = None) -> Parameters:
        """Parameters with a lattice near given steps and shifts of groups, (rows, n // group), such as learned ones.

        Types of one scale per group round it; those with scales of scales choose the common scale by the largest.
        Steps and shifts that a type cannot have (a shift above 0 in K types) become 0. Raises ValueError for shapes
        that do not fit, a shift where the type has none, and values beyond the reach of the scales.
        """
        step = np.asarray(step, dtype=np.float32)
        per_block = self.block // self.group
        if step.ndim != 2 or not step.size or step.shape[1] % per_block:
            raise ValueError(f"steps have shape {step.shape}; {self.name} has {per_block} in each block of a row")
        if shift is not None:
            if not self.has_shift:
                raise ValueError(f"{self.name} has no shifts")
            shift = np.broadcast_to(np.asarray(shift, dtype=np.float32), step.shape)
        elif self.has_shift:
            shift = np.zeros_like(step)
        with np.errstate(all="ignore"):
            fields = self.near(step, shift)
            found = self.scales(fields)
        if not all(part is None or np.isfinite(part).all() for part in (step, shift, *found)):
            raise ValueError(f"steps or shifts are NaN, infinite or beyond what the scales of {self.name} reach")
        return Parameters(fields)

    def quantize(self, w: np.ndarray, importance: np.ndarray | None = None, search: str = "own") -> StoredTensor:
        """``w``, (..., n), with the scales of :meth:`fit` and every weight at its nearest level."""
        w = np.asarray(w)
        rows = w.reshape(self._rows(w.shape))
        parameters = self.fit(rows, importance, search)
        return StoredTensor(self, parameters, self.nearest(parameters, rows), w.shape)

    def error(self, w: np.ndarray, parameters: Parameters, importance: np.ndarray | None = None) -> float:
        """``sum(importance * (w - nearest level)**2)``, the objective of ``search="error"``."""
        x = self._weights(w)
        return self._error(x, self._importance(importance, x.shape), parameters)

    def _error(self, x: np.ndarray, importance: np.ndarray | None, parameters: Parameters) -> float:
        away = self.values(parameters, self.nearest(parameters, x)).astype(np.float64) - x
        return float((away * away * (1.0 if importance is None else importance)).sum())

    # --- arguments ---------------------------------------------------------------------------------------------------

    def _rows(self, shape: tuple[int, ...]) -> tuple[int, int]:
        if not shape or 0 in shape:
            raise ValueError(f"shape {tuple(shape)} has no rows of weights")
        n = shape[-1]
        if n % self.block:
            raise ValueError(f"rows of {n} weights are no multiple of the block of {self.name}, {self.block}")
        return math.prod(shape[:-1]), n

    def _weights(self, w: np.ndarray) -> np.ndarray:
        w = np.asarray(w)
        if w.ndim != 2 or w.dtype.kind != "f":
            raise ValueError(f"weights have type {w.dtype} and shape {w.shape}; valid: floats (rows, n)")
        self._rows(w.shape)
        with np.errstate(over="ignore"):
            x = np.ascontiguousarray(w, dtype=np.float32)
        if not np.isfinite(x).all():
            raise ValueError("weights hold NaN, infinite values or values beyond float32")
        return x

    def _importance(self, importance: np.ndarray | None, shape: tuple[int, int]) -> np.ndarray | None:
        if importance is None:
            return None
        given = np.asarray(importance)
        if given.shape not in (shape, shape[1:]) or given.dtype.kind not in "fiu":
            raise ValueError(
                f"importance has type {given.dtype} and shape {given.shape}; valid: {shape[1:]} or {shape}"
            )
        with np.errstate(over="ignore"):
            weight = np.broadcast_to(given.astype(np.float32), shape)
        if not np.isfinite(weight).all() or (weight < 0).any():
            raise ValueError("importance holds negative, NaN or infinite values")
        idle = (weight.reshape(-1, self.block) == 0).all(axis=1)
        if idle.any():
            weight = np.where(idle[:, None], np.float32(1), weight.reshape(-1, self.block)).reshape(shape)
        return weight

    def _codes(self, parameters: Parameters, codes: np.ndarray) -> np.ndarray:
        codes = np.asarray(codes)
        rows, blocks = parameters.fields[self.fields[0].name].shape[:2]
        if codes.shape != (rows, blocks * self.block):
            raise ValueError(f"codes of {self.name} have shape {codes.shape}; valid: {(rows, blocks * self.block)}")
        if codes.dtype.kind not in "iu":
            raise TypeError(f"codes have type {codes.dtype}; valid: integers")
        if codes.dtype != np.uint8 or len(self.units) < 256:
            if codes.min() < 0 or codes.max() >= len(self.units):
                raise ValueError(
                    f"codes of {self.name} are {codes.min()} to {codes.max()}; valid: 0 to {len(self.units) - 1}"
                )
            codes = codes.astype(np.uint8, copy=False)
        return np.ascontiguousarray(codes)


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """Weights of a stored type. ``codes``: uint8 (rows, n), places in ``type.units``; ``shape`` ends in n."""

    type: StoredType
    parameters: Parameters
    codes: np.ndarray
    shape: tuple[int, ...]

    @classmethod
    def from_bytes(cls, type: StoredType, data: np.ndarray, shape: tuple[int, ...], factor: float = 1) -> StoredTensor:
        """What is stored in ``data``, uint8, of a tensor of ``shape``; errors as :meth:`StoredType.unpack`.

        ``factor``: the tensor's factor, for types that have one.
        """
        parameters, codes = type.unpack(data, shape)
        return cls(type, Parameters(parameters.fields, np.float32(factor)), codes, tuple(shape))

    def values(self) -> np.ndarray:
        """The weights as runtimes compute them, float32, of ``shape``."""
        return self.type.values(self.parameters, self.codes).reshape(self.shape)

    def to_bytes(self) -> np.ndarray:
        """What is stored, uint8 (..., bytes of a row), as writers of GGUF take it; the factor is not in it."""
        return self.type.pack(self.parameters, self.codes).reshape(*self.shape[:-1], -1)

    @property
    def companions(self) -> dict[str, np.ndarray]:
        """Tensors that belong beside this one: ending of the name -> float32. GGUF has ``blk.0.ffn_up.scale``."""
        return {"scale": np.array([self.parameters.factor], np.float32)} if self.type.has_factor else {}

    @property
    def bits_per_weight(self) -> float:
        """Storage over the number of weights, companions included."""
        beside = sum(8 * tensor.nbytes for tensor in self.companions.values())
        return self.type.bits + beside / math.prod(self.shape)


def nearest_level(
    units: np.ndarray, x: np.ndarray, step: np.ndarray, shift: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """``(codes, distances)``: the places in ``units`` of the levels nearest to float32 ``x``, and ``x`` minus level.

    Levels are ``step * unit + shift`` as float32 computes them; distances are float32. Of two levels at one distance
    the one of even place is taken. Shapes broadcast.
    """
    last = len(units) - 1
    small = units.astype(np.float32)
    with np.errstate(all="ignore"):
        centred = x if shift is None else x - shift
        place = centred / np.where(step == 0, np.float32(1), step)
    np.nan_to_num(place, copy=False, nan=0.0)
    if units[-1] - units[0] == last:
        low = np.clip(np.floor(place - small[0]), 0, last - 1).astype(np.uint8)
    else:
        low = np.clip(np.searchsorted(small, place, side="right") - 1, 0, last - 1).astype(np.uint8)
    with np.errstate(all="ignore"):
        below, above = (_level(small[index], step, shift) for index in (low, low + np.uint8(1)))
        below, above = x - below, x - above
        first, second = np.abs(below), np.abs(above)
    up = (second < first) | ((second == first) & (low % 2 == 1))
    idle = np.broadcast_to(step == 0, low.shape)
    codes = np.where(idle, np.uint8(np.searchsorted(units, 0)), low + up)
    return codes.astype(np.uint8), np.where(up, above, below)


def _level(unit: np.ndarray, step: np.ndarray, shift: np.ndarray | None) -> np.ndarray:
    return unit * step if shift is None else unit * step + shift

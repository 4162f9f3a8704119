"""Rounding the weights of a model, layer by layer, with what its calibration says of their inputs."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import count
from ..rounders import Case, Rounder, names, rounder
from ..streams import Stream
from .folder import Folder, digest
from .lattices import SEARCHES, Placed, exact_values, parse_format, values
from .layers import Layer, chosen_layers
from .moments import Moment
from .walk import Batch, Stage, Survey, Walker, resting, survey

ALIASES = {"lotion": "lotion_splitting"}
INPUTS = ("quantized", "float")
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Row:
    """What became of one weight.

    ``scheme``: the one that really ran, ``reason`` why it is not the one asked for, or "". ``error``:
    ``tr(E H Eᵀ) / tr(W H Wᵀ)``, the mean squared output error over the mean squared output, and ``rtn_error`` that of
    RTN on the same lattice; of embeddings ``|E|² / |W|²``. ``vectors``: inputs behind H, ``dead``: those that are
    always 0. ``bits``: stored bits per weight. ``seconds``: of rounding, without calibration.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    scheme: str
    reason: str
    error: float
    rtn_error: float
    bits: float
    vectors: int
    dead: int
    seconds: float


@dataclass(frozen=True)
class Quantization:
    """A model on its quantized points. ``model``: the one given, whose weights are now the points; ``stored``: by
    parameter name, each as codes on its lattice, ready for a file; ``kept``: by name, why a weight is not quantized.

    ``rows``: one per weight, in the order of rounding. ``mode``: "blocks", or "whole model: ..." and why blocks could
    not be passed one by one. ``means``: per layer name, its mean input (groups, n), for :func:`correct_biases`;
    ``originals``: with ``keep_originals`` the float weights.
    """

    model: nn.Module
    stored: dict[str, Any]
    rows: tuple[Row, ...]
    kept: dict[str, str]
    mode: str
    means: dict[str, Tensor] = field(repr=False)
    originals: dict[str, Tensor] = field(repr=False)

    @property
    def bits_per_weight(self) -> float:
        """Mean stored bits of the quantized weights."""
        sizes = [math.prod(row.shape) for row in self.rows]
        return sum(row.bits * size for row, size in zip(self.rows, sizes, strict=True)) / sum(sizes)


def quantize(
    model: nn.Module,
    calibration: Iterable[Batch],
    format: Any,
    scheme: str = "lotion",
    *,
    settings: Mapping[str, Any] | None = None,
    exclude: tuple[str, ...] | list[str] = (),
    inputs: str = "quantized",
    scales: str = "own",
    fall_back: str | None = None,
    seed: int = 0,
    rows: int = 4096,
    folder: str | Path | None = None,
    keep_originals: bool = False,
    progress: Progress | None = None,
) -> Quantization:
    """Round the weights of Linear, convolution and Embedding layers, in place, so that their outputs change little.

    Layer by layer, in the order in which the model calls them, ``L(Q) = ½ tr((Q - W) H (Q - W)ᵀ)`` is made small on a
    frozen lattice, ``H = mean x xᵀ`` over the layer's inputs. With ``inputs="quantized"`` x is what the layers before
    it give after their own rounding, as in GPTQ (arXiv 2210.17323). Where a model hands one hidden state through a list
    of blocks, only one block's moments are in memory and each block is passed a few times; any other model is passed as
    a whole for every group of layers with a common input. Embeddings and tied weights are rounded to nearest.

    Args:
        model: any module. It is used in evaluation mode, and has its points as weights in the end. If rounding fails
            half-way it holds those of the layers done (with ``inputs="float"`` none).
        calibration: batches, each a tensor, a tuple of positional or a mapping of keyword arguments of the model. Read
            once and kept.
        format: a format string, a :class:`~lotion_theory.Quantizer`, or the name of a stored type ("q4_k"); or
            ``pattern -> format`` with shell patterns over parameter names, no two of which match one weight.
        scheme: a rounding scheme (``lotion_theory.rounders.names()``), or "lotion" for LOTION by operator splitting.
        settings: of the scheme, over its defaults.
        exclude: patterns of weights to keep.
        inputs: "quantized", or "float": H from the float model.
        scales: how scales are chosen: "own", by the rule of the format or the reference rule of the stored type, or
            "error", a search for RTN's least squared error, weighted by the diagonal of H (absmax formats and stored
            types).
        fall_back: None, or the scheme to take where ``scheme`` refuses a weight; the report says where. Without it
            a refusal is an error.
        seed: of schemes that draw.
        rows: rows of a matrix that are rounded at a time; bounds memory. Schemes that take all rows together do so.
        folder: where every rounded weight is kept, to go on after a kill: the same call then computes what is missing.
            One process at a time.
        keep_originals: keep the float weights in the result.
        progress: called with (done, all, text).

    Raises ValueError for formats and schemes that do not fit (before anything is rounded), a layer that calibration
    does not reach, NaN in its inputs, and what the scheme refuses; UserWarning where there are fewer input vectors than
    inputs, so that H is singular, and where a weight's type does not hold the points of a stored type.
    """
    if inputs not in INPUTS:
        raise ValueError(f"inputs = {inputs!r}; valid: {', '.join(INPUTS)}")
    if scales not in SEARCHES:
        raise ValueError(f"scales = {scales!r}; valid: {', '.join(SEARCHES)}")
    batches = _batches(calibration)
    chosen, kept = chosen_layers(model, format, exclude)
    work = _Work(
        model, dict((layer.name, parse_format(f)) for layer, f in chosen), _scheme(scheme, settings),
        None if fall_back is None else _scheme(fall_back, None), dict(settings or {}), inputs, scales, seed,
        count("rows", rows), keep_originals,
    )  # fmt: skip
    layers = [layer for layer, _ in chosen]
    for layer in layers:
        work.check(layer)
    with resting(model), ExitStack() as held:
        found = survey(model, layers, batches[0])
        if folder is not None:
            work.folder = held.enter_context(Folder.open(folder, work.identity(layers, batches)))
        return _all(work, layers, kept, found, batches, progress)


def _batches(calibration: Iterable[Batch]) -> list[Batch]:
    if isinstance(calibration, Tensor | str) or hasattr(calibration, "keys"):
        raise ValueError(f"calibration is one {type(calibration).__name__}; give a list of batches, e.g. [batch]")
    batches = [*calibration]
    if not batches:
        raise ValueError("calibration is empty; give at least one batch")
    return batches


def _scheme(name: str, settings: Mapping[str, Any] | None) -> Rounder:
    known = ALIASES.get(name, name)
    if known not in names():
        raise ValueError(f"scheme = {name!r}; valid: {', '.join([*ALIASES, *names()])}")
    scheme = rounder(known)
    if scheme.grid == "searched":
        raise ValueError(
            f"scheme = {name!r} chooses scales by itself; give scales='error' and a scheme of fixed scales"
        )
    for key in settings or ():
        if key not in scheme.settings:
            raise ValueError(f"{name} has no setting {key!r}; valid: {', '.join(scheme.settings) or 'none'}")
    return scheme


@dataclass
class _Work:
    """What is to be done to every weight, and where it is kept."""

    model: nn.Module
    formats: dict[str, Any]
    scheme: Rounder
    fall_back: Rounder | None
    settings: dict[str, Any]
    inputs: str
    scales: str
    seed: int
    rows: int
    keep_originals: bool
    folder: Folder | None = None

    def check(self, layer: Layer) -> None:
        """ValueError, naming the weight, unless its format fits it."""
        try:
            if layer.weight.is_meta:
                raise ValueError("is on the meta device; materialise the model first")
            if not layer.weight.numel():
                raise ValueError(f"has no entries: its shape is {tuple(layer.weight.shape)}")
            if not layer.weight.is_floating_point():
                raise ValueError(f"has type {layer.weight.dtype}")
            if not bool(torch.isfinite(layer.weight).all()):
                raise ValueError("has NaN or infinite weights")
            top, single = float(layer.weight.detach().abs().max()), torch.finfo(torch.float32)
            if top and not single.smallest_normal * single.eps <= top <= single.max:
                raise ValueError(f"its largest magnitude {top:.4g} is no float32, in which schemes compute")
            self.formats[layer.name].check(layer, self.scales)
        except ValueError as error:
            raise ValueError(f"{layer.name}: {error}") from None

    def identity(self, layers: Sequence[Layer], batches: Sequence[Batch]) -> dict[str, Any]:
        """What decides the result, to be compared with what a folder was begun for."""
        return {
            "weights": digest(self.model.state_dict()), "calibration": digest(batches), "inputs": self.inputs,
            "formats": {layer.name: str(self.formats[layer.name]) for layer in layers}, "scheme": self.scheme.name,
            "fall_back": None if self.fall_back is None else self.fall_back.name, "scales": self.scales,
            "settings": {key: repr(value) for key, value in self.settings.items()}, "seed": self.seed,
        }  # fmt: skip

    def kept(self, layer: Layer) -> tuple[Any, Row, Tensor | None] | None:
        """The weight, its row and its mean input, if a folder has them."""
        found = None if self.folder is None else self.folder.read(layer.name)
        if found is None:
            return None
        arrays, row = found
        mean = torch.from_numpy(arrays.pop("mean")).to(layer.weight.device) if "mean" in arrays else None
        weight = layer.weight.detach()
        return (
            self.formats[layer.name].restored(layer, weight, arrays),
            Row(**{**row, "shape": tuple(weight.shape)}),
            mean,
        )

    def round(self, layer: Layer, moment: Moment | None) -> tuple[Any, Row, Tensor | None]:
        """The weight as codes, its row, and its mean input."""
        form, weight = self.formats[layer.name], layer.weight.detach()
        h = None if moment is None else moment.matrix
        begin = time.perf_counter()
        try:
            place = form.place(layer, weight, h, self.scales)
        except ValueError as refusal:
            raise ValueError(f"{layer.name}: {refusal}") from refusal
        nearest = place.rtn()
        codes, scheme, reason = self._codes(layer, weight, place, h)
        stored = nearest if codes is None else place.stored(codes)
        seconds = time.perf_counter() - begin
        w = layer.matrix(weight).double()
        error, rtn = (_error(w, layer.matrix(exact_values(each, weight)), h) for each in (stored, nearest))
        row = Row(
            layer.name, tuple(weight.shape), str(form), scheme, reason, error, rtn, stored.bits_per_weight,
            0 if moment is None else moment.vectors,
            0 if h is None else int((h.diagonal(dim1=1, dim2=2) <= 0).all(0).sum()), seconds,
        )  # fmt: skip
        mean = None if moment is None else moment.mean
        if self.folder is not None:
            arrays = form.arrays(stored, self.scales) | ({} if mean is None else {"mean": mean.cpu().numpy()})
            self.folder.write(layer.name, arrays, asdict(row))
        return stored, row, mean

    def _codes(self, layer: Layer, weight: Tensor, place: Placed, h: Tensor | None) -> tuple[Tensor | None, str, str]:
        """Codes of the weight or None for those of RTN, the scheme that made them, and why it is not the one asked
        for."""
        reason = layer.reason_for_rtn
        if reason is not None or self.scheme.name == "rtn":
            return None, "rtn", "" if self.scheme.name == "rtn" else str(reason)
        try:
            return self._by(self.scheme, self.settings, layer, weight, place, h), self.scheme.name, ""
        except ValueError as error:
            if self.fall_back is None:
                raise ValueError(f"{layer.name}: {error}") from error
            if self.fall_back.name == "rtn":
                return None, "rtn", str(error)
            return self._by(self.fall_back, {}, layer, weight, place, h), self.fall_back.name, str(error)
        except TypeError as error:  # a setting of another type
            raise TypeError(
                f"{layer.name}: {self.scheme.name} with {dict(self.settings) or 'no settings'}: {error}"
            ) from error

    def _by(
        self,
        scheme: Rounder,
        settings: Mapping[str, Any],
        layer: Layer,
        weight: Tensor,
        place: Placed,
        h: Tensor | None,
    ) -> Tensor:
        assert h is not None, "only layers without inputs have no moment"
        w, grid = layer.matrix(weight).float(), place.grid
        share = len(w) // layer.groups
        codes = torch.empty(w.shape, dtype=torch.int64, device=w.device)
        for group in range(layer.groups):
            stream = Stream(self.seed, f"quantize/{layer.name}" + (f"/{group}" if group else ""))
            part = slice(group * share, (group + 1) * share)
            piece = grid.rows(part)
            case = Case(h[group].to(w.dtype), w[part], piece)
            points = scheme(case, stream, batch=self.rows if scheme.by_rows else None, **settings)
            codes[part] = found = piece.nearest_index(points)
            if not torch.equal(piece.at(found), points):
                raise AssertionError(f"{scheme.name} returned points off its lattice")
        return codes


def _all(
    work: _Work, layers: Sequence[Layer], kept: dict[str, str], found: Survey, batches: Sequence[Batch],
    progress: Progress | None,
) -> Quantization:  # fmt: skip
    """Round every layer in order; the story of :func:`quantize` from here on."""
    out = Quantization(work.model, {}, (), kept, "blocks" if found.blocks else f"whole model: {found.why}", {}, {})
    done = _Done(work, out)
    walker = Walker(work.model, batches, found)

    def finish(layer: Layer, moment: Moment | None) -> None:
        done.add(layer, moment)
        if work.inputs == "quantized":
            done.write()
        if progress is not None:
            progress(len(done.rows), len(layers), layer.name)

    def finish_all(group: Sequence[Stage]) -> None:  # a function, so that no moment outlives its group
        known = all(
            work.folder is not None and work.folder.has(layer.name) for stage in group for layer in stage.layers
        )
        moments = [None] * len(group) if known else walker.moments(group)
        for stage, moment in zip(group, moments, strict=True):
            for layer in stage.layers:
                finish(layer, moment)

    for layer in layers:
        if layer.reason_for_rtn is not None:
            finish(layer, None)
    for group in _groups(found.stages, work.inputs):
        finish_all(group)
    done.write()
    done.warn()
    return replace(out, rows=tuple(done.rows))


@dataclass
class _Done:
    """The layers that are rounded, with those whose points are not yet the model's weights."""

    work: _Work
    out: Quantization
    rows: list[Row] = field(default_factory=list)
    _late: list[tuple[Layer, Any]] = field(default_factory=list)
    _few: list[str] = field(default_factory=list)
    _moved: list[str] = field(default_factory=list)

    def add(self, layer: Layer, moment: Moment | None) -> None:
        """Round a layer, or take what the folder has of it."""
        stored, row, mean = self.work.kept(layer) or self.work.round(layer, moment)
        self.out.stored[layer.name] = stored
        self.rows.append(row)
        if mean is not None:
            self.out.means[layer.name] = mean
        if 0 < row.vectors < layer.shape[1]:
            self._few.append(f"{layer.name} ({row.vectors} for {layer.shape[1]})")
        self._late.append((layer, stored))

    def write(self) -> None:
        """Make the points of all that was added the model's weights."""
        while self._late:
            layer, stored = self._late.pop()
            if self.work.keep_originals:
                self.out.originals[layer.name] = layer.weight.detach().clone()
            points = values(stored, layer.weight.detach())
            if not torch.equal(points.double(), exact_values(stored, points)):
                self._moved.append(f"{layer.name} ({points.dtype} for {self.work.formats[layer.name]})")
            layer.weight.copy_(points)

    def warn(self) -> None:
        """UserWarning of what holds for the result only in part."""
        if self._moved:
            warnings.warn(
                f"weights of a type that does not hold their points: {_first(self._moved)}; the model has them rounded "
                "once more, unlike what is stored; give a float32 model",
                stacklevel=4,
            )
        if self._few:
            warnings.warn(
                f"fewer calibration vectors than inputs: {_first(self._few)}; second moments are singular, and what is "
                "not seen is decided by damping",
                stacklevel=4,
            )


def _first(texts: list[str]) -> str:
    return f"{', '.join(texts[:3])}{', ...' if len(texts) > 3 else ''}"


def _groups(stages: Sequence[Stage], inputs: str) -> list[list[Stage]]:
    """Stages whose moments are taken in one pass: with float inputs those of a block, else each alone."""
    groups: list[list[Stage]] = []
    for stage in stages:
        together = inputs == "float" and stage.block is not None and groups and groups[-1][0].block == stage.block
        groups[-1].append(stage) if together else groups.append([stage])
    return groups


def _error(w: Tensor, points: Tensor, h: Tensor | None) -> float:
    def power(x: Tensor) -> float:
        if h is None:
            return float((x * x).sum())
        x = x.reshape(len(h), -1, x.shape[1])
        return float((x * (x @ h)).sum())

    whole = power(w)
    # Roundings of a singular H may leave less than nothing.
    return max(power(points - w), 0.0) / whole if whole > 0 else 0.0

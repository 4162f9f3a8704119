"""The lattice that a format gives one weight of a model, and what is stored of the points on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .. import Quantizer
from ..export import Encoded, decode, encode
from ..formats.lattice import SpanLattice, move_to_nearest
from ..formats.quantizer import warn_of_single_weights
from ..rounders import Grid
from ..rounders.points import encoded, placement
from ..stored import StoredTensor, StoredType, stored_type
from ..stored import names as stored_names
from .layers import Layer

SEARCHES = ("own", "error")


class Placed(Protocol):
    """A weight on its lattice. ``grid``: of (rows, n); codes have that shape too."""

    @property
    def grid(self) -> Grid: ...

    def rtn(self) -> Any:
        """The weight rounded to nearest, as :meth:`stored` gives it."""

    def stored(self, codes: Tensor) -> Any:
        """The codes as what a file holds: :class:`Encoded`, or :class:`~lotion_theory.stored.StoredTensor`."""


def values(stored: Any, weight: Tensor) -> Tensor:
    """The points behind ``stored``, of the shape, type and device of ``weight``."""
    if isinstance(stored, Encoded):
        return decode(stored).to(weight.device)
    return torch.from_numpy(stored.values()).to(weight.device, weight.dtype).reshape(weight.shape)


def exact_values(stored: Any, weight: Tensor) -> Tensor:
    """The points as a file holds them, in float64: ``weight`` may have a narrower type than those of a stored type."""
    return values(stored, weight if isinstance(stored, Encoded) else weight.double()).double()


def parse_format(given: Any) -> QuantizerFormat | StoredFormat:
    """The name of a stored type, a format string or a Quantizer; ValueError for anything else.

    A name of both, such as "q4_0", is that of the stored type; "q4_0/block=32" is the format.
    """
    if isinstance(given, str) and given.lower() in stored_names():
        return StoredFormat(stored_type(given))
    try:
        return QuantizerFormat(Quantizer.parse(given))
    except ValueError as error:
        raise ValueError(f"{error}; or a stored type: {', '.join(stored_names())}") from None


@dataclass(frozen=True)
class QuantizerFormat:
    """A format with a scale rule in w."""

    quantizer: Quantizer

    def __str__(self) -> str:
        return str(self.quantizer)

    def check(self, layer: Layer, scales: str) -> None:
        """ValueError unless the format fits the weight, and the search for scales the format."""
        q = self.quantizer
        if scales == "error" and not q.is_absmax:
            raise ValueError(f"scales = 'error' with format {q}: only absmax scales are searched; valid: own")
        if q.codebook.is_complex:
            raise ValueError(f"format {q} is complex; weights of layers are quantized as real numbers")
        if layer.turned and q.partition.by_channel:
            raise ValueError(
                f"the first axis of {type(layer.module).__name__}'s weight is its inputs; {q} needs outputs"
            )
        q.partition.length(tuple(layer.weight.shape))
        warn_of_single_weights(q, tuple(layer.weight.shape), layer.name)

    def place(self, layer: Layer, weight: Tensor, h: Tensor | None, scales: str) -> Placed:
        """The lattice that the format gives ``weight``; of a drawn scale the more probable one. ``scales="error"``: of
        an absmax format the one whose blocks are clipped for the least error, weighted by the diagonal of H."""
        if scales == "error":
            return _OfQuantizer(layer, weight, self.quantizer.with_top(clipped_tops(self.quantizer, layer, weight, h)))
        return _OfQuantizer(layer, weight, self._frozen(weight))

    def _frozen(self, weight: Tensor) -> Quantizer:
        q = self.quantizer
        return q.freeze(weight) if q.scale.is_drawn else q

    def arrays(self, stored: Encoded, scales: str) -> dict[str, np.ndarray]:
        """What :meth:`restored` needs."""
        codes = {"codes": stored.codes.cpu().numpy()}
        return codes if scales == "own" else codes | {"top": stored.top.cpu().numpy()}

    def restored(self, layer: Layer, weight: Tensor, arrays: Mapping[str, np.ndarray]) -> Encoded:
        """The stored weight again."""
        q = self._frozen(weight)
        if "top" in arrays:
            q = self.quantizer.with_top(torch.from_numpy(arrays["top"]).to(weight.device)[:, None])
        return encode(weight, q, codes=torch.from_numpy(arrays["codes"]).to(weight.device))


@dataclass(frozen=True)
class _OfQuantizer:
    layer: Layer
    weight: Tensor
    q: Quantizer

    @cached_property
    def grid(self) -> Grid:
        return placement(self.weight, self.q).grid(lambda x: self.layer.matrix(x).float())

    def rtn(self) -> Encoded:
        return encode(self.weight, self.q)

    def stored(self, codes: Tensor) -> Encoded:
        return encoded(self.weight, self.q, self.layer.tensor(torch.where(self.grid.step == 0, -1, codes)))


@dataclass(frozen=True)
class StoredFormat:
    """A type of blocks that runtimes store."""

    type: StoredType

    def __str__(self) -> str:
        return self.type.name

    def check(self, layer: Layer, scales: str) -> None:
        """ValueError unless the type fits the weight."""
        if layer.turned or layer.kind == "conv":
            raise ValueError(
                f"{self.type.name} stores rows of linear layers and embeddings; give a format for this one"
            )
        if layer.shape[1] % self.type.block:
            raise ValueError(
                f"rows of {layer.shape[1]} do not divide into blocks of {self.type.block}, which {self.type.name} "
                "stores; give this weight another format, or exclude it"
            )

    def place(self, layer: Layer, weight: Tensor, h: Tensor | None, scales: str) -> Placed:
        """The lattice of the scales chosen for ``weight``, by the type's own rule or by a search."""
        w = weight.detach().float().cpu().numpy()
        importance = None if h is None or scales == "own" else h[0].diagonal().cpu().numpy()
        return _OfStored(self.type, weight, w, self.type.fit(w, importance, scales))

    def arrays(self, stored: StoredTensor, scales: str) -> dict[str, np.ndarray]:
        """What :meth:`restored` needs."""
        return {"bytes": stored.to_bytes(), "factor": np.asarray(stored.parameters.factor)}

    def restored(self, layer: Layer, weight: Tensor, arrays: Mapping[str, np.ndarray]) -> StoredTensor:
        """The stored weight again."""
        return StoredTensor.from_bytes(self.type, arrays["bytes"], tuple(weight.shape), float(arrays["factor"]))


@dataclass(frozen=True)
class _OfStored:
    type: StoredType
    weight: Tensor
    w: np.ndarray
    parameters: Any

    @cached_property
    def grid(self) -> Grid:
        step, shift = self.type.lattice(self.parameters)
        place = self.weight.device
        return Grid(
            torch.from_numpy(step).to(place), self.type.units,
            None if shift is None else torch.from_numpy(shift).to(place),
        )  # fmt: skip

    def rtn(self) -> StoredTensor:
        return self.stored(self.grid.nearest_index(self.weight.float()))

    def stored(self, codes: Tensor) -> StoredTensor:
        return StoredTensor(self.type, self.parameters, codes.cpu().numpy(), tuple(self.weight.shape))


def clipped_tops(q: Quantizer, layer: Layer, weight: Tensor, h: Tensor | None) -> Tensor:
    """Highest levels of blocks, (blocks, 1), for which RTN's squared error, weighted by the diagonal of H, is least.

    Tried are 60 shares of the largest magnitude from 1 down to 0.4; of equal errors the larger level wins. Never worse
    than absmax in this error.
    """
    x = q.partition.to_blocks(weight.detach()).float()
    share = torch.ones_like(layer.matrix(weight), dtype=torch.float32)
    if h is not None:
        share = h.diagonal(dim1=1, dim2=2).float().repeat_interleave(layer.shape[0] // layer.groups, 0)
    share = q.partition.to_blocks(layer.tensor(share))
    top = x.abs().amax(1, keepdim=True)
    best, least = top.clone(), torch.full_like(top, torch.inf)
    for factor in torch.linspace(1, 0.4, 60).tolist():
        tried = SpanLattice(q.codebook, "float32", top * factor)
        error = (share * (move_to_nearest(tried.locate(x)) - x) ** 2).sum(1, keepdim=True)
        better = error < least
        best, least = torch.where(better, top * factor, best), torch.where(better, error, least)
    return best.to(weight.dtype).to(torch.float64 if weight.dtype == torch.float64 else torch.float32)

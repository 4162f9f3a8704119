"""Second moments of the inputs of layers, summed up batch by batch."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .layers import Layer

# Vectors of one product: bounds the copy of the inputs that it needs.
_VECTORS = 1 << 14


@dataclass
class Moment:
    """``Σ x xᵀ`` over the input vectors x of a layer, (groups, n, n), and their sum, (groups, n).

    Products of a batch are float32, sums over batches float64. ``vectors``: how many there were. The diagonal is summed
    a second time in float64 throughout: :attr:`error` is the largest relative difference of the two.
    """

    vectors: int = 0
    _products: Tensor | None = field(default=None, repr=False)
    _squares: Tensor | None = field(default=None, repr=False)
    _sums: Tensor | None = field(default=None, repr=False)

    def add(self, x: Tensor) -> None:
        """Add vectors, (groups, vectors, n)."""
        groups, _, n = x.shape
        if self._products is None:

            def zeros(*shape: int) -> Tensor:
                return torch.zeros(shape, dtype=torch.float64, device=x.device)

            self._products, self._squares, self._sums = zeros(groups, n, n), zeros(groups, n), zeros(groups, n)
        assert self._squares is not None and self._sums is not None, "made together"
        for part in x.detach().split(_VECTORS, dim=1):
            narrow, wide = part.float(), part.double()
            self._products += narrow.transpose(1, 2) @ narrow
            self._squares += (wide * wide).sum(1)
            self._sums += wide.sum(1)
        self.vectors += x.shape[1]

    @property
    def matrix(self) -> Tensor:
        """``H = Σ x xᵀ / vectors``, (groups, n, n), float64, symmetric."""
        assert self._products is not None, "some input was added"
        h = self._products / self.vectors
        return (h + h.transpose(1, 2)) / 2

    @property
    def mean(self) -> Tensor:
        """Mean input, (groups, n), float64."""
        assert self._sums is not None, "some input was added"
        return self._sums / self.vectors

    @property
    def error(self) -> float:
        """Largest difference of the diagonal from its float64 sum, relative to the largest entry."""
        assert self._products is not None and self._squares is not None, "some input was added"
        gap = (self._products.diagonal(dim1=1, dim2=2) - self._squares).abs().max()
        return float(gap / self._squares.max().clamp(min=torch.finfo(torch.float64).tiny))

    def check(self, layer: Layer) -> None:
        """ValueError, naming the layer, where the inputs were not finite or too large or small for float32 products."""
        assert self._squares is not None and self._products is not None, "some input was added"
        if not bool(torch.isfinite(self._squares).all()):
            raise ValueError(f"{layer.name}: the calibration gives it NaN or infinite inputs")
        if not bool(torch.isfinite(self._products).all()) or self.error > 1e-3:
            top = float(self._squares.max()) ** 0.5
            raise ValueError(
                f"{layer.name}: its inputs, of root sum square {top:.3g}, are too "
                f"{'large' if top > 1 else 'small'} for second moments in float32"
            )

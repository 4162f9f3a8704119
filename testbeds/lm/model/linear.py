"""The linear layer of the decoder."""

from __future__ import annotations

from torch import nn


class Linear(nn.Linear):
    """A linear layer without bias; the decoder sets its weights (``initialize``), never torch's generator."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        """Leaves the weights as they are."""

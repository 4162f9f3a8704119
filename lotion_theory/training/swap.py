"""Other values in the parameters' own memory for a while, and the originals back bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .selection import Quantized

# Those entered and not yet left, the innermost last.
_entered: list[Swap] = []


def _changes(x: Tensor) -> int:
    """Number of in-place changes of ``x`` so far; 0 for tensors made in inference mode, which do not count them."""
    return 0 if x.is_inference() else x._version


class Swap:
    """Overwrites the local weights of ``items`` and restores them; swaps may be nested.

    In place, so that whatever holds the parameters (compiled graphs, shards, tied modules, optimizers) sees the new
    values; autograd notices, and refuses a backward pass after the weights it needs were restored. One copy of the
    weights is held meanwhile.
    """

    def __init__(self, items: list[Quantized]) -> None:
        self.items = items
        self.originals: list[Tensor] = []
        # Counts of in-place changes by parameter: as found, and as of the last change that is known.
        self._found: dict[int, int] = {}
        self._known: dict[int, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        if self.entered:
            raise RuntimeError("the parameters hold other values at the moment: copy or save after the block")
        return self.__dict__

    @property
    def entered(self) -> bool:
        """Whether the weights are replaced."""
        return bool(self.originals)

    def _versions(self) -> dict[int, int]:
        return {id(item.parameter): _changes(item.local) for item in self.items}

    @torch.no_grad()
    def enter(self, write: Callable[[list[Tensor]], None]) -> None:
        """Save the weights and call ``write(originals)``, which overwrites them. RuntimeError if already entered,
        or for tensors of inference mode outside of it."""
        if self.entered:
            raise RuntimeError("the weights are replaced already; leave that block first")
        for item in self.items:
            if item.local.is_inference() and not torch.is_inference_mode_enabled():
                raise RuntimeError(f"{item.name} was made in inference mode, and can be changed in that mode only")
        self._found = self._versions()
        self.originals = [item.local.clone() for item in self.items]
        _entered.append(self)
        try:
            write(self.originals)
        except BaseException:
            self.leave(check=False)
            raise
        self._known = self._versions()

    @torch.no_grad()
    def leave(self, check: bool = True) -> None:
        """Restore the weights; with ``check``, RuntimeError if anyone else changed one in between."""
        now = self._versions()
        changed = [
            item.name for item in self.items if check and now[id(item.parameter)] != self._known[id(item.parameter)]
        ]
        for item, original in zip(self.items, self.originals, strict=True):
            item.local.copy_(original)
        self.originals = []
        _entered.remove(self)
        # What was found is back: for those around this one nothing has changed.
        for parameter, version in self._versions().items():
            for outer in _entered:
                if outer._known.get(parameter) == self._found[parameter]:
                    outer._known[parameter] = version
        if changed:
            raise RuntimeError(
                f"{changed[0]} was changed while it held other values, and that change is lost: "
                "call optimizer.step() and load weights after the block"
            )

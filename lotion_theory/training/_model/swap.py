"""Other values in the parameters' own memory for a while, and the originals back bit for bit."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..selection import Quantized
from .held import is_sharded, local, shed

# Those entered and not yet left, the innermost last.
_entered: list[Swap] = []


def _changes(x: Tensor) -> int:
    """Number of in-place changes of ``x`` so far; 0 for tensors made in inference mode, which do not count them."""
    return 0 if x.is_inference() else x._version


class Swap:
    """Overwrites the local weights of ``items`` and restores them; swaps may be nested.

    In place, so that whatever holds the parameters (compiled graphs, shards, tied modules, optimizers) sees the new
    values; autograd notices, and refuses a backward pass after the weights it needs were restored. One copy of the
    weights is held meanwhile. ``keeps``: whether ``state_dict()`` of the model has the weights as they were meanwhile,
    not the values that replace them; a model that is copied or pickled whole is refused then.
    """

    def __init__(self, items: list[Quantized], keeps: bool = False) -> None:
        self.items, self.keeps = items, keeps
        self.originals: list[Tensor] = []
        # The parameters that hold other values, and counts of their in-place changes: as found, and as of the last
        # change that is known.
        self._held: list[nn.Parameter] = []
        self._found: dict[int, int] = {}
        self._known: dict[int, int] = {}
        self._hooks: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        if self.entered:
            raise RuntimeError(
                f"{self.items[0].name} holds other values: copy or pickle the model and its trainer after the block"
            )
        return self.__dict__

    @property
    def entered(self) -> bool:
        """Whether the weights are replaced."""
        return bool(self.originals)

    def _versions(self) -> dict[int, int]:
        return {id(parameter): _changes(local(parameter)) for parameter in self._held}

    @torch.no_grad()
    def enter(self, write: Callable[[list[Tensor]], None]) -> None:
        """Save the weights and call ``write(originals)``, which overwrites them. RuntimeError if already entered, for
        tensors of inference mode outside of it, and where a compiler took the weights for constants."""
        if self.entered:
            raise RuntimeError("the weights are replaced already; leave that block first")
        _refuse_constants()
        self._held = [item.parameter for item in self.items]
        parts = [local(parameter) for parameter in self._held]
        if not torch.is_inference_mode_enabled():
            for item, part in zip(self.items, parts, strict=True):
                if part.is_inference():
                    raise RuntimeError(f"{item.name} was made in inference mode, and can be changed in that mode only")
        self._found = self._versions()
        self.originals = [part.clone() for part in parts]
        _entered.append(self)
        try:
            write(self.originals)
        except BaseException:
            self.leave(check=False)
            raise
        self._known = self._versions()
        if self.keeps:
            self._keep()
        forget_copies(self.items)

    @torch.no_grad()
    def leave(self, check: bool = True) -> None:
        """Restore the weights; with ``check``, RuntimeError if anyone else changed one in between."""
        for hook in self._hooks:
            hook.remove()
        now = self._versions()
        changed = [
            item.name
            for item, parameter in zip(self.items, self._held, strict=True)
            if check and (now[id(parameter)] != self._known[id(parameter)] or item.parameter is not parameter)
        ]
        torch._foreach_copy_([local(parameter) for parameter in self._held], self.originals)
        _entered.remove(self)
        if _entered:
            # What was found is back: for those around this one nothing has changed.
            for key, version in self._versions().items():
                for outer in _entered:
                    if outer._known.get(key) == self._found[key]:
                        outer._known[key] = version
        self.originals, self._held, self._hooks = [], [], []
        forget_copies(self.items)
        if changed:
            raise RuntimeError(
                f"{changed[0]} was changed while it held other values, and that change is lost: "
                "call optimizer.step() and load weights after the block"
            )

    def _keep(self) -> None:
        for k, item in enumerate(self.items):
            for module, attribute in item.held.owners():
                self._hooks.append(module.register_state_dict_post_hook(_Kept(self, k, attribute)))


@contextmanager
def swapped(items: list[Quantized], write: Callable[[list[Tensor]], None]) -> Iterator[None]:
    """Inside the block the weights are what ``write(originals)`` puts in; afterwards their own bits again."""
    swap = Swap(items)
    swap.enter(write)
    try:
        yield
    except BaseException:
        swap.leave(check=False)
        raise
    swap.leave()


class _Kept:
    """Hook of ``state_dict()``: the weights as they were, for a tensor that holds other values."""

    def __init__(self, swap: Swap, k: int, attribute: str) -> None:
        self.swap, self.k, self.attribute = swap, k, attribute

    def __call__(self, module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        key = prefix + self.attribute
        if key in state and self.swap.entered:
            state[key] = _like(self.swap._held[self.k], self.swap.originals[self.k])


def _like(parameter: nn.Parameter, values: Tensor) -> Tensor:
    """The local ``values`` as ``parameter`` holds them: sharded where it is."""
    if not is_sharded(parameter):
        return values
    from torch.distributed.tensor import DTensor

    whole: Any = parameter
    return DTensor.from_local(
        values, whole.device_mesh, whole.placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )


def forget_copies(items: list[Quantized]) -> None:
    """Drop the copies of weights that torch keeps between forward passes, which in-place changes leave behind: those in
    lower precision of an autocast region, the values of ``parametrize.cached()``, and gathered shards (FSDP2)."""
    torch.clear_autocast_cache()
    if parametrize._cache_enabled:
        parametrize._cache.clear()
    if any(is_sharded(item.held.current) for item in items):
        for root in {id(item.held.root): item.held.root for item in items if item.held.root is not None}.values():
            shed(root)


def _refuse_constants() -> None:
    config = sys.modules.get("torch._inductor.config")
    if config is not None and config.freezing:
        raise RuntimeError(
            "torch._inductor.config.freezing is set: compiled code has the weights as constants and would not see "
            "quantized ones; set it to False"
        )

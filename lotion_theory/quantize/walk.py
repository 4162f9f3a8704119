"""Running a model over calibration batches up to the layers whose inputs are wanted, block by block where it can."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .layers import Layer
from .moments import Moment


class _Stop(Exception):
    """All that was wanted of a forward pass has been seen."""


# Keyword arguments of blocks in transformers in which a pass leaves traces.
_CACHES = ("past_key_values", "past_key_value", "use_cache", "cache_position")


@dataclass(frozen=True)
class Stage:
    """Layers that get the very same input, in one pass; ``block``: number of the block they are in, or None."""

    layers: tuple[Layer, ...]
    block: int | None


@dataclass(frozen=True)
class Survey:
    """How a model uses its layers, learned from one pass. ``stages`` in the order in which they are called; ``calls``:
    per layer name, its calls in a pass; ``blocks``: modules that hand one hidden state on, or none; ``why``: why there
    are none."""

    stages: tuple[Stage, ...]
    calls: dict[str, int]
    blocks: tuple[nn.Module, ...]
    why: str = ""


Batch = Any


def run(model: nn.Module, batch: Batch) -> Any:
    """``model`` of one batch: a mapping holds keyword arguments, a tuple or list positional ones."""
    if isinstance(batch, dict) or hasattr(batch, "keys"):
        return model(**batch)
    if isinstance(batch, tuple | list):
        return model(*batch)
    return model(batch)


@contextmanager
def resting(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode, computes no gradients and keeps no cache of keys and values."""
    modes = {module: module.training for module in model.modules()}
    config = getattr(model, "config", None)
    cache = getattr(config, "use_cache", None)
    model.eval()
    if cache is not None:
        config.use_cache = False  # type: ignore[union-attr]
    try:
        with torch.no_grad():
            yield
    finally:
        if cache is not None:
            config.use_cache = cache  # type: ignore[union-attr]
        for module, mode in modes.items():
            module.training = mode


def survey(model: nn.Module, layers: Sequence[Layer], batch: Batch) -> Survey:
    """Pass one batch through the model; ValueError, naming them, for layers that it does not reach."""
    lists = _candidates(model, layers)
    calls: list[tuple[Layer, int]] = []
    kept: list[Tensor] = []  # keeps inputs alive, so that no two have one address
    seen: dict[nn.Module, list[tuple[tuple, dict, Any]]] = {}
    handles = []
    for layer in layers:
        for module in layer.modules:

            def note(_: nn.Module, args: tuple, kwargs: dict, layer: Layer = layer) -> None:
                x = args[0] if args else next(iter(kwargs.values()))
                kept.append(x)
                calls.append((layer, id(x)))

            handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
    for block in {block for blocks in lists for block in blocks}:

        def record(module: nn.Module, args: tuple, kwargs: dict, out: Any) -> None:
            seen.setdefault(module, []).append((args, kwargs, out))

        handles.append(block.register_forward_hook(record, with_kwargs=True))
    try:
        run(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    counts = {layer.name: sum(found is layer for found, _ in calls) for layer in layers}
    idle = [name for name, count in counts.items() if not count]
    if idle:
        raise ValueError(
            f"{', '.join(idle[:4])}{', ...' if len(idle) > 4 else ''}: never called in a pass over the calibration; "
            "exclude it, or give inputs that reach it"
        )
    blocks, why = _chain(lists, seen)
    return Survey(_stages(calls, blocks), counts, blocks, why)


def _candidates(model: nn.Module, layers: Sequence[Layer]) -> list[tuple[nn.Module, ...]]:
    """Lists of modules, the outermost first, that each hold layers."""
    own = {id(module) for layer in layers for module in layer.modules}
    found: list[tuple[nn.Module, ...]] = []
    inside: set[int] = set()
    for module in model.modules():
        is_list = isinstance(module, nn.ModuleList | nn.Sequential) and id(module) not in inside and len(module) > 1
        if is_list and all(
            any(id(part) in own for part in child.modules()) and id(child) not in own for child in module.children()
        ):
            found.append(tuple(module.children()))
            inside |= {id(part) for part in module.modules()}
    return found


def _chain(
    lists: list[tuple[nn.Module, ...]], seen: dict[nn.Module, list[tuple[tuple, dict, Any]]]
) -> tuple[tuple[nn.Module, ...], str]:
    """The longest list of which each block's output is all that the next one gets anew, and if none, why not."""
    why = "the model has no list of blocks"
    for blocks in sorted(lists, key=len, reverse=True):
        passes = [seen.get(block, []) for block in blocks]
        if any(len(each) != 1 for each in passes):
            why = "its blocks are not called once each"
            continue
        first = _constant(*passes[0][0][:2])
        for ((args, kwargs, _),), ((_, _, out),) in zip(passes[1:], passes[:-1], strict=True):
            if not args or args[0] is not _hidden(out):
                why = "its blocks do not hand their output on as the first argument"
                break
            if not _same(first, _constant(args, kwargs)):
                why = "its blocks get different arguments beside the hidden state"
                break
        else:
            return blocks, ""
    return (), why


def _hidden(out: Any) -> Any:
    return out[0] if isinstance(out, tuple) else out


def _constant(args: tuple, kwargs: dict) -> list[tuple[Any, Any]]:
    """What a block gets beside its hidden state, caches aside."""
    return [*enumerate(args[1:]), *((key, value) for key, value in kwargs.items() if key not in _CACHES)]


def _same(a: list[tuple[Any, Any]], b: list[tuple[Any, Any]]) -> bool:
    def equal(x: Any, y: Any) -> bool:
        if isinstance(x, tuple) and isinstance(y, tuple):
            return len(x) == len(y) and all(equal(*pair) for pair in zip(x, y, strict=True))
        if isinstance(x, Tensor) or isinstance(y, Tensor):
            return x is y
        return x is y or bool(x == y)

    return len(a) == len(b) and all(i == j and equal(x, y) for (i, x), (j, y) in zip(a, b, strict=True))


def _stages(calls: list[tuple[Layer, int]], blocks: tuple[nn.Module, ...]) -> tuple[Stage, ...]:
    """Layers by the input of their first call; embeddings need none."""
    home = {id(module): number for number, block in enumerate(blocks) for module in block.modules()}
    groups: dict[int, list[Layer]] = {}
    done: set[str] = set()
    for layer, key in calls:
        if layer.name in done or layer.reason_for_rtn is not None:
            continue
        done.add(layer.name)
        groups.setdefault(key, []).append(layer)
    stages = []
    for group in groups.values():
        # Patches depend on the convolution, and blocks are passed one after the other.
        keys = {(home.get(id(layer.module)), layer.module if layer.kind == "conv" else None): None for layer in group}
        for block, module in keys:
            own = [layer for layer in group if home.get(id(layer.module)) == block
                   and (layer.module if layer.kind == "conv" else None) is module]  # fmt: skip
            stages.append(Stage(tuple(own), block))
    return tuple(stages)


class Walker:
    """The calibration on its way through the model: gives the moments of one stage after the other."""

    def __init__(self, model: nn.Module, batches: Sequence[Batch], found: Survey) -> None:
        self.model, self.batches, self.survey = model, batches, found
        self._block = -1  # the block that _states are the inputs of
        self._states: list[tuple[tuple, dict]] = []

    def moments(self, stages: Sequence[Stage]) -> list[Moment]:
        """The moments of stages that are in one block, or all in none, in one pass over the calibration each batch."""
        found = [Moment() for _ in stages]
        left: dict[str, int] = {}
        handles = []
        for stage, moment in zip(stages, found, strict=True):
            for number, layer in enumerate(stage.layers):

                def see(_: nn.Module, args: tuple, kwargs: dict, layer: Layer = layer, moment: Moment | None = moment
                        if number == 0 else None) -> None:  # fmt: skip
                    if moment is not None:
                        moment.add(layer.inputs(args[0] if args else next(iter(kwargs.values()))))
                    left[layer.name] -= 1
                    if not any(left.values()):
                        raise _Stop

                handles.append(layer.module.register_forward_pre_hook(see, with_kwargs=True))
        try:
            for forward in self._passes(stages[0].block):
                left.update({layer.name: self.survey.calls[layer.name] for stage in stages for layer in stage.layers})
                with suppress(_Stop):
                    forward()
        finally:
            for handle in handles:
                handle.remove()
        for stage, moment in zip(stages, found, strict=True):
            if not moment.vectors:
                raise ValueError(f"{stage.layers[0].name}: the calibration gives it no inputs")
            moment.check(stage.layers[0])
        return found

    def _passes(self, block: int | None) -> Iterator[Callable[[], Any]]:
        if block is None:
            for batch in self.batches:
                yield partial(run, self.model, batch)
            return
        self.advance(block)
        for args, kwargs in self._states:
            yield partial(self.survey.blocks[block], *args, **kwargs)

    def advance(self, block: int) -> None:
        """Bring the hidden states to the input of that block, through the blocks before it as they are now."""
        if self._block < 0:
            self._states = list(self._entries())
            self._block = 0
        while self._block < block:
            module = self.survey.blocks[self._block]
            self._states = [((_hidden(module(*args, **kwargs)), *args[1:]), kwargs) for args, kwargs in self._states]
            self._block += 1

    def _entries(self) -> Iterator[tuple[tuple, dict]]:
        caught: list[tuple[tuple, dict]] = []

        def catch(_: nn.Module, args: tuple, kwargs: dict) -> None:
            caught.append((args, {k: (None if k in _CACHES else v) for k, v in kwargs.items()}))
            raise _Stop

        handle = self.survey.blocks[0].register_forward_pre_hook(catch, with_kwargs=True)
        try:
            for batch in self.batches:
                try:
                    run(self.model, batch)
                except _Stop:
                    yield caught.pop()
        finally:
            handle.remove()

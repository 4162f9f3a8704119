"""Running a model over calibration batches up to the layers whose inputs are wanted, block by block where it can."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

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
    """``model`` of a copy of one batch: a mapping holds keyword arguments, a tuple or list positional ones."""
    batch = _copied(batch)  # the model may change it in place, and it is passed again
    if isinstance(batch, dict):
        return model(**batch)
    if isinstance(batch, tuple | list):
        return model(*batch)
    return model(batch)


def _copied(batch: Batch) -> Batch:
    if isinstance(batch, Tensor):
        return batch.clone()
    if hasattr(batch, "keys"):
        return {key: _copied(batch[key]) for key in batch.keys()}  # noqa: SIM118 (a BatchEncoding is no mapping)
    return [_copied(part) for part in batch] if type(batch) in (list, tuple) else batch


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


class _Call(NamedTuple):
    """A call of a layer: what tells its input from others, and the block that it is in."""

    layer: Layer
    key: tuple[int, int]
    block: nn.Module | None


class _Pass(NamedTuple):
    """A call of a block. ``pure``: whether it left what it gets beside the hidden state as it was."""

    args: tuple
    kwargs: dict
    out: Any
    pure: bool


def survey(model: nn.Module, layers: Sequence[Layer], batch: Batch) -> Survey:
    """Pass one batch through the model; ValueError, naming them, for layers that it does not reach."""
    lists = _candidates(model, layers)
    calls: list[_Call] = []
    kept: list[Tensor] = []  # keeps inputs alive, so that no two have one address
    inside: list[tuple[nn.Module, list]] = []  # the block that is being passed, with its arguments before
    seen: dict[nn.Module, list[_Pass]] = {}
    handles = []
    for layer in layers:
        for module in layer.modules:

            def note(_: nn.Module, args: tuple, kwargs: dict, layer: Layer = layer) -> None:
                x = args[0] if args else next(iter(kwargs.values()))
                kept.append(x)
                calls.append(_Call(layer, _state(x), inside[-1][0] if inside else None))

            handles.append(module.register_forward_pre_hook(note, with_kwargs=True))

    def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
        inside.append((module, _states(_constant(args, kwargs))))

    def leave(module: nn.Module, args: tuple, kwargs: dict, out: Any) -> None:
        before = inside.pop()[1]
        seen.setdefault(module, []).append(_Pass(args, kwargs, out, before == _states(_constant(args, kwargs))))

    for block in {block for blocks in lists for block in blocks}:
        handles.append(block.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(block.register_forward_hook(leave, with_kwargs=True))
    try:
        run(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    counts = {layer.name: sum(call.layer is layer for call in calls) for layer in layers}
    idle = [name for name, count in counts.items() if not count]
    if idle:
        raise ValueError(
            f"{', '.join(idle[:4])}{', ...' if len(idle) > 4 else ''}: never called in a pass over the calibration; "
            "exclude it, or give inputs that reach it"
        )
    blocks, why = _chain(lists, seen, calls)
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
    lists: list[tuple[nn.Module, ...]], seen: dict[nn.Module, list[_Pass]], calls: Sequence[_Call]
) -> tuple[tuple[nn.Module, ...], str]:
    """The longest list of which each block's output is all that the next one gets anew, and if none, why not."""
    why = "the model has no list of blocks"
    for blocks in sorted(lists, key=len, reverse=True):
        passes = [seen.get(block, []) for block in blocks]
        if any(len(each) != 1 for each in passes):
            why = "its blocks are not called once each"
            continue
        if _are_shared(blocks, calls):
            why = "its blocks share layers"
            continue
        first = passes[0][0]
        for (last,), (this,) in pairwise(passes):
            if not this.args or this.args[0] is not _hidden(last.out):
                why = "its blocks do not hand their output on as the first argument"
                break
            if not _same(_constant(first.args, first.kwargs), _constant(this.args, this.kwargs)):
                why = "its blocks get different arguments beside the hidden state"
                break
        else:
            if all(each.pure for (each,) in passes):
                return blocks, ""
            why = "its blocks change in place what they get beside the hidden state"
    return (), why


def _are_shared(blocks: tuple[nn.Module, ...], calls: Sequence[_Call]) -> bool:
    """Whether a layer is called in two of the blocks, or in one and outside."""
    homes: dict[str, set[int | None]] = {}
    for call in calls:
        if call.layer.reason_for_rtn is None:
            homes.setdefault(call.layer.name, set()).add(id(call.block) if call.block in blocks else None)
    return any(len(home) > 1 for home in homes.values())


def _hidden(out: Any) -> Any:
    return out[0] if isinstance(out, tuple) else out


def _constant(args: tuple, kwargs: dict) -> list[tuple[Any, Any]]:
    """What a block gets beside its hidden state, caches aside."""
    return [*enumerate(args[1:]), *((key, value) for key, value in kwargs.items() if key not in _CACHES)]


def _state(x: Any) -> tuple[int, int]:
    """What changes where ``x`` is another tensor, and where it is changed in place."""
    return id(x), x._version if isinstance(x, Tensor) and not x.is_inference() else 0


def _states(constant: list[tuple[Any, Any]]) -> list[tuple[int, int]]:
    return [_state(x) for _, value in constant for x in (value if isinstance(value, tuple) else (value,))]


# What a pass leaves as it is, unlike mappings, lists and objects of any kind.
_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device, torch.Size)


def _same(a: list[tuple[Any, Any]], b: list[tuple[Any, Any]]) -> bool:
    def equal(x: Any, y: Any) -> bool:
        if isinstance(x, _PLAIN):
            return type(x) is type(y) and x == y
        if isinstance(x, tuple) and isinstance(y, tuple):
            return len(x) == len(y) and all(equal(*pair) for pair in zip(x, y, strict=True))
        return x is y and (isinstance(x, Tensor) or callable(x))

    return len(a) == len(b) and all(i == j and equal(x, y) for (i, x), (j, y) in zip(a, b, strict=True))


def _stages(calls: Sequence[_Call], blocks: tuple[nn.Module, ...]) -> tuple[Stage, ...]:
    """Layers by the inputs of all their calls, in the order of the first; embeddings need none."""
    number = {block: k for k, block in enumerate(blocks)}
    own: dict[str, list[_Call]] = {}
    for call in calls:
        if call.layer.reason_for_rtn is None:
            own.setdefault(call.layer.name, []).append(call)
    groups: dict[Any, list[Layer]] = {}
    for first, *more in own.values():
        layer = first.layer
        # Patches depend on the convolution, and blocks are passed one after the other.
        key = (
            None if first.block is None else number.get(first.block), tuple(call.key for call in (first, *more)),
            layer.module if layer.kind == "conv" else None,
        )  # fmt: skip
        groups.setdefault(key, []).append(layer)
    return tuple(Stage(tuple(layers), block) for (block, _, _), layers in groups.items())


class Walker:
    """The calibration on its way through the model: gives the moments of one stage after the other."""

    def __init__(self, model: nn.Module, batches: Sequence[Batch], found: Survey) -> None:
        self.model, self.batches, self.survey = model, batches, found
        self._block = -1  # the block that _states are the inputs of
        self._states: list[tuple[tuple, dict]] = []

    def moments(self, stages: Sequence[Stage]) -> list[Moment]:
        """The moments of stages that are in one block, or all in none, in one pass over the calibration each batch."""
        found = [Moment() for _ in stages]
        names = {layer.name for stage in stages for layer in stage.layers}
        # A layer in a loop may be called another number of times in another batch: only the end of the pass is sure.
        once = all(self.survey.calls[name] == 1 for name in names)
        left: set[str] = set()
        handles = []
        for stage, moment in zip(stages, found, strict=True):
            for number, layer in enumerate(stage.layers):

                def see(_: nn.Module, args: tuple, kwargs: dict, layer: Layer = layer, moment: Moment | None = moment
                        if number == 0 else None) -> None:  # fmt: skip
                    if moment is not None:
                        moment.add(layer.inputs(args[0] if args else next(iter(kwargs.values()))))
                    left.discard(layer.name)
                    if once and not left:
                        raise _Stop

                handles.append(layer.module.register_forward_pre_hook(see, with_kwargs=True))
        try:
            for forward in self._passes(stages[0].block):
                left.update(names)
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
        for (hidden, *rest), kwargs in self._states:
            # A block may add to its input in place, and is passed several times.
            yield partial(self.survey.blocks[block], hidden.clone(), *rest, **kwargs)

    def advance(self, block: int) -> None:
        """Bring the hidden states to the input of that block, through the blocks before it as they are now."""
        if self._block < 0:
            self._states = list(self._entries())
            self._block = 0
        while self._block < block:
            module = self.survey.blocks[self._block]
            for number, (args, kwargs) in enumerate(self._states):
                self._states[number] = ((_hidden(module(*args, **kwargs)), *args[1:]), kwargs)
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

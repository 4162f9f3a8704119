"""Which parameters of a model are quantized, and how each is cut into blocks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from ..formats.quantizer import Quantizer, warn_of_single_weights
from ._model.held import Held, clean, is_sharded, local, shed
from .fake import Levels, levels_of, supported, working_type


@dataclass(frozen=True)
class Quantized:
    """One quantized parameter. ``name``: without the prefixes of wrappers; of tied weights the first one. ``held``:
    where the model has it.

    ``start``: number of the first weight held here among all of the tensor's, above 0 in later shards only. ``levels``:
    None for formats that only :class:`~lotion_theory.Quantizer` serves.
    """

    name: str
    held: Held
    quantizer: Quantizer
    start: int = 0
    levels: Levels | None = None

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter of that name that the model has now; RuntimeError if it has none of the same shape, type and
        device."""
        return self.held.parameter

    @property
    def trained(self) -> bool:
        """Whether the parameter is trained; False for one that was frozen meanwhile, which nothing may move."""
        return self.parameter.requires_grad

    @property
    def local(self) -> Tensor:
        """The weights held by this process, sharing the parameter's memory and, where enabled, its gradient."""
        return local(self.parameter)

    @property
    def working_type(self) -> torch.dtype:
        """The type that computations on these weights run in."""
        return working_type(self.parameter.dtype)

    def blocks(self, x: Tensor) -> Tensor:
        """A tensor of the local weights' shape as (blocks, weights per block)."""
        return self.quantizer.partition.to_blocks(x)


def shards(x: Any) -> int:
    """In how many parts ``x`` is held by different processes."""
    if not is_sharded(x):
        return 1
    return math.prod(x.device_mesh.size(dim) for dim, place in enumerate(x.placements) if not place.is_replicate())


def select(
    named_parameters: nn.Module | Iterable[tuple[str, nn.Parameter]],
    format: str | Quantizer,
    include: tuple[str, ...] | list[str] = (),
    exclude: tuple[str, ...] | list[str] = (),
    frozen: bool = False,
) -> list[Quantized]:
    """The parameters to quantize, each once, in the order given.

    By default every floating-point parameter that is trained (``requires_grad``) and has at least two dimensions:
    biases and the weights of norms have one. Embeddings are quantized too, unless ``exclude`` names them.

    Args:
        named_parameters: a module, or what its ``named_parameters()`` yields. The latter names tied weights only once;
            a module, or ``named_parameters(remove_duplicate=False)``, all their names, any of which a pattern may
            match.
        format: a format string or a :class:`~lotion_theory.Quantizer`.
        include: shell patterns (``"layers.*.mlp.*"``); those parameters only. A one-dimensional parameter is taken
            where a pattern is its name, without wildcards.
        exclude: patterns of parameters to leave out, also where included.
        frozen: whether parameters that are not trained are taken as well.

    Raises ValueError for a pattern that matches nothing or parameters that cannot be quantized only, if nothing is left
    to quantize, for a block that does not divide a row or channel, for weights not yet materialised, for shards that do
    not hold whole blocks, for parameters that a layer's weight is computed from (parametrizations), unless named
    exactly, and, with partitions by channel, for layers of a module whose outputs are not along the first axis:
    transposed convolutions, and the Conv1D of transformers. (Of an embedding a channel is the vector of a token.)
    UserWarning for a tensor of which each weight would be a block.
    """
    quantizer = Quantizer.parse(format)
    if quantizer.codebook.is_complex:
        raise ValueError(f"format {quantizer} is complex; parameters are quantized as real numbers")
    for argument, patterns in (("include", include), ("exclude", exclude)):
        if isinstance(patterns, str):
            raise ValueError(f"{argument} = {patterns!r}; give a tuple or list of patterns, e.g. ({patterns!r},)")
    root = named_parameters if isinstance(named_parameters, nn.Module) else None
    if root is not None:
        shed(root)
    groups = _named(named_parameters)
    every = [name for names, *_ in groups for name in names]
    for pattern in (*include, *exclude):
        if not any(fnmatchcase(name, pattern) for name in every):
            raise ValueError(f"pattern {pattern!r} matches no parameter; names are {_some(every)}")
    chosen = _chosen([group for group in groups if not _matching(group[0], exclude)], root, include, frozen)
    if not chosen:
        raise ValueError(
            "nothing to quantize: no trained floating-point parameter of two or more dimensions; "
            f"names are {_some(every)}"
        )
    if quantizer.partition.by_channel and root is not None:
        layers = inputs_first(root)
        for held in chosen:
            if id(held.parameter) in layers:
                raise ValueError(f"{held.name}: {layers[id(held.parameter)]}; exclude it, or use another partition")
    return [_quantized(held, quantizer) for held in chosen]


def _matching(names: list[str], patterns: Iterable[str]) -> set[str]:
    """The patterns that one of a parameter's names matches."""
    return {pattern for pattern in patterns for name in names if fnmatchcase(name, pattern)}


def _chosen(
    groups: list[tuple[list[str], nn.Parameter, list[str]]],
    root: nn.Module | None,
    include: tuple[str, ...] | list[str],
    frozen: bool,
) -> list[Held]:
    """The parameters that are included, or with no patterns all, but for those that cannot be quantized; ValueError for
    a pattern that matches such alone."""
    chosen: list[Held] = []
    useful: set[str] = set()
    refused: dict[str, str] = {}
    for names, parameter, paths in groups:
        hits = _matching(names, include)
        if include and not hits:
            continue
        exact = bool(hits.intersection(names))
        reason = _unfit(parameter, frozen, exact)
        if reason is not None:
            for pattern in hits:
                refused.setdefault(pattern, f"{names[0]} {reason}")
            continue
        if not exact:
            _refuse_computed(names[0], root, paths[0])
        chosen.append(Held(names[0], parameter, root, tuple(paths)))
        useful |= hits
    for pattern in include:
        if pattern in refused and pattern not in useful:
            raise ValueError(f"pattern {pattern!r} matches nothing that can be quantized: {refused[pattern]}")
    return chosen


def follow(items: list[Quantized], model: nn.Module) -> None:
    """Have ``items`` be the parameters of the same names of ``model``; ValueError, before any is changed, if one is
    missing or of another shape, type or place."""
    for item in items:
        copy(item.held).move(model)
    for item in items:
        item.held.move(model)


def inputs_first(model: nn.Module) -> dict[int, str]:
    """By ``id``, the parameters of layers whose outputs are not along the first axis, and a sentence that says so."""
    found: dict[int, str] = {}
    for module in model.modules():
        kind = type(module)
        transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
        # What GPT-2 has in place of linear layers.
        if transposed or (kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")):
            reason = f"the first axis of {kind.__name__}'s weight is its inputs, so it has no channels of one output"
            found |= {id(parameter): reason for parameter in module.parameters() if parameter.ndim > 1}
    return found


def _named(
    source: nn.Module | Iterable[tuple[str, nn.Parameter]],
) -> list[tuple[list[str], nn.Parameter, list[str]]]:
    """Each parameter once, with all its names, cleaned and as they were."""
    pairs = source.named_parameters(remove_duplicate=False) if isinstance(source, nn.Module) else source
    groups: dict[int, tuple[list[str], nn.Parameter, list[str]]] = {}
    for item in pairs:
        if not (isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], Tensor)):
            raise ValueError(
                f"named_parameters yields {type(item).__name__}; give a module or model.named_parameters()"
            )
        names, _, paths = groups.setdefault(id(item[1]), ([], item[1], []))
        names.append(clean(item[0]))
        paths.append(item[0])
    if not groups:
        raise ValueError("named_parameters is empty; an iterator can be used only once: call named_parameters() again")
    if all(name.startswith("module.") for names, *_ in groups.values() for name in names):
        groups = {
            key: ([name.removeprefix("module.") for name in names], parameter, paths)
            for key, (names, parameter, paths) in groups.items()
        }
    return list(groups.values())


def _unfit(parameter: nn.Parameter, frozen: bool, exact: bool) -> str | None:
    """Why a parameter is left out, or None."""
    if not parameter.is_floating_point():
        return f"has type {parameter.dtype}"
    if not parameter.requires_grad and not frozen:
        return "is frozen (requires_grad is False)"
    if parameter.ndim < 2 and not exact:
        return f"has {parameter.ndim} dimension(s); name it without wildcards to quantize it"
    return None


def _refuse_computed(name: str, root: nn.Module | None, path: str) -> None:
    """ValueError where the layer multiplies by a tensor that it computes from this parameter."""
    *parents, attribute = path.split(".")
    computed = "parametrizations" in parents
    if root is not None and not computed:
        # weight_norm, spectral_norm and pruning of the older kind: weight from weight_g and weight_v, or weight_orig.
        plain = root.get_submodule(".".join(parents)).__dict__
        computed = any(isinstance(plain.get(attribute.removesuffix(end)), Tensor) for end in ("_g", "_v", "_orig"))
    if computed:
        raise ValueError(
            f"{name} is not what its layer multiplies by, which is computed from it: exclude it, remove the "
            "parametrization, or name it in include without wildcards"
        )


def _quantized(held: Held, quantizer: Quantizer) -> Quantized:
    name, parameter = held.name, held.current
    if getattr(parameter, "_is_flat_param", False) or type(parameter).__name__ == "FlatParameter":
        raise ValueError(
            f"{name} is a FlatParameter of FSDP1, in which rows and blocks are lost; use FSDP2 (fully_shard)"
        )
    if parameter.is_meta:
        raise ValueError(f"{name} is on the meta device; materialise the model first")
    if parameter.layout != torch.strided:
        raise ValueError(f"{name} has layout {parameter.layout}; only dense parameters can be quantized")
    try:
        working_type(parameter.dtype)
        quantizer.partition.length(tuple(parameter.shape))
        start = _shard_start(parameter, quantizer)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    warn_of_single_weights(quantizer, tuple(parameter.shape), name)
    levels = levels_of(quantizer.codebook, parameter.dtype, parameter.device) if supported(quantizer) else None
    return Quantized(name, held, quantizer, start, levels)


def _shard_start(parameter: nn.Parameter, quantizer: Quantizer) -> int:
    """Number of the first weight held here; ValueError unless this process holds whole blocks."""
    if not is_sharded(parameter):
        return 0
    from torch.distributed.tensor import Replicate, Shard

    whole: Any = parameter
    places = tuple(whole.placements)
    if all(type(place) is Replicate for place in places):
        return 0
    if not all(type(place) is Replicate or (type(place) is Shard and place.dim == 0) for place in places):
        raise ValueError(f"is sharded as {places}; only shards of whole rows, Shard(0), can be quantized")
    if quantizer.partition.kind == "tensor" or quantizer.scale.couples_blocks:
        raise ValueError(
            f"is sharded, and format {quantizer} has one scale for the whole tensor, which no shard can compute; "
            "use the partition row, channel, block=N or channel-block=N"
        )
    if parameter.ndim < 2:
        raise ValueError("is a sharded vector: its row, and so its blocks, may be cut")
    first, rows = 0, whole.shape[0]
    for dimension, (place, position) in enumerate(zip(places, whole.device_mesh.get_coordinate(), strict=True)):
        if type(place) is Shard:
            # Rows are dealt out as by torch.chunk, each further mesh dimension dividing what the last one left.
            share = -(-rows // whole.device_mesh.size(dimension))
            first += min(position * share, rows)
            rows = max(min(share, rows - position * share), 0)
    return first * math.prod(whole.shape[1:])


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:6])
    return shown + (f", ... ({len(names)} in all)" if len(names) > 6 else "")

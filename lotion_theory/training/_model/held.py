"""Parameters as their model holds them: followed where the model gets another tensor for one, or refused."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

# Names that wrappers put between those of the user's modules.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def clean(name: str) -> str:
    """``name`` without what torch.compile, FSDP, activation checkpointing and (in front) DDP add to it."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    return ".".join(parts)


def local(x: Any) -> Tensor:
    """This process's part of a sharded tensor (DTensor); any other tensor itself."""
    return x.to_local() if is_sharded(x) else x


def is_sharded(x: Any) -> bool:
    """Whether ``x`` is a DTensor, of which this process may hold a part only."""
    return hasattr(x, "placements") and hasattr(x, "to_local")


def shed(root: nn.Module) -> None:
    """Have FSDP2 give up the gathered tensors that it may keep in the place of its shards after a forward pass."""
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    if kind is not None:
        for module in root.modules():
            if isinstance(module, kind):
                module.reshard()


class Held:
    """The parameter that ``root`` has at ``paths`` (its names there, several of a tied one). Without a root, always
    ``current``.

    ``load_state_dict(assign=True)``, a replaced layer or a converted model put another tensor in its place. One of the
    same shape, type and device is followed; anything else is refused, since levels, curvature and learned steps were
    made for the old one.
    """

    def __init__(
        self, name: str, parameter: nn.Parameter, root: nn.Module | None = None, paths: tuple[str, ...] = ()
    ) -> None:
        self.name, self.current = name, parameter
        self.kind = _kind(parameter)
        self.root: nn.Module | None = root
        self._paths = [tuple(path.split(".")) for path in paths]
        if root is None or not paths or any(_at(root, path) is not parameter for path in self._paths):
            self.root, self._paths = None, []

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter, looked up. RuntimeError if the model has none of the name, another kind of tensor, or
        different ones under tied names."""
        current = self.current
        if torch.compiler.is_compiling():
            return current
        for path in self._paths:
            if _at(self.root, path) is not current:
                return self._follow()
        if (current.dtype, current.device) != self.kind[1:3]:
            self._refuse(current)
        return current

    def owners(self) -> list[tuple[nn.Module, str]]:
        """Modules that hold the parameter, each with its name there."""
        found = []
        for *parents, attribute in self._paths:
            module = _module(self.root, parents)
            if module is not None:
                found.append((module, attribute))
        return found

    def move(self, root: nn.Module) -> None:
        """Look for the parameter of the same name in another model. ValueError if that has none that fits."""
        paths = [path for path, _ in root.named_parameters(remove_duplicate=False) if _short(path) == self.name]
        found = _at(root, tuple(paths[0].split("."))) if paths else None
        if found is None or _kind(found) != self.kind:
            other = f"{self.name} as {_said(_kind(found))}" if found is not None else f"no parameter {self.name}"
            raise ValueError(
                f"the model that is trained has {other}: make the penalty or straight-through trainer from that model"
            )
        ties = [path for path, p in root.named_parameters(remove_duplicate=False) if p is found]
        self.root, self.current, self._paths = root, found, [tuple(path.split(".")) for path in ties]

    def _follow(self) -> nn.Parameter:
        assert self.root is not None, "only a model's parameter has paths"
        if any(_at(self.root, path) is None for path in self._paths):
            # Wrappers that came in between change the paths, not the names.
            names = {clean(".".join(path)) for path in self._paths}
            every = self.root.named_parameters(remove_duplicate=False)
            paths = [tuple(path.split(".")) for path, _ in every if clean(path) in names]
            if len(paths) < len(self._paths):
                raise RuntimeError(f"the model has no parameter {self.name} any more: {_AGAIN}")
            self._paths = paths
        found = [_at(self.root, path) for path in self._paths]
        new = found[0]
        assert new is not None, "each path was found"
        if any(other is not new for other in found):
            raise RuntimeError(
                f"{self.name} was tied and is no longer: "
                f"{' and '.join('.'.join(path) for path in self._paths)} hold different tensors; {_AGAIN}"
            )
        # Between a forward and a backward pass FSDP2 puts the gathered tensor in the place of its shards.
        if is_sharded(self.current) and not is_sharded(new):
            return self.current
        if _kind(new) != self.kind:
            self._refuse(new)
        self.current = new
        return new

    def _refuse(self, new: nn.Parameter) -> None:
        raise RuntimeError(f"{self.name} of the model is {_said(_kind(new))} by now, not {_said(self.kind)}: {_AGAIN}")


_AGAIN = "make the penalty or straight-through trainer, and the optimizer, after the last change of the model"

Kind = tuple[torch.Size, torch.dtype, torch.device, Any]


def _short(path: str) -> str:
    return clean(path).removeprefix("module.")


def _kind(parameter: Any) -> Kind:
    places = tuple(parameter.placements) if is_sharded(parameter) else None
    return parameter.shape, parameter.dtype, parameter.device, places


def _said(kind: Kind) -> str:
    shape, dtype, device, places = kind
    return f"{tuple(shape)} {str(dtype).removeprefix('torch.')} on {device}" + (f" as {places}" if places else "")


def _module(root: nn.Module | None, parents: list[str]) -> nn.Module | None:
    module = root
    for name in parents:
        module = None if module is None else module._modules.get(name)
    return module


def _at(root: nn.Module | None, path: tuple[str, ...]) -> nn.Parameter | None:
    module = root
    for name in path[:-1]:
        module = module._modules.get(name)  # type: ignore[union-attr]
        if module is None:
            return None
    return None if module is None else module._parameters.get(path[-1])

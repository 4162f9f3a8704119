"""Parameters that may be split over processes (FSDP2): all of their values, read and written."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(parameter: Tensor) -> Tensor:
    """All values of a parameter, detached; gathered from the shards where there are any (all processes must call)."""
    value = parameter.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value


def assign(parameter: Tensor, value: Tensor) -> None:
    """Put ``value``, all of it, into a parameter in place; autograd is not told (all processes must call)."""
    target = parameter.detach()
    if isinstance(target, DTensor):
        target.to_local().copy_(distribute_tensor(value, target.device_mesh, target.placements).to_local())
    else:
        target.copy_(value)

"""What processes of a run share: the same penalty must come out on each replica, or the replicas drift apart."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def processes() -> int:
    """Number of processes in the default group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of ``x`` over all processes, in place; ``x`` itself where there is one."""
    if processes() > 1:
        dist.all_reduce(x)
        x /= processes()
    return x


def quadratic_mean_over_processes(x: Tensor) -> Tensor:
    """``√(mean of x²)`` over all processes; ``x`` itself where there is one."""
    return mean_over_processes(x.square()).sqrt_() if processes() > 1 else x


def all_processes(holds: bool | Tensor, device: torch.device) -> bool | Tensor:
    """Whether ``holds`` on every process, of the kind it is; ``holds`` itself where there is one."""
    if processes() == 1:
        return holds
    votes = torch.as_tensor(holds, device=device).to(torch.float32)
    dist.all_reduce(votes, dist.ReduceOp.MIN)
    return bool(votes > 0) if isinstance(holds, bool) else votes > 0

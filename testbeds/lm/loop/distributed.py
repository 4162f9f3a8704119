"""One process or many: data parallel (DDP) or sharded (FSDP2), started by torchrun; the trainer's code is the same.

Data enter by global step and every rank takes its part of it; random numbers are named, not drawn from per-process
generators. So the number of ranks changes the order of additions in a gradient, and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .config import RunConfig

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes of a run and this one among them; ``control``: a group that talks without the accelerator."""

    device: torch.device
    strategy: str = "none"
    rank: int = 0
    size: int = 1
    control: Any = None

    @property
    def first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def wrap(self, model: nn.Module, compiled: bool) -> nn.Module:
        """The module to call in training; ``model`` itself keeps the plain parameter names, and holds the shards."""
        if self.strategy == "fsdp":
            from torch.distributed.fsdp import fully_shard

            blocks = list(model.get_submodule("blocks").children())
            for block in blocks:
                fully_shard(block)
                if compiled:
                    block.compile()
            fully_shard(model)
            return model
        if compiled:
            model.compile()
        if self.strategy == "ddp":
            from torch.nn.parallel import DistributedDataParallel

            return DistributedDataParallel(model, device_ids=[self.device] if self.device.type == "cuda" else None)
        return model

    def accumulating(self, module: Any, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a micro-batch: gradients are exchanged in the ``last`` one only."""
        if self.strategy == "fsdp":
            module.set_requires_gradient_sync(last)
        if self.strategy == "ddp" and not last:
            return module.no_sync()
        return nullcontext()

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` holds in any process."""
        if self.size == 1:
            return flag
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.control)
        return bool(flags)

    def mean(self, value: Tensor) -> float:
        """Mean over processes of a scalar."""
        total = value.detach().double().cpu()
        if self.size > 1:
            dist.all_reduce(total, dist.ReduceOp.SUM, group=self.control)
        return float(total) / self.size

    def gathered(self, values: Tensor) -> Tensor:
        """The 1-D ``values`` of all processes, equally many in each, one after the other by rank, on the CPU."""
        if self.size == 1:
            return values.cpu()
        parts = [torch.empty_like(values, device="cpu") for _ in range(self.size)]
        dist.all_gather(parts, values.cpu(), group=self.control)
        return torch.cat(parts)

    def on_first(self, work: Callable[[], T]) -> T:
        """The result of ``work`` done by the first process; what it raises is raised in all."""
        if self.size == 1:
            return work()
        box: list[Any] = [None, None]
        if self.first:
            try:
                box[0] = work()
            except Exception as error:
                box[1] = error
        dist.broadcast_object_list(box, src=0, group=self.control)
        if box[1] is not None:
            raise box[1]
        return box[0]


@contextmanager
def joined(config: RunConfig) -> Iterator[World]:
    """This process's :class:`World`, from the environment that torchrun sets; left again at the end.

    Raises ValueError for a strategy that does not fit the way the process was started, or a device that is not there;
    in the block, ConnectionError where an exchange fails because another process has ended.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    strategy = config.strategy if config.strategy != "auto" else ("ddp" if size > 1 else "none")
    device = device_named(config.device)
    if strategy == "none":
        if size > 1:
            raise ValueError(f"run.strategy = 'none' with {size} processes; valid: ddp, fsdp, auto")
        yield World(device)
        return
    if "WORLD_SIZE" not in os.environ:
        raise ValueError(f"run.strategy = {strategy!r} needs processes started by torchrun; alone use none or auto")
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend)
    try:
        control = dist.new_group(backend="gloo") if backend == "nccl" else dist.group.WORLD
        yield World(device, strategy, dist.get_rank(), dist.get_world_size(), control)
    except RuntimeError as error:
        # gloo raises plain RuntimeErrors that name its source files.
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise ConnectionError(
                f"another process of this run has ended or cannot be reached ({str(error).splitlines()[0]}); start all "
                "of them again to go on from the last checkpoint"
            ) from error
        raise
    finally:
        dist.destroy_process_group()


def device_named(name: str) -> torch.device:
    """The device called so; "auto" is the GPU where there is one. ValueError for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"run.device = {name!r}; valid: auto, cpu, cuda, cuda:0, ...") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"run.device = {name!r}, but torch finds no CUDA device; valid: auto, cpu")
    return device

"""Small torch models, and process groups that need no second process."""

from __future__ import annotations

import codecs
import itertools
import locale
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

COMPILES = codecs.lookup(locale.getpreferredencoding(False)).name == "utf-8"
"""Whether torch.compile works in this locale: it reads files of its own as the locale says, and they are UTF-8."""


def mlp(sizes: tuple[int, ...] = (8, 16, 4), dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Sequential:
    """Linear layers with tanh between them, deterministic in ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for n, m in itertools.pairwise(sizes):
        layers += [nn.Linear(n, m, dtype=dtype), nn.Tanh()]
    model = nn.Sequential(*layers[:-1])
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5)
    return model


@contextmanager
def second_of_two() -> Iterator[DeviceMesh]:
    """A mesh of two processes as the second one sees it, without the first: communication does nothing.

    Always the second: torch keeps meshes for good, so that one Python process cannot be several of them in turn.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
    try:
        yield init_device_mesh("cpu", (2,))
    finally:
        dist.destroy_process_group()


class Counter:
    """A backend that counts the graphs compiled (torch may give one up half-way and trace it again)."""

    def __init__(self, backend: str = "aot_eager") -> None:
        from torch._dynamo.backends.registry import lookup_backend

        self.graphs, self.compile = 0, lookup_backend(backend)

    def __call__(self, graph, inputs):
        compiled = self.compile(graph, inputs)
        self.graphs += 1
        return compiled

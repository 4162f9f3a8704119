"""Graphs as compiled kernels, and the steps in which they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from . import machine
from .graph import BLOCK, REDUCTIONS, Graph, Node, Unsupported, depth, needed
from .llvm import Module, Request, Slot

Outputs = dict[str, tuple[Node, str]]
"""Nodes by name, with the types they are stored in."""


@dataclass(frozen=True)
class Kernel:
    """A compiled function with its arrays in the order of its pointers."""

    run: Callable[[int, int, Any], int]
    slots: list[Slot]


@dataclass
class Program:
    """The kernels of a graph. ``types``: of its inputs in memory; ``real``: the type computed in.

    ``maxima``: None, or what runs first: its outputs, one per block, are to be reduced to their largest entry over the
    tensor. ``main``: does the rest.
    """

    graph: Graph
    outputs: Outputs
    types: dict[str, str]
    columns: int | None
    real: str
    maxima: Kernel | None = None
    main: Kernel = field(init=False)
    _stages: list[Kernel] | None = None

    def __post_init__(self) -> None:
        graph = self.graph
        if graph.maxima:
            rows = {name: (node, node.dtype) for name, node in graph.maxima.items()}
            self.maxima = self._kernel(rows, [], self.columns)
        self.main = self._kernel(self.outputs, graph.conditions, self.columns)

    def _kernel(self, outputs: Outputs, conditions: list[Node], columns: int | None) -> Kernel:
        features = machine.features()
        if features is None:
            raise Unsupported("no compiler")
        names = {n.attr: n.dtype for n in needed([n for n, _ in outputs.values()] + conditions) if n.op == "input"}
        module = Module(Request(outputs, conditions, names | self.types, columns, self.real, features))
        run = machine.function(module.text)
        if run is None:
            raise Unsupported("the compiler refuses")
        return Kernel(run, module.slots)

    def stages(self) -> list[Kernel]:
        """The same in kernels that each need one pass over the weights, for blocks that are cut into pieces: the
        outputs of all but the last are reductions, to be put together per block. Compiled on first use; empty where
        they cannot be had."""
        if self._stages is None:
            try:
                self._stages = self._cut()
            except Unsupported:
                self._stages = []
        return self._stages

    def _cut(self) -> list[Kernel]:
        nodes = needed([node for node, _ in self.outputs.values()] + self.graph.conditions)
        levels = depth(nodes)
        new = Graph()
        image: dict[int, Node] = {}
        stages: list[Outputs] = []
        for node in nodes:
            args = tuple(image[a.number] for a in node.args)
            copy = new.add(node.op, args, node.dtype, node.attr, node.rate)
            if node.op in REDUCTIONS:
                while len(stages) < levels[node.number]:
                    stages.append({})
                name = f"{node.op}{node.number}"
                stages[levels[node.number] - 1][name] = (copy, node.dtype)
                copy = new.add("input", (), node.dtype, name, BLOCK)
            image[node.number] = copy
        kernels = [self._kernel(stage, [], None) for stage in stages]
        last = {name: (image[node.number], dtype) for name, (node, dtype) in self.outputs.items()}
        return [*kernels, self._kernel(last, [image[c.number] for c in self.graph.conditions], None)]

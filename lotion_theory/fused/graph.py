"""Operations recorded as a graph: what one kernel computes for every weight, every block, or the whole tensor.

Nodes are made once (equal operations are one node), in an order in which arguments come before what uses them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# How often a node is computed: never, once per tensor, per block, per weight.
CONSTANT, TENSOR, BLOCK, WEIGHT = range(4)

REALS = ("float32", "float64")
"""Types of real numbers; beside them nodes are ``"int"`` or ``"bool"``."""


class Unsupported(BaseException):
    """What cannot be recorded; the plain path computes it. No ``Exception``, lest a rule take it for an answer."""


@dataclass(frozen=True, eq=False, slots=True)
class Node:
    """One operation. ``op``: its name; ``dtype``: one of ``REALS``, ``int``, ``bool``; ``rate``: one of CONSTANT ...
    WEIGHT; ``attr``: what else the operation needs, such as a table or the value of a constant."""

    op: str
    args: tuple[Node, ...]
    dtype: str
    rate: int
    attr: Any
    number: int


# Reductions of the weights of a block: their largest one, and the first.
REDUCTIONS = ("rowmax", "first")


class Graph:
    """Nodes, and the conditions that hold where the recorded operations are those of the plain path."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.conditions: list[Node] = []
        self.maxima: dict[str, Node] = {}
        self._known: dict[tuple[Any, ...], Node] = {}

    def add(self, op: str, args: tuple[Node, ...], dtype: str, attr: Any = None, rate: int | None = None) -> Node:
        """The node of this operation. ``rate``: by default that of the fastest argument."""
        if rate is None:
            rate = max((a.rate for a in args), default=CONSTANT)
        key = (op, tuple(a.number for a in args), dtype, attr, rate)
        node = self._known.get(key)
        if node is None:
            node = Node(op, args, dtype, rate, attr, len(self.nodes))
            self.nodes.append(node)
            self._known[key] = node
        return node

    def constant(self, value: float | int | bool, dtype: str) -> Node:
        """A number of the given type. 0 and -0 differ."""
        attr = float(value).hex() if dtype in REALS else int(value)
        return self.add("constant", (), dtype, attr)

    def require(self, condition: Node) -> None:
        """Note that the rest is right only where ``condition`` holds everywhere."""
        if condition not in self.conditions:
            self.conditions.append(condition)

    def tensor_maximum(self, rows: Node) -> str:
        """The name under which a kernel is given the largest entry of ``rows``, one per block, over the tensor."""
        if any(n.attr in self.maxima for n in needed([rows]) if n.op == "input"):
            raise Unsupported("a maximum over the tensor of what depends on another one")
        for name, node in self.maxima.items():
            if node is rows:
                return name
        name = f"maximum{len(self.maxima)}"
        self.maxima[name] = rows
        return name


def needed(roots: list[Node]) -> list[Node]:
    """Everything that ``roots`` are computed from, themselves included, arguments first."""
    found: dict[int, Node] = {}
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node.number not in found:
            found[node.number] = node
            stack.extend(node.args)
    return [found[k] for k in sorted(found)]


def depth(nodes: list[Node]) -> dict[int, int]:
    """Per node, how many passes over the weights of a block must end before it can be computed."""
    out: dict[int, int] = {}
    for node in nodes:
        below = max((out[a.number] for a in node.args), default=0)
        out[node.number] = below + (node.op in REDUCTIONS)
    return out

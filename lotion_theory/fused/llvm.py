"""A graph written as a function in the language of LLVM, vectors included; nothing is left to an optimizer.

The function ``run(blocks, n, pointers)`` takes blocks in groups of as many as a vector has lanes. Per group: each pass
over the weights of every block that a reduction needs, then what is computed per block, for all blocks of the group in
one vector, and at last the pass that writes the results. It returns 0, or something else where a condition fails.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .graph import BLOCK, REDUCTIONS, TENSOR, WEIGHT, Node, depth, needed
from .lanes import ALIGN, STORED, TYPES, Writer, needed_below
from .tables import Scope

_ATTRIBUTES = '"min-legal-vector-width"="512" "prefer-vector-width"="512" nounwind'


@dataclass(frozen=True)
class Slot:
    """An array that the function reads or writes. ``dtype``: its type in memory; ``rate``: how many entries it has."""

    name: str
    dtype: str
    rate: int


@dataclass(frozen=True)
class Request:
    """What to compile. ``outputs``: nodes by name, with the types they are stored in; ``conditions``: what must hold;
    ``inputs``: types in memory by name; ``columns``: the number of weights of a block, None where each call may have
    another; ``real``: the type computed in, and ``features`` of the processor."""

    outputs: dict[str, tuple[Node, str]]
    conditions: list[Node]
    inputs: dict[str, str]
    columns: int | None
    real: str
    features: frozenset[str]


@dataclass
class Pass:
    """What one pass over the weights computes: the largest entry per block of some nodes, outputs, conditions."""

    maxima: list[Node]
    outputs: list[str]
    conditions: list[Node]
    roots: list[Node] = field(default_factory=list)


class Module:
    """One function written out: :attr:`text` is it, :attr:`slots` are its arrays in the order of the pointers."""

    def __init__(self, request: Request) -> None:
        self.request = request
        # Lanes of a vector; wider than the processor has is no loss.
        self.lanes = 16 if request.real == "float32" else 8
        self.w = Writer(request.features)
        self.nodes = needed([node for node, _ in request.outputs.values()] + request.conditions)
        self.depth = depth(self.nodes)
        self.inputs = [n for n in self.nodes if n.op == "input"]
        self.read_by_weights = {a.number for n in self.nodes if n.rate == WEIGHT for a in n.args}
        self.slots = [Slot(n.attr, request.inputs[n.attr], n.rate) for n in self.inputs]
        self.slots += [Slot(name, dtype, node.rate) for name, (node, dtype) in request.outputs.items()]
        self.text = self._written()

    # --- the frame ---------------------------------------------------------------------------------------------------

    def _written(self) -> str:
        w, lanes = self.w, self.lanes
        self.pointer = {s.name: w.load("ptr", "%pointers", str(k)) for k, s in enumerate(self.slots)}
        self.bad = w.memory(f"<{lanes} x i32>")
        w.say(f"store <{lanes} x i32> zeroinitializer, ptr {self.bad}")
        self.tensor = Scope(w, 1, {})
        for node in self.inputs:
            if node.rate == TENSOR:
                base = STORED[self.request.inputs[node.attr]]
                self.tensor.known[node.number] = w.load(base, self.pointer[node.attr], "0")
        for node in self.nodes:
            if node.rate == TENSOR:
                self.tensor.of(node)
        # What is computed per block, as the passes over its weights read it.
        self.kept = {n.number: w.memory(f"[{lanes} x {_kept(n.dtype)}]") for n in self.nodes if n.rate == BLOCK}
        self._loop("group", "%blocks", lanes, self._group)
        bad = w.do(f"load <{lanes} x i32>, ptr {self.bad}")
        w.declare(f"declare i32 @llvm.vector.reduce.or.v{lanes}i32(<{lanes} x i32>)")
        w.say(f"%result = call i32 @llvm.vector.reduce.or.v{lanes}i32(<{lanes} x i32> {bad})")
        w.say("ret i32 %result")
        body = "\n".join(["entry:", *w.allocas, *w.lines])
        head = "\n".join(w.head)
        return f"{head}\n\ndefine i32 @run(i64 %blocks, i64 %n, ptr %pointers) {_ATTRIBUTES} {{\n{body}\n}}\n"

    def _loop(
        self, name: str, limit: str, step: int, body: Callable[..., list[str] | None], carried: list[str] | None = None
    ) -> list[str]:
        """``for (i = 0; i < limit; i += step)``. ``carried``: the types and first values, ``"i32 0"``, of what
        ``body(i, *values)`` returns for the next turn; returns the last values."""
        w, carried = self.w, carried or []
        w.names += 1
        tag = f"{name}{w.names}"
        w.say(f"br label %{tag}.before")
        w.label(f"{tag}.before")
        w.say(f"br label %{tag}.head")
        w.label(f"{tag}.head")
        i = w.do(f"phi i64 [ 0, %{tag}.before ], [ %{tag}.next, %{tag}.latch ]")
        marks = len(w.lines)
        values = []
        for k, start in enumerate(carried):
            kind, first = _typed(start)
            values.append(w.do(f"phi {kind} [ {first}, %{tag}.before ], [ @{k}@, %{tag}.latch ]"))
        go = w.do(f"icmp slt i64 {i}, {limit}")
        w.say(f"br i1 {go}, label %{tag}.body, label %{tag}.done")
        w.label(f"{tag}.body")
        new = body(i, *values) or []
        w.say(f"br label %{tag}.latch")
        w.label(f"{tag}.latch")
        w.say(f"%{tag}.next = add i64 {i}, {step}")
        w.say(f"br label %{tag}.head")
        w.label(f"{tag}.done")
        for k, value in enumerate(new):
            w.lines[marks + k] = w.lines[marks + k].replace(f"@{k}@", value)
        return values

    # --- a group of blocks -------------------------------------------------------------------------------------------

    def _group(self, first: str) -> None:
        w, lanes = self.w, self.lanes
        left = w.do(f"sub i64 %blocks, {first}")
        less = w.do(f"icmp slt i64 {left}, {lanes}")
        count = w.do(f"select i1 {less}, i64 {left}, i64 {lanes}")
        self.group = Scope(w, lanes, {})
        for node in self.inputs:
            if node.rate == BLOCK:
                self._load_blocks(node, first, count)
        levels = max(self.depth.values(), default=0)
        for level in range(levels + 1):
            reductions = [n for n in self.nodes if n.op in REDUCTIONS and self.depth[n.number] == level]
            if reductions:
                self._reduce(first, count, level, reductions)
            for node in self.nodes:
                if node.rate == BLOCK and self.depth[node.number] == level and node.op not in ("input", *REDUCTIONS):
                    self._block_node(node)
        self._block_conditions()
        outputs = [name for name, (node, _) in self.request.outputs.items() if node.rate == WEIGHT]
        last = Pass([], outputs, self._conditions(levels + 1))
        if outputs or last.conditions:
            self._loop("block", count, 1, lambda i: self._block_pass(w.do(f"add i64 {first}, {i}"), i, last))
        self._block_outputs(first, count)

    def _load_blocks(self, node: Node, first: str, count: str) -> None:
        """Entries of an array per block; lanes beyond the last block get its entry."""
        w = self.w
        base = STORED[self.request.inputs[node.attr]]
        last = w.do(f"sub i64 {count}, 1")

        def copy(i: str) -> None:
            beyond = w.do(f"icmp sgt i64 {i}, {last}")
            k = w.do(f"select i1 {beyond}, i64 {last}, i64 {i}")
            value = w.load(base, self.pointer[node.attr], w.do(f"add i64 {first}, {k}"))
            # Uniforms may be wider than the type computed in.
            w.store(base, value, self.kept[node.number], i)

        self._loop("copy", str(self.lanes), 1, copy)
        self._vector(node)

    def _vector(self, node: Node) -> None:
        """What is kept of a node, for all lanes."""
        kind = f"<{self.lanes} x {TYPES[node.dtype]}>"
        self.group.known[node.number] = self.w.do(f"load {kind}, ptr {self.kept[node.number]}, align 64")

    def _reduce(self, first: str, count: str, level: int, reductions: list[Node]) -> None:
        w = self.w
        maxima = [r for r in reductions if r.op == "rowmax"]
        now = Pass(maxima, [], self._conditions(level))

        def block(i: str) -> None:
            b = w.do(f"add i64 {first}, {i}")
            for r in reductions:
                if r.op == "first":
                    w.store(TYPES[r.dtype], self._first(b, i, r.args[0]), self.kept[r.number], i)
            if maxima or now.conditions:
                self._block_pass(b, i, now)

        self._loop("block", count, 1, block)
        # Lanes without a block get the values of the last one, so that they meet every condition it meets.
        last = w.do(f"sub i64 {count}, 1")
        for r in reductions:
            base, memory = TYPES[r.dtype], self.kept[r.number]
            value = w.load(base, memory, last)

            def put(i: str, base: str = base, memory: str = memory, value: str = value) -> None:
                w.store(base, value, memory, w.do(f"add i64 {i}, {count}"))

            self._loop("fill", w.do(f"sub i64 {self.lanes}, {count}"), 1, put)
            self._vector(r)

    def _block_node(self, node: Node) -> None:
        known = self.group.known
        for part in needed_below(node, known):
            if part.rate == TENSOR:
                known[part.number] = self._splat(self.tensor.known[part.number], part.dtype, self.lanes)
            else:
                known[part.number] = self.group.compute(part)
        if node.number in self.read_by_weights:
            value, base = known[node.number], _kept(node.dtype)
            if node.dtype == "bool":
                value = self.w.do(f"zext <{self.lanes} x i1> {value} to <{self.lanes} x i32>")
            self.w.say(f"store <{self.lanes} x {base}> {value}, ptr {self.kept[node.number]}, align 64")

    def _splat(self, scalar: str, dtype: str, lanes: int) -> str:
        """One value in all lanes."""
        if lanes == 1:
            return scalar
        kind = f"<{lanes} x {TYPES[dtype]}>"
        one = self.w.do(f"insertelement {kind} poison, {TYPES[dtype]} {scalar}, i32 0")
        return self.w.do(f"shufflevector {kind} {one}, {kind} poison, <{lanes} x i32> zeroinitializer")

    def _block_conditions(self) -> None:
        for node in self.request.conditions:
            if node.rate == BLOCK:
                self._block_node(node)
                value = self.group.known[node.number]
            elif node.rate == TENSOR:
                value = self._splat(self.tensor.known[node.number], "bool", self.lanes)
            else:
                continue
            self._note(self.group.wrong(value), self.lanes)

    def _note(self, bad: str, lanes: int) -> None:
        """Remember the lanes that are not zero."""
        w = self.w
        if lanes == 1:
            bad = w.do(f"insertelement <{self.lanes} x i32> zeroinitializer, i32 {bad}, i32 0")
        elif lanes < self.lanes:
            index = ", ".join(f"i32 {min(k, lanes)}" for k in range(self.lanes))
            zero = f"<{lanes} x i32> zeroinitializer"
            bad = w.do(f"shufflevector <{lanes} x i32> {bad}, {zero}, <{self.lanes} x i32> <{index}>")
        kind = f"<{self.lanes} x i32>"
        before = w.do(f"load {kind}, ptr {self.bad}")
        w.say(f"store {kind} {w.do(f'or {kind} {before}, {bad}')}, ptr {self.bad}")

    def _block_outputs(self, first: str, count: str) -> None:
        w = self.w
        for name, (node, dtype) in self.request.outputs.items():
            if node.rate == BLOCK:
                base, memory = STORED[dtype], self.kept[node.number]
                value = self.group.known[node.number]
                w.say(f"store <{self.lanes} x {base}> {value}, ptr {memory}, align 64")

                def put(i: str, base: str = base, memory: str = memory, name: str = name) -> None:
                    w.store(base, w.load(base, memory, i), self.pointer[name], w.do(f"add i64 {first}, {i}"))

                self._loop("put", count, 1, put)

    # --- a pass over the weights of a block --------------------------------------------------------------------------

    def _conditions(self, level: int) -> list[Node]:
        """The conditions on weights that pass ``level`` checks: each is checked in the earliest pass there is."""
        passes = {self.depth[n.number] for n in self.nodes if n.op in REDUCTIONS}
        passes.add(max(self.depth.values(), default=0) + 1)
        weights = [c for c in self.request.conditions if c.rate == WEIGHT]
        return [c for c in weights if min(p for p in passes if p > self.depth[c.number]) == level]

    def _first(self, b: str, i: str, node: Node) -> str:
        """The value of ``node`` for the first weight of block ``b``."""
        scope = Scope(self.w, 1, {k: v for k, (v, _) in self._scalars([node], i).items()})
        self._load_weights(scope, [node], self.w.do(f"mul i64 {b}, %n"))
        return scope.of(node)

    def _scalars(self, roots: list[Node], i: str) -> dict[int, tuple[str, str]]:
        """What the weights of block ``i`` of the group need of it: number of the node -> (value, type)."""
        w, out = self.w, {}
        for node in needed(roots):
            for a in node.args if node.rate == WEIGHT else ():
                if a.rate == BLOCK and a.number not in out:
                    value = w.load(_kept(a.dtype), self.kept[a.number], i)
                    out[a.number] = (w.do(f"trunc i32 {value} to i1") if a.dtype == "bool" else value, a.dtype)
                elif a.rate == TENSOR:
                    out[a.number] = (self.tensor.known[a.number], a.dtype)
        return out

    def _load_weights(self, scope: Scope, roots: list[Node], place: str) -> None:
        for node in needed(roots):
            if node.op == "input" and node.rate == WEIGHT:
                dtype = self.request.inputs[node.attr]
                base = STORED[dtype]
                where = scope.writer.at(base, self.pointer[node.attr], place)
                value = scope.do(f"load {scope.raw(base)}, ptr {where}, align {ALIGN[base]}")
                narrow = dtype in ("float16", "bfloat16")
                scope.known[node.number] = scope.widened(value, dtype) if narrow else value

    def _block_pass(self, b: str, i: str, now: Pass) -> None:
        """Whole vectors of the weights of block ``b``, the ``i``-th of its group, then what remains one by one."""
        w, columns, lanes = self.w, self.request.columns, self.lanes
        now.roots = [r.args[0] for r in now.maxima] + [self.request.outputs[name][0] for name in now.outputs]
        now.roots += now.conditions
        while columns is not None and lanes > columns:
            lanes //= 2
        scalars = self._scalars(now.roots, i)
        offset = w.do(f"mul i64 {b}, %n")
        whole = str(columns // lanes * lanes) if columns is not None else w.do(f"and i64 %n, {-lanes}")
        start = Scope(w, lanes, {})
        tops = [start.number(-np.inf, r.dtype) for r in now.maxima]
        tops = self._span(now, whole, lanes, offset, scalars, tops)
        tops = [self._across(top, r.dtype, lanes) for top, r in zip(tops, now.maxima, strict=True)]
        if lanes > 1 and (columns is None or columns % lanes):
            rest = w.do(f"sub i64 {'%n' if columns is None else columns}, {whole}")
            tops = self._span(now, rest, 1, w.do(f"add i64 {offset}, {whole}"), scalars, tops)
        for r, top in zip(now.maxima, tops, strict=True):
            w.store(TYPES[r.dtype], top, self.kept[r.number], i)

    def _span(
        self, now: Pass, limit: str, lanes: int, offset: str, scalars: dict[int, tuple[str, str]], tops: list[str]
    ) -> list[str]:
        """A loop over weights, ``lanes`` at a time, from ``offset`` on; returns the largest values of each lane."""
        w = self.w
        splats = {k: self._splat(v, dtype, lanes) for k, (v, dtype) in scalars.items()}

        def body(j: str, *before: str) -> list[str]:
            place = w.do(f"add i64 {offset}, {j}")
            scope = Scope(w, lanes, splats)
            self._load_weights(scope, now.roots, place)
            after = [
                scope.larger(scope.of(r.args[0]), top, r.dtype) for r, top in zip(now.maxima, before, strict=False)
            ]
            if now.conditions:
                good = before[-1]
                for node in now.conditions:
                    good = w.do(f"and {scope.raw('i1')} {good}, {scope.of(node)}")
                after.append(good)
            for name in now.outputs:
                node, dtype = self.request.outputs[name]
                value, base = scope.of(node), STORED[dtype]
                if dtype in ("float16", "bfloat16"):
                    value = scope.narrowed(value, dtype)
                where = w.at(base, self.pointer[name], place)
                w.say(f"store {scope.raw(base)} {value}, ptr {where}, align {ALIGN[base]}")
            return after

        start = Scope(w, lanes, {})
        carried = [f"{start.type(r.dtype)} {top}" for r, top in zip(now.maxima, tops, strict=True)]
        if now.conditions:
            carried.append(f"{start.raw('i1')} {start.literal('i1', 'true')}")
        values = self._loop("span", limit, lanes, body, carried)
        if now.conditions:
            self._note(start.wrong(values.pop()), lanes)
        return values

    def _across(self, value: str, dtype: str, lanes: int) -> str:
        """The largest entry of a vector."""
        w = self.w
        while lanes > 1:
            kind, half = f"<{lanes} x {TYPES[dtype]}>", lanes // 2
            if half == 1:
                low, high = (w.do(f"extractelement {kind} {value}, i32 {k}") for k in (0, 1))
            else:
                index = [", ".join(f"i32 {k + at}" for k in range(half)) for at in (0, half)]
                low, high = (
                    w.do(f"shufflevector {kind} {value}, {kind} poison, <{half} x i32> <{part}>") for part in index
                )
            value, lanes = Scope(w, half, {}).larger(low, high, dtype), half
        return value


def _kept(dtype: str) -> str:
    """The type in which a value per block waits in memory."""
    return "i32" if dtype == "bool" else TYPES[dtype]


def _typed(start: str) -> tuple[str, str]:
    """A typed value as its type and its value: the type of a vector ends with its first bracket."""
    end = start.index(">") + 1 if start.startswith("<") else start.index(" ")
    return start[:end], start[end:].strip()

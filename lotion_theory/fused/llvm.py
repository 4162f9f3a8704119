"""A graph written as a function in the language of LLVM, vectors included; nothing is left to an optimizer.

The function ``run(blocks, n, pointers)`` takes blocks in groups of as many as a vector has lanes. Per group: each pass
over the weights of every block that a reduction needs, then what is computed per block, for all blocks of the group in
one vector, and at last the pass that writes the results. It returns 0, or 1 where a condition of the graph fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .graph import BLOCK, REDUCTIONS, TENSOR, WEIGHT, Node, depth, needed
from .scope import STORED, TYPES, Scope, Writer, needed_below


@dataclass(frozen=True)
class Slot:
    """An array that the function reads or writes, in the order of the pointers. ``dtype``: its type in memory."""

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


def lanes_of(real: str) -> int:
    """Lanes of a vector; wider than most processors have is no loss."""
    return 16 if real == "float32" else 8


class Module:
    """One function written out; :attr:`text` is it, ``slots`` its arrays in the order of the pointers."""

    def __init__(self, request: Request) -> None:
        self.request, self.lanes = request, lanes_of(request.real)
        self.w = Writer(request.features)
        roots = [node for node, _ in request.outputs.values()] + request.conditions
        self.nodes = needed(roots)
        self.depth = depth(self.nodes)
        self.inputs = [n for n in self.nodes if n.op == "input"]
        self.slots = [Slot(n.attr, request.inputs[n.attr], n.rate) for n in self.inputs]
        self.slots += [Slot(name, dtype, node.rate) for name, (node, dtype) in request.outputs.items()]
        self.bad = ""
        self.text = self._written()

    # --- the frame ---------------------------------------------------------------------------------------------------

    def _written(self) -> str:
        w, lanes = self.w, self.lanes
        self.pointer = {}
        for k, slot in enumerate(self.slots):
            place = w.do(f"getelementptr ptr, ptr %pointers, i64 {k}")
            self.pointer[slot.name] = w.do(f"load ptr, ptr {place}")
        self.bad = w.do(f"alloca <{lanes} x i32>, align 64")
        w.say(f"store <{lanes} x i32> zeroinitializer, ptr {self.bad}")
        self.tensor = Scope(w, 1, {})
        for node in self.inputs:
            if node.rate == TENSOR:
                base = STORED[self.request.inputs[node.attr]]
                self.tensor.known[node.number] = w.do(f"load {base}, ptr {self.pointer[node.attr]}")
        for node in self.nodes:
            if node.rate == TENSOR:
                self.tensor.of(node)
        self.memory = {n.number: self._alloca(n) for n in self.nodes if n.rate == BLOCK and n.op != "input"}
        self._loop("group", "%blocks", lanes, self._group)
        bad = w.do(f"load <{lanes} x i32>, ptr {self.bad}")
        w.declare(f"declare i32 @llvm.vector.reduce.or.v{lanes}i32(<{lanes} x i32>)")
        w.say(f"%result = call i32 @llvm.vector.reduce.or.v{lanes}i32(<{lanes} x i32> {bad})")
        w.say("ret i32 %result")
        head = "\n".join(w.head)
        body = "\n".join(["entry:", *w.allocas, *w.lines])
        attributes = '"min-legal-vector-width"="512" "prefer-vector-width"="512" "no-trapping-math"="true" nounwind'
        return f"{head}\n\ndefine i32 @run(i64 %blocks, i64 %n, ptr %pointers) {attributes} {{\n{body}\n}}\n"

    def _alloca(self, node: Node) -> str:
        base = "i32" if node.dtype == "bool" else TYPES[node.dtype]
        return self.w.do(f"alloca [{self.lanes} x {base}], align 64")

    def _loop(
        self, name: str, limit: str, step: int, body: Any, carried: list[tuple[str, str]] | None = None
    ) -> list[str]:
        """``for (i = 0; i < limit; i += step)``. ``carried``: (type, first value) of what ``body(i, values)`` passes
        on; returns the last values."""
        w = self.w
        w.names += 1
        tag = f"{name}{w.names}"
        carried = carried or []
        came_from = w.do("add i64 0, 0")  # a name for the value of i at the start
        w.say(f"br label %{tag}.before")
        w.label(f"{tag}.before")
        w.say(f"br label %{tag}.head")
        w.label(f"{tag}.head")
        marks = len(w.lines)
        i = w.do(f"phi i64 [ {came_from}, %{tag}.before ], [ %{tag}.next, %{tag}.latch ]")
        values = [
            w.do(f"phi {kind} [ {first}, %{tag}.before ], [ @{tag}.{k}@, %{tag}.latch ]")
            for k, (kind, first) in enumerate(carried)
        ]
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
            w.lines[marks + 1 + k] = w.lines[marks + 1 + k].replace(f"@{tag}.{k}@", value)
        return values

    # --- a group of blocks -------------------------------------------------------------------------------------------

    def _group(self, first: str) -> None:
        w, lanes = self.w, self.lanes
        left = w.do(f"sub i64 %blocks, {first}")
        less = w.do(f"icmp slt i64 {left}, {lanes}")
        count = w.do(f"select i1 {less}, i64 {left}, i64 {lanes}")
        self.group = Scope(w, lanes, {})
        self._load_block_inputs(first, count)
        levels = max(self.depth.values(), default=0)
        for level in range(levels + 1):
            reductions = [n for n in self.nodes if n.op in REDUCTIONS and self.depth[n.number] == level]
            if reductions:
                self._passes(first, count, level, reductions, [])
                self._fill_up(count, reductions)
            for node in self.nodes:
                if node.rate == BLOCK and self.depth[node.number] == level and node.op != "input":
                    self._block_node(node)
        self._block_conditions()
        self._passes(
            first, count, levels + 1, [], [n for n, (node, _) in self.request.outputs.items() if node.rate == WEIGHT]
        )
        self._block_outputs(first, count)

    def _load_block_inputs(self, first: str, count: str) -> None:
        """Entries of arrays per block, by way of the stack: the last group may be smaller than a vector."""
        w, lanes = self.w, self.lanes
        for node in self.inputs:
            if node.rate != BLOCK:
                continue
            base = STORED[self.request.inputs[node.attr]]
            buffer = self._buffer(node.number, base)
            source = w.do(f"getelementptr {base}, ptr {self.pointer[node.attr]}, i64 {first}")

            def copy(i: str, base: str = base, source: str = source, buffer: str = buffer) -> None:
                last = w.do(f"sub i64 {count}, 1")
                beyond = w.do(f"icmp sgt i64 {i}, {last}")
                k = w.do(f"select i1 {beyond}, i64 {last}, i64 {i}")
                value = w.do(f"load {base}, ptr {w.do(f'getelementptr {base}, ptr {source}, i64 {k}')}")
                w.say(f"store {base} {value}, ptr {w.do(f'getelementptr {base}, ptr {buffer}, i64 {i}')}")

            self._loop("copy", str(lanes), 1, copy)
            self.group.known[node.number] = w.do(f"load <{lanes} x {base}>, ptr {buffer}, align 64")
            self.memory[node.number] = buffer

    def _buffer(self, number: int, base: str) -> str:
        if not hasattr(self, "_buffers"):
            self._buffers: dict[int, str] = {}
        if number not in self._buffers:
            # In the entry block: an alloca inside a loop would take new memory at each turn.
            name = f"%buffer{number}"
            self.w.allocas.append(f"  {name} = alloca [{self.lanes} x {base}], align 64")
            self._buffers[number] = name
        return self._buffers[number]

    def _fill_up(self, count: str, reductions: list[Node]) -> None:
        """Give lanes without a block the values of the last one, so that they meet every condition it meets."""
        w = self.w
        last = w.do(f"sub i64 {count}, 1")
        for node in reductions:
            base, memory = TYPES[node.dtype], self.memory[node.number]
            value = w.do(f"load {base}, ptr {w.do(f'getelementptr {base}, ptr {memory}, i64 {last}')}")

            def put(i: str, base: str = base, memory: str = memory, value: str = value) -> None:
                place = w.do(f"getelementptr {base}, ptr {memory}, i64 {w.do(f'add i64 {i}, {count}')}")
                w.say(f"store {base} {value}, ptr {place}")

            self._loop("fill", w.do(f"sub i64 {self.lanes}, {count}"), 1, put)
            self.group.known[node.number] = w.do(f"load <{self.lanes} x {base}>, ptr {memory}, align 64")

    def _block_node(self, node: Node) -> None:
        known = self.group.known
        for part in needed_below(node, known):
            if part.rate == TENSOR:
                known[part.number] = self._splat(self.tensor.known[part.number], part.dtype, self.lanes)
            else:
                known[part.number] = self.group.compute(part)
        self._keep(node)

    def _keep(self, node: Node) -> None:
        """Put what the passes over the weights need into memory."""
        if node.op in REDUCTIONS or not self._used_by_weights(node):
            return
        value, base = self.group.known[node.number], TYPES[node.dtype]
        if node.dtype == "bool":
            value = self.w.do(f"zext <{self.lanes} x i1> {value} to <{self.lanes} x i32>")
            base = "i32"
        self.w.say(f"store <{self.lanes} x {base}> {value}, ptr {self.memory[node.number]}, align 64")

    def _used_by_weights(self, node: Node) -> bool:
        return any(node in other.args and other.rate == WEIGHT for other in self.nodes)

    def _splat(self, scalar: str, dtype: str, lanes: int) -> str:
        if lanes == 1:
            return scalar
        kind = f"<{lanes} x {TYPES[dtype]}>"
        one = self.w.do(f"insertelement {kind} poison, {TYPES[dtype]} {scalar}, i32 0")
        return self.w.do(f"shufflevector {kind} {one}, {kind} poison, <{lanes} x i32> zeroinitializer")

    def _block_conditions(self) -> None:
        for node in self.request.conditions:
            if node.rate in (BLOCK, TENSOR):
                self._block_node(node) if node.rate == BLOCK else None
                value = (
                    self.group.known[node.number]
                    if node.rate == BLOCK
                    else self._splat(self.tensor.known[node.number], "bool", self.lanes)
                )
                wrong = self.group.do(f"xor <{self.lanes} x i1> {value}, {self.group.number(1, 'bool')}")
                self._note(self.w.do(f"sext <{self.lanes} x i1> {wrong} to <{self.lanes} x i32>"))

    def _note(self, wrong: str) -> None:
        kind = f"<{self.lanes} x i32>"
        before = self.w.do(f"load {kind}, ptr {self.bad}")
        self.w.say(f"store {kind} {self.w.do(f'or {kind} {before}, {wrong}')}, ptr {self.bad}")

    def _block_outputs(self, first: str, count: str) -> None:
        w = self.w
        for name, (node, dtype) in self.request.outputs.items():
            if node.rate != BLOCK:
                continue
            base = STORED[dtype]
            value = self.group.known[node.number]
            buffer = self._buffer(10**6 + node.number, base)
            w.say(f"store <{self.lanes} x {base}> {value}, ptr {buffer}, align 64")

            def put(i: str, base: str = base, buffer: str = buffer, name: str = name) -> None:
                value = w.do(f"load {base}, ptr {w.do(f'getelementptr {base}, ptr {buffer}, i64 {i}')}")
                place = w.do(f"add i64 {first}, {i}")
                w.say(
                    f"store {base} {value}, ptr {w.do(f'getelementptr {base}, ptr {self.pointer[name]}, i64 {place}')}"
                )

            self._loop("put", count, 1, put)

    # --- a pass over the weights of every block of a group -----------------------------------------------------------

    def _passes(self, first: str, count: str, level: int, reductions: list[Node], outputs: list[str]) -> None:
        conditions = [n for n in self.request.conditions if n.rate == WEIGHT and self._pass_of(n) == level]
        if not (reductions or outputs or conditions):
            return

        def block(i: str) -> None:
            self._block_pass(self.w.do(f"add i64 {first}, {i}"), i, reductions, outputs, conditions)

        self._loop("block", count, 1, block)

    def _pass_of(self, condition: Node) -> int:
        """The pass in which a condition is checked: the earliest one that there is."""
        passes = {self.depth[n.number] for n in self.nodes if n.op in REDUCTIONS}
        passes.add(max(self.depth.values(), default=0) + 1)
        return min(p for p in passes if p > self.depth[condition.number])

    def _block_pass(self, b: str, i: str, reductions: list[Node], outputs: list[str], conditions: list[Node]) -> None:
        w = self.w
        columns = self.request.columns
        roots = [r.args[0] for r in reductions if r.op == "rowmax"]
        roots += [self.request.outputs[name][0] for name in outputs] + conditions
        for r in reductions:
            if r.op == "first":
                value = self._first(b, i, r)
                w.say(
                    f"store {TYPES[r.dtype]} {value}, ptr {w.do(f'getelementptr {TYPES[r.dtype]}, ptr {self.memory[r.number]}, i64 {i}')}"
                )
        maxima = [r for r in reductions if r.op == "rowmax"]
        if not roots:
            return
        offset = w.do(f"mul i64 {b}, %n")
        lanes = self.lanes
        while columns is not None and lanes > columns:
            lanes //= 2
        scalars = self._scalars(roots, i)
        carried: list[tuple[str, str]] = []
        kind = {r.number: f"<{lanes} x {TYPES[r.dtype]}>" if lanes > 1 else TYPES[r.dtype] for r in maxima}
        start = Scope(w, lanes, {})
        carried += [(kind[r.number], start.number(-np.inf, r.dtype)) for r in maxima]
        wide_bad = f"<{lanes} x i32>" if lanes > 1 else "i32"
        if conditions:
            carried.append((wide_bad, start.literal("i32", "0")))
        whole = str(columns // lanes * lanes) if columns is not None else w.do(f"and i64 %n, {-lanes}")
        values = self._span(whole, lanes, offset, scalars, maxima, outputs, conditions, carried, "0")
        tops = [self._across(v, r.dtype, lanes) for v, r in zip(values, maxima, strict=False)]
        bad = values[-1] if conditions else None
        if conditions:
            self._note_lanes(bad, lanes)
        if lanes > 1 and (columns is None or columns % lanes):
            rest = w.do(f"sub i64 {columns if columns is not None else '%n'}, {whole}")
            from_here = w.do(f"add i64 {offset}, {whole}")
            carried = [(TYPES[r.dtype], top) for r, top in zip(maxima, tops, strict=True)]
            if conditions:
                carried.append(("i32", "0"))
            values = self._span(rest, 1, from_here, scalars, maxima, outputs, conditions, carried, whole)
            tops = values[: len(maxima)]
            if conditions:
                self._note_lanes(values[-1], 1)
        for r, top in zip(maxima, tops, strict=True):
            base = TYPES[r.dtype]
            w.say(f"store {base} {top}, ptr {w.do(f'getelementptr {base}, ptr {self.memory[r.number]}, i64 {i}')}")

    def _scalars(self, roots: list[Node], i: str) -> dict[int, tuple[str, str]]:
        """What the weights of block ``i`` of the group need of it: number of the node -> (value, type)."""
        w, out = self.w, {}
        for node in needed(roots):
            if node.rate != WEIGHT:
                continue
            for a in node.args:
                if a.rate == BLOCK and a.number not in out:
                    base = "i32" if a.dtype == "bool" else TYPES[a.dtype]
                    value = w.do(
                        f"load {base}, ptr {w.do(f'getelementptr {base}, ptr {self.memory[a.number]}, i64 {i}')}"
                    )
                    if a.dtype == "bool":
                        value = w.do(f"trunc i32 {value} to i1")
                    out[a.number] = (value, a.dtype)
                elif a.rate == TENSOR:
                    out[a.number] = (self.tensor.known[a.number], a.dtype)
        return out

    def _first(self, b: str, i: str, node: Node) -> str:
        w = self.w
        scope = Scope(w, 1, {k: v for k, (v, _) in self._scalars([node.args[0]], i).items()})
        offset = w.do(f"mul i64 {b}, %n")
        self._load_weights(scope, [node.args[0]], offset)
        return scope.of(node.args[0])

    def _load_weights(self, scope: Scope, roots: list[Node], place: str) -> None:
        for node in needed(roots):
            if node.op == "input" and node.rate == WEIGHT:
                dtype = self.request.inputs[node.attr]
                base = STORED[dtype]
                where = scope.do(f"getelementptr {base}, ptr {self.pointer[node.attr]}, i64 {place}")
                align = {"float": 4, "double": 8}.get(base, 2)
                value = scope.do(f"load {scope.raw(base)}, ptr {where}, align {align}")
                if dtype in ("float16", "bfloat16"):
                    value = scope.widened(value, dtype)
                scope.known[node.number] = value

    def _span(
        self, limit: str, lanes: int, offset: str, scalars: dict[int, tuple[str, str]], maxima: list[Node],
        outputs: list[str], conditions: list[Node], carried: list[tuple[str, str]], start: str,
    ) -> list[str]:  # fmt: skip
        w = self.w
        splats = {k: self._splat(v, dtype, lanes) for k, (v, dtype) in scalars.items()}
        roots = [r.args[0] for r in maxima] + [self.request.outputs[name][0] for name in outputs] + conditions

        def body(j: str, *before: str) -> list[str]:
            place = w.do(f"add i64 {offset}, {j}")
            scope = Scope(w, lanes, splats)
            self._load_weights(scope, roots, place)
            after = []
            for r, top in zip(maxima, before, strict=False):
                value = scope.of(r.args[0])
                more = w.do(f"fcmp ogt {scope.type(r.dtype)} {value}, {top}")
                after.append(
                    w.do(f"select {scope.raw('i1')} {more}, {scope.type(r.dtype)} {value}, {scope.type(r.dtype)} {top}")
                )
            if conditions:
                bad = before[-1]
                for node in conditions:
                    wrong = w.do(f"xor {scope.raw('i1')} {scope.of(node)}, {scope.number(1, 'bool')}")
                    wide = w.do(f"sext {scope.raw('i1')} {wrong} to {scope.raw('i32')}")
                    bad = w.do(f"or {scope.raw('i32')} {bad}, {wide}")
                after.append(bad)
            for name in outputs:
                node, dtype = self.request.outputs[name]
                value, base = scope.of(node), STORED[dtype]
                if dtype in ("float16", "bfloat16"):
                    value = scope.narrowed(value, dtype)
                where = w.do(f"getelementptr {base}, ptr {self.pointer[name]}, i64 {place}")
                align = {"float": 4, "double": 8}.get(base, 2)
                w.say(f"store {scope.raw(base)} {value}, ptr {where}, align {align}")
            return after

        return self._loop("span", limit, lanes, body, carried)

    def _across(self, value: str, dtype: str, lanes: int) -> str:
        """The largest entry of a vector."""
        w = self.w
        while lanes > 1:
            half, base = lanes // 2, TYPES[dtype]
            kind = f"<{lanes} x {base}>"
            low, high = (
                w.do(
                    f"shufflevector {kind} {value}, {kind} poison, <{half} x i32> <{', '.join(f'i32 {k + at}' for k in range(half))}>"
                )
                for at in (0, half)
            )
            scope = Scope(w, half, {})
            if half == 1:
                low, high = (w.do(f"extractelement {kind} {value}, i32 {k}") for k in (0, 1))
            more = w.do(f"fcmp ogt {scope.type(dtype)} {low}, {high}")
            value = w.do(f"select {scope.raw('i1')} {more}, {scope.type(dtype)} {low}, {scope.type(dtype)} {high}")
            lanes = half
        return value

    def _note_lanes(self, bad: str, lanes: int) -> None:
        if lanes == 1:
            bad = self.w.do(f"insertelement <{self.lanes} x i32> zeroinitializer, i32 {bad}, i32 0")
        elif lanes < self.lanes:
            index = ", ".join(f"i32 {k}" for k in range(self.lanes))
            zero = f"<{lanes} x i32> zeroinitializer"
            index = ", ".join(f"i32 {k if k < lanes else lanes}" for k in range(self.lanes))
            bad = self.w.do(f"shufflevector <{lanes} x i32> {bad}, {zero}, <{self.lanes} x i32> <{index}>")
        self._note(bad)

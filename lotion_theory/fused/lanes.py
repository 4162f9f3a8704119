"""Instructions of LLVM for the operations of a graph, a number of lanes at a time."""

from __future__ import annotations

import struct

import numpy as np

from .graph import REALS, Node, Unsupported

TYPES = {"float32": "float", "float64": "double", "int": "i32", "bool": "i1"}
_BITS = {"float32": 32, "float64": 64}
_MANTISSA = {"float32": 23, "float64": 52}
_COMPARE = {"lt": "olt", "gt": "ogt", "le": "ole", "ge": "oge", "eq": "oeq", "ne": "une"}
_COMPARE_INT = {"lt": "slt", "gt": "sgt", "le": "sle", "ge": "sge", "eq": "eq", "ne": "ne"}
_OPERATORS = {"add": "add", "sub": "sub", "mul": "mul", "div": "div"}
_INTRINSICS = {"abs": "fabs", "floor": "floor", "sqrt": "sqrt", "rint": "rint"}
STORED = {"float32": "float", "float64": "double", "float16": "half", "bfloat16": "i16"}
"""The types of arrays in memory; bfloat16 by its bits, which are the upper half of a float32."""
ALIGN = {"float": 4, "double": 8, "half": 2, "i16": 2}
"""What can be relied on in the arrays of a call."""


def hexadecimal(value: float) -> str:
    """A number as LLVM wants it: the bits of a double, also where the type is narrower."""
    return f"0x{struct.pack('>d', value).hex().upper()}"


class Lanes:
    """Code for one loop body: ``lanes`` values at a time, and what is known there."""

    def __init__(self, writer: Writer, lanes: int, known: dict[int, str]) -> None:
        self.writer, self.lanes, self.known = writer, lanes, dict(known)

    def type(self, dtype: str) -> str:
        return self.raw(TYPES[dtype])

    def raw(self, base: str) -> str:
        return base if self.lanes == 1 else f"<{self.lanes} x {base}>"

    def literal(self, base: str, value: str) -> str:
        """A constant in all lanes."""
        return value if self.lanes == 1 else "<" + ", ".join([f"{base} {value}"] * self.lanes) + ">"

    def do(self, text: str) -> str:
        return self.writer.do(text)

    def call(self, name: str, base: str, *args: str) -> str:
        """An intrinsic that is overloaded on one type."""
        kind = self.raw(base)
        suffix = {"float": "f32", "double": "f64", "half": "f16", "i32": "i32", "i64": "i64"}[base]
        full = f"@llvm.{name}.{suffix if self.lanes == 1 else f'v{self.lanes}{suffix}'}"
        self.writer.declare(f"declare {kind} {full}({', '.join([kind] * len(args))})")
        return self.do(f"call {kind} {full}({', '.join(f'{kind} {a}' for a in args)})")

    def number(self, value: float | int, dtype: str) -> str:
        if dtype in REALS:
            exact = float(np.float32(value)) if dtype == "float32" else float(value)
            return self.literal(TYPES[dtype], hexadecimal(exact))
        return self.literal(TYPES[dtype], str(int(value)) if dtype == "int" else ("true" if value else "false"))

    def of(self, node: Node) -> str:
        """The value of a node; its arguments are computed if they are not known yet."""
        for part in needed_below(node, self.known):
            self.known[part.number] = self.compute(part)
        return self.known[node.number]

    # --- operations --------------------------------------------------------------------------------------------------

    def compute(self, node: Node) -> str:
        if node.op == "constant":
            return self.number(float.fromhex(node.attr) if node.dtype in REALS else node.attr, node.dtype)
        a = [self.known[p.number] for p in node.args]
        special = getattr(self, f"op_{node.op}", None)
        if special is not None:
            return special(node, *a)
        first = node.args[0].dtype if node.args else node.dtype
        kind = self.type(first)
        if node.op in _OPERATORS:
            return self.do(f"{'f' if first in REALS else ''}{_OPERATORS[node.op]} {kind} {a[0]}, {a[1]}")
        if node.op in _COMPARE:
            compare = f"fcmp {_COMPARE[node.op]}" if first in REALS else f"icmp {_COMPARE_INT[node.op]}"
            return self.do(f"{compare} {kind} {a[0]}, {a[1]}")
        if node.op in ("and", "or", "xor"):
            return self.do(f"{node.op} {kind} {a[0]}, {a[1]}")
        if node.op in _INTRINSICS:
            return self.call(_INTRINSICS[node.op], TYPES[first], a[0])
        raise Unsupported(node.op)

    def larger(self, a: str, b: str, dtype: str) -> str:
        """The larger of two real numbers; ``b`` where one is NaN."""
        more = self.do(f"fcmp ogt {self.type(dtype)} {a}, {b}")
        return self.do(f"select {self.raw('i1')} {more}, {self.type(dtype)} {a}, {self.type(dtype)} {b}")

    def wrong(self, condition: str) -> str:
        """-1 where a condition fails, else 0."""
        failed = self.do(f"xor {self.raw('i1')} {condition}, {self.number(1, 'bool')}")
        return self.do(f"sext {self.raw('i1')} {failed} to {self.raw('i32')}")

    def op_neg(self, node: Node, a: str) -> str:
        return self.do(f"fneg {self.type(node.dtype)} {a}")

    def op_not(self, node: Node, a: str) -> str:
        return self.do(f"xor {self.type('bool')} {a}, {self.number(1, 'bool')}")

    def op_where(self, node: Node, c: str, a: str, b: str) -> str:
        kind = self.type(node.dtype)
        return self.do(f"select {self.type('bool')} {c}, {kind} {a}, {kind} {b}")

    def op_max(self, node: Node, a: str, b: str) -> str:
        kind, real = self.type(node.dtype), node.dtype in REALS
        more = self.do(f"{'fcmp ogt' if real else 'icmp sgt'} {kind} {a}, {b}")
        return self.do(f"select {self.type('bool')} {more}, {kind} {a}, {kind} {b}")

    def op_min(self, node: Node, a: str, b: str) -> str:
        kind, real = self.type(node.dtype), node.dtype in REALS
        less = self.do(f"{'fcmp olt' if real else 'icmp slt'} {kind} {a}, {b}")
        return self.do(f"select {self.type('bool')} {less}, {kind} {a}, {kind} {b}")

    def op_cast(self, node: Node, a: str) -> str:
        here = node.args[0].dtype
        if here == "bool":
            return self.do(
                f"{'uitofp' if node.dtype in REALS else 'zext'} {self.type(here)} {a} to {self.type(node.dtype)}"
            )
        if here == "float32" and node.dtype == "float64":
            return self.do(f"fpext {self.type(here)} {a} to {self.type(node.dtype)}")
        raise Unsupported(f"{here} as {node.dtype}")

    def op_index(self, node: Node, a: str) -> str:
        return self.do(f"fptosi {self.type(node.args[0].dtype)} {a} to {self.type('int')}")

    def op_store(self, node: Node, a: str) -> str:
        return self.widened(self.narrowed(a, node.attr), node.attr)

    def narrowed(self, a: str, name: str) -> str:
        """A float32 rounded to the 16 bits of ``name``, ties to even."""
        if name == "float16":
            if "f16c" not in self.writer.features:
                raise Unsupported("float16 on this processor")
            return self.do(f"fptrunc {self.raw('float')} {a} to {self.raw('half')}")
        bits, i32 = self.do(f"bitcast {self.raw('float')} {a} to {self.raw('i32')}"), self.raw("i32")
        odd = self.do(f"lshr {i32} {bits}, {self.literal('i32', '16')}")
        odd = self.do(f"and {i32} {odd}, {self.literal('i32', '1')}")
        up = self.do(f"add {i32} {odd}, {self.literal('i32', '32767')}")
        bits = self.do(f"add {i32} {bits}, {up}")
        bits = self.do(f"lshr {i32} {bits}, {self.literal('i32', '16')}")
        return self.do(f"trunc {i32} {bits} to {self.raw('i16')}")

    def widened(self, a: str, name: str) -> str:
        """16 bits of ``name`` as a float32."""
        if name == "float16":
            return self.do(f"fpext {self.raw('half')} {a} to {self.raw('float')}")
        bits = self.do(f"zext {self.raw('i16')} {a} to {self.raw('i32')}")
        bits = self.do(f"shl {self.raw('i32')} {bits}, {self.literal('i32', '16')}")
        return self.do(f"bitcast {self.raw('i32')} {bits} to {self.raw('float')}")

    def op_nudge(self, node: Node, a: str) -> str:
        name, ulps = node.attr
        base, real = ("i64", "double") if name == "float64" else ("i32", "float")
        step = str(ulps * 65536 if name == "bfloat16" else ulps)
        if name in ("float16", "bfloat16"):
            half = self.narrowed(a, name)
            if name == "float16":
                half = self.do(f"bitcast {self.raw('half')} {half} to {self.raw('i16')}")
                base, real = "i16", "half"
            else:
                a = self.widened(half, name)
        bits = half if base == "i16" else self.do(f"bitcast {self.raw(real)} {a} to {self.raw(base)}")
        moved = self.do(f"add {self.raw(base)} {bits}, {self.literal(base, step)}")
        below = self.do(f"icmp slt {self.raw(base)} {moved}, {self.literal(base, '0')}")
        kind = self.raw(base)
        moved = self.do(f"select {self.raw('i1')} {below}, {kind} {self.literal(base, '0')}, {kind} {moved}")
        out = self.do(f"bitcast {kind} {moved} to {self.raw(real)}")
        return self.widened(out, name) if name == "float16" else out

    def op_exponent(self, node: Node, a: str) -> str:
        dtype = node.args[0].dtype
        base, bits, mantissa = f"i{_BITS[dtype]}", _BITS[dtype], _MANTISSA[dtype]
        size = self.call("fabs", TYPES[dtype], a)
        kind, info = self.type(dtype), np.finfo(dtype)
        # Subnormal numbers are brought among the normal ones first.
        small = self.do(f"fcmp olt {kind} {size}, {self.number(float(info.tiny), dtype)}")
        scaled = self.do(f"fmul {kind} {size}, {self.number(2.0 ** (mantissa + 1), dtype)}")
        size = self.do(f"select {self.raw('i1')} {small}, {kind} {scaled}, {kind} {size}")
        raw = self.do(f"bitcast {kind} {size} to {self.raw(base)}")
        raw = self.do(f"lshr {self.raw(base)} {raw}, {self.literal(base, str(mantissa))}")
        if bits == 64:
            raw = self.do(f"trunc {self.raw('i64')} {raw} to {self.raw('i32')}")
        i32, bias = self.raw("i32"), 1 - int(info.minexp)
        less, more = (self.literal("i32", str(v)) for v in (-bias - mantissa - 1, -bias))
        off = self.do(f"select {self.raw('i1')} {small}, {i32} {less}, {i32} {more}")
        return self.do(f"add {i32} {raw}, {off}")

    def op_power(self, node: Node, a: str) -> str:
        dtype = node.dtype
        # The product of two powers in range: rounded once, where it is subnormal or infinite.
        least, most = (-252, 254) if dtype == "float32" else (-1074, 1023)
        for limit, compare in ((least, "slt"), (most, "sgt")):
            bound = self.literal("i32", str(limit))
            beyond = self.do(f"icmp {compare} {self.raw('i32')} {a}, {bound}")
            a = self.do(f"select {self.raw('i1')} {beyond}, {self.raw('i32')} {bound}, {self.raw('i32')} {a}")
        half = self.do(f"ashr {self.raw('i32')} {a}, {self.literal('i32', '1')}")
        rest = self.do(f"sub {self.raw('i32')} {a}, {half}")
        return self.do(f"fmul {self.type(dtype)} {self.power(half, dtype)}, {self.power(rest, dtype)}")

    def power(self, e: str, dtype: str) -> str:
        """``2**e`` for ``e`` in the range of normal numbers."""
        base = f"i{_BITS[dtype]}"
        if base == "i64":
            e = self.do(f"sext {self.raw('i32')} {e} to {self.raw('i64')}")
        bias = self.literal(base, str(1 - int(np.finfo(dtype).minexp)))
        e = self.do(f"add {self.raw(base)} {e}, {bias}")
        e = self.do(f"shl {self.raw(base)} {e}, {self.literal(base, str(_MANTISSA[dtype]))}")
        return self.do(f"bitcast {self.raw(base)} {e} to {self.type(dtype)}")

    # --- tables ------------------------------------------------------------------------------------------------------

    def gathered(self, table: np.ndarray, index: str) -> str:
        """``table[index]`` from memory. ``table``: float32, float64 or int32."""
        base = {"float32": "float", "float64": "double", "int32": "i32"}[str(table.dtype)]
        name = self.writer.table(table, base)
        # Numbers that are none become any integer: what is then looked up is not used, but it must be in the table.
        last = self.literal("i32", str(len(table) - 1))
        beyond = self.do(f"icmp ugt {self.raw('i32')} {index}, {last}")
        index = self.do(f"select {self.raw('i1')} {beyond}, {self.raw('i32')} {last}, {self.raw('i32')} {index}")
        place = self.do(f"getelementptr {base}, ptr {name}, {self.raw('i32')} {index}")
        if self.lanes == 1:
            return self.do(f"load {base}, ptr {place}")
        kind, suffix = self.raw(base), {"float": "f32", "double": "f64", "i32": "i32"}[base]
        full = f"@llvm.masked.gather.v{self.lanes}{suffix}.v{self.lanes}p0"
        mask, ptr = f"<{self.lanes} x i1>", f"<{self.lanes} x ptr>"
        self.writer.declare(f"declare {kind} {full}({ptr}, i32, {mask}, {kind})")
        ones = "<" + ", ".join(["i1 true"] * self.lanes) + ">"
        return self.do(
            f"call {kind} {full}({ptr} {place}, i32 {table.itemsize}, {mask} {ones}, {kind} zeroinitializer)"
        )


def needed_below(node: Node, known: dict[int, str]) -> list[Node]:
    """What must still be computed for ``node``, arguments first."""
    found: dict[int, Node] = {}
    stack = [node]
    while stack:
        part = stack.pop()
        if part.number not in found and part.number not in known:
            found[part.number] = part
            stack.extend(part.args)
    return [found[k] for k in sorted(found)]


class Writer:
    """The text of one module."""

    def __init__(self, features: frozenset[str]) -> None:
        self.features = features
        self.lines: list[str] = []
        self.allocas: list[str] = []
        self.head: list[str] = []
        self.names = 0
        self._declared: set[str] = set()
        self._tables: dict[tuple[str, bytes], str] = {}

    def do(self, text: str) -> str:
        self.names += 1
        name = f"%v{self.names}"
        self.lines.append(f"  {name} = {text}")
        return name

    def at(self, base: str, pointer: str, index: str) -> str:
        """The address of an entry."""
        return self.do(f"getelementptr {base}, ptr {pointer}, i64 {index}")

    def load(self, base: str, pointer: str, index: str) -> str:
        """An entry of an array."""
        return self.do(f"load {base}, ptr {self.at(base, pointer, index)}")

    def store(self, base: str, value: str, pointer: str, index: str) -> None:
        """Set an entry of an array."""
        self.say(f"store {base} {value}, ptr {self.at(base, pointer, index)}")

    def memory(self, kind: str) -> str:
        """Memory of the function. All at its start: an alloca inside a loop would take more at each turn."""
        self.names += 1
        self.allocas.append(f"  %v{self.names} = alloca {kind}, align 64")
        return f"%v{self.names}"

    def say(self, text: str) -> None:
        self.lines.append(f"  {text}")

    def label(self, name: str) -> None:
        self.lines.append(f"{name}:")

    def declare(self, text: str) -> None:
        if text not in self._declared:
            self._declared.add(text)
            self.head.append(text)

    def table(self, values: np.ndarray, base: str) -> str:
        key = (base, values.tobytes())
        if key not in self._tables:
            name = f"@table{len(self._tables)}"
            if base == "i32":
                items = ", ".join(f"i32 {int(v)}" for v in values)
            else:
                items = ", ".join(f"{base} {hexadecimal(float(v))}" for v in values)
            self.head.append(f"{name} = private constant [{len(values)} x {base}] [{items}], align 64")
            self._tables[key] = name
        return self._tables[key]

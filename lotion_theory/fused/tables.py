"""Look-ups in tables of constants, by the cheapest way that gives every entry exactly."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from .._lookups import bins, on_line
from .graph import Node, Unsupported
from .lanes import TYPES, Lanes, hexadecimal


class Scope(Lanes):
    """Instructions that look up tables too."""

    def op_lookup(self, node: Node, index: str) -> str:
        return lookup(self, np.frombuffer(node.attr[1], node.attr[0]), index)

    def op_beside(self, node: Node, x: str) -> str:
        return beside(self, np.frombuffer(node.attr[1], node.attr[0]), x)


def lookup(scope: Lanes, table: np.ndarray, index: str) -> str:
    """The instructions for ``table[index]``, index being within it; ``table``: float32 or float64."""
    dtype = str(table.dtype)
    form = on_line(table.tobytes(), dtype)
    if form is not None:
        first, high, low = form
        kind = scope.type(dtype)
        code = scope.do(f"add {scope.type('int')} {index}, {scope.number(first, 'int')}")
        code = scope.do(f"sitofp {scope.type('int')} {code} to {kind}")
        value = code if high == 1 else scope.do(f"fmul {kind} {code}, {scope.number(high, dtype)}")
        if low == 0:
            return value
        return scope.do(f"fadd {kind} {value}, {scope.do(f'fmul {kind} {code}, {scope.number(low, dtype)}')}")
    alternating = _alternating(table)
    if alternating is not None:
        odd = scope.do(f"and {scope.type('int')} {index}, {scope.number(1, 'int')}")
        if alternating:
            odd = scope.do(f"xor {scope.type('int')} {odd}, {scope.number(1, 'int')}")
        return scope.do(f"sitofp {scope.type('int')} {odd} to {scope.type(dtype)}")
    return _permuted(scope, table, index) or scope.gathered(table, index)


def _permuted(scope: Lanes, table: np.ndarray, index: str) -> str | None:
    """From registers, where the processor can and the table fits."""
    single = table.dtype == np.float32
    if "avx512f" not in scope.writer.features or scope.lanes != (16 if single else 8) or len(table) > 2 * scope.lanes:
        return None
    lanes, base, letter = scope.lanes, "float" if single else "double", "s" if single else "d"
    kind, whole = f"<{lanes} x {base}>", "i32" if single else "i64"
    if not single:
        index = scope.do(f"sext <{lanes} x i32> {index} to <{lanes} x i64>")
    parts = []
    for start in range(0, 2 * lanes, lanes):
        entries = [float(v) for v in table[start : start + lanes]]
        entries += [0.0] * (lanes - len(entries))
        parts.append("<" + ", ".join(f"{base} {hexadecimal(v)}" for v in entries) + ">")
    if len(table) <= lanes:
        name = f"@llvm.x86.avx512.permvar.{letter}f.512"
        scope.writer.declare(f"declare {kind} {name}({kind}, <{lanes} x {whole}>)")
        return scope.do(f"call {kind} {name}({kind} {parts[0]}, <{lanes} x {whole}> {index})")
    name = f"@llvm.x86.avx512.vpermi2var.p{letter}.512"
    scope.writer.declare(f"declare {kind} {name}({kind}, <{lanes} x {whole}>, {kind})")
    return scope.do(f"call {kind} {name}({kind} {parts[0]}, <{lanes} x {whole}> {index}, {kind} {parts[1]})")


def _alternating(table: np.ndarray) -> int | None:
    """1 or 0: the first entry, where entries are 1, 0, 1, ... or 0, 1, 0, ..."""
    first = float(table[0])
    if first not in (0.0, 1.0) or not np.array_equal(table == 1, (np.arange(len(table)) % 2 == 0) == (first == 1)):
        return None
    if not np.isin(table, (0, 1)).all():
        return None
    return int(first)


# Up to this many entries are compared one by one.
_FEW = 32


def beside(scope: Lanes, table: np.ndarray, x: str) -> str:
    """The instructions for the place of an entry of the increasing ``table`` with no other between it and ``x``."""
    dtype = str(table.dtype)
    kind, integers = scope.type(dtype), scope.type("int")
    if len(table) <= _FEW:
        total = scope.number(0, "int")
        for low, high in pairwise(table):
            middle = float(low) / 2 + float(high) / 2
            less = scope.do(f"fcmp ole {kind} {scope.number(middle, dtype)}, {x}")
            one = scope.do(f"sext {scope.raw('i1')} {less} to {integers}")
            total = scope.do(f"sub {integers} {total}, {one}")
        return total
    found = bins(table.tobytes(), dtype)
    if found is None:
        raise Unsupported("levels too close to be told apart by their leading bits")
    shift, least, count, places = found
    base = "i32" if dtype == "float32" else "i64"
    whole = scope.raw(base)
    size = scope.call("fabs", TYPES[dtype], x)
    key = scope.do(f"lshr {whole} {scope.do(f'bitcast {kind} {size} to {whole}')}, {scope.literal(base, str(shift))}")
    if base == "i64":
        key = scope.do(f"trunc {whole} {key} to {integers}")
    key = scope.do(f"sub {integers} {key}, {scope.number(least, 'int')}")
    for limit, compare in ((0, "slt"), (count - 1, "sgt")):
        bound = scope.number(limit, "int")
        beyond = scope.do(f"icmp {compare} {integers} {key}, {bound}")
        key = scope.do(f"select {scope.raw('i1')} {beyond}, {integers} {bound}, {integers} {key}")
    negative = scope.do(f"fcmp olt {kind} {x}, {scope.number(0.0, dtype)}")
    mirrored = scope.do(f"add {integers} {key}, {scope.number(count, 'int')}")
    key = scope.do(f"select {scope.raw('i1')} {negative}, {integers} {mirrored}, {integers} {key}")
    return scope.gathered(np.frombuffer(places, np.int32), key)

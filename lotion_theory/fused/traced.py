"""Arrays that record what is done to them, in place of numpy's: the plain path run on them gives its own graph.

So no formula is written for the compiled path: it is what ``law_of`` and its like do, operation by operation, with the
results of IEEE arithmetic. A condition of Python (``bool((x > limit).any())``) is taken to turn out as it does for
ordinary weights, none exceeding and all finite, and is noted: where a call finds it otherwise the plain path serves.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._arrays import Deferred
from .graph import BLOCK, REALS, TENSOR, WEIGHT, Graph, Node, Unsupported


def _unknown(self: Any, *args: Any, **kwargs: Any) -> Any:
    raise Unsupported("what is not known while recording")


class _Count:
    """A number of rows or weights that is not known while recording."""

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __hash__ = __bool__ = __index__ = __float__ = _unknown
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _unknown
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = _unknown


ROWS = _Count()


class Traced(Deferred):
    """A node as an array: (blocks, weights), (blocks, 1) or, for the whole tensor, ()."""

    __slots__ = ("columns", "graph", "node")
    __array_ufunc__ = None  # arithmetic of numpy's scalars with it is done here
    __array__ = __array_function__ = __len__ = __iter__ = __float__ = __int__ = __complex__ = __index__ = _unknown

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise Unsupported(f"an array's {name}")

    def __init__(self, graph: Graph, node: Node, columns: int | None) -> None:
        self.graph, self.node, self.columns = graph, node, columns

    # --- what plain code asks of an array ----------------------------------------------------------------------------

    @property
    def dtype(self) -> np.dtype:
        return np.dtype({"int": "int64"}.get(self.node.dtype, self.node.dtype))

    @property
    def ndim(self) -> int:
        return 2 if self.node.rate in (BLOCK, WEIGHT) else 0

    @property
    def shape(self) -> tuple[Any, ...]:
        if self.ndim == 0:
            return ()
        if self.node.rate == BLOCK:
            return ROWS, 1
        return ROWS, ROWS if self.columns is None else self.columns

    def __array_namespace__(self, api_version: str | None = None) -> type[Namespace]:
        return Namespace

    def __bool__(self) -> bool:
        """A condition over the whole array, assumed to be as for ordinary weights and noted."""
        raise Unsupported("the truth of an array")

    def __getitem__(self, key: Any) -> Traced:
        if key == (slice(None), slice(None, 1)) and self.node.rate == WEIGHT:
            return self._new("first", (self.node,), self.node.dtype, rate=BLOCK)
        if key == (slice(None), slice(None, 1)) and self.node.rate == BLOCK:
            return self
        raise Unsupported(f"part {key!r}")

    def any(self) -> Condition:
        return Condition(self, False)

    def all(self) -> Condition:
        return Condition(self, True)

    def max(self, axis: int | None = None, keepdims: bool = False) -> Traced:
        if self.node.dtype not in REALS:
            raise Unsupported("the largest of what is not real")
        if axis in (1, -1) and keepdims:
            return self._new("rowmax", (self.node,), self.node.dtype, rate=BLOCK) if self.node.rate == WEIGHT else self
        if axis is None:
            rows = self.max(axis=1, keepdims=True)
            return self._new("input", (), rows.node.dtype, self.graph.tensor_maximum(rows.node), TENSOR)
        raise Unsupported("a maximum along rows")

    def sum(self, *args: Any, **kwargs: Any) -> Any:
        raise Unsupported("a sum, whose order of additions is the library's own")

    # --- recording ---------------------------------------------------------------------------------------------------

    def _new(self, op: str, args: tuple[Node, ...], dtype: str, attr: Any = None, rate: int | None = None) -> Traced:
        return Traced(self.graph, self.graph.add(op, args, dtype, attr, rate), self.columns)

    def operand(self, other: Any, dtype: str | None = None) -> Node:
        """``other`` as a node; numbers of Python take the type ``dtype``, by default that of this array."""
        if isinstance(other, Traced):
            return other.node
        # Numbers of numpy have a type of their own, which may widen the result.
        if type(other) not in (int, float, bool):
            raise Unsupported(f"{type(other).__name__} as an operand")
        dtype = dtype or self.node.dtype
        if dtype == "bool" and type(other) is not bool:
            raise Unsupported("a number where a truth value is expected")
        if dtype == "int" and not float(other).is_integer():
            raise Unsupported("a fraction among integers")
        if dtype == "float32" and np.isfinite(other) and not np.isfinite(np.float32(other)):
            raise Unsupported("a number beyond float32")
        return self.graph.constant(float(np.float32(other)) if dtype == "float32" else other, dtype)

    def _together(self, other: Any) -> tuple[Node, Node]:
        """Both operands, of one type, by numpy's rules as far as they are used."""
        other_type = other.node.dtype if isinstance(other, Traced) else None
        mine = self.node
        if other_type is None:
            if mine.dtype == "bool":
                mine = self._cast(mine, "float64" if isinstance(other, float) else "int")
            return mine, self.operand(other, mine.dtype)
        theirs = other.node
        kinds = {mine.dtype, theirs.dtype}
        if len(kinds) > 1:
            if kinds == {"float32", "float64"}:
                wanted = "float64"
            elif "bool" in kinds and len(kinds - {"bool"}) == 1:
                (wanted,) = kinds - {"bool"}
            else:
                raise Unsupported(f"{mine.dtype} with {theirs.dtype}")
            mine, theirs = self._cast(mine, wanted), self._cast(theirs, wanted)
        return mine, theirs

    def _cast(self, node: Node, dtype: str) -> Node:
        if node.dtype == dtype:
            return node
        if node.op == "constant" and dtype in REALS:
            return self.graph.constant(float.fromhex(node.attr) if node.dtype in REALS else node.attr, dtype)
        return self.graph.add("cast", (node,), dtype)

    def _real(self, op: str, other: Any, swap: bool = False) -> Traced:
        a, b = self._together(other)
        if a.dtype == "bool":
            a, b = self._cast(a, "int"), self._cast(b, "int")
        if swap:
            a, b = b, a
        if a.dtype == "int" and op not in ("add", "sub", "mul"):
            raise Unsupported(f"{op} of integers")
        one = {"mul": (a, b), "div": (b,)}.get(op, ())
        if a.dtype in REALS and any(n.op == "constant" and float.fromhex(n.attr) == 1 for n in one):
            return Traced(self.graph, a if b.op == "constant" else b, self.columns)
        if op == "div" and b.op == "constant" and _has_exact_reciprocal(float.fromhex(b.attr), b.dtype):
            return self._new("mul", (a, self.graph.constant(1 / float.fromhex(b.attr), b.dtype)), a.dtype)
        return self._new(op, (a, b), a.dtype)

    def __add__(self, other: Any) -> Traced:
        return self._real("add", other)

    def __radd__(self, other: Any) -> Traced:
        # ``sum`` begins with the integer 0; adding it turns -0 into +0, as it does for numpy.
        return self._real("add", other, True)

    def __sub__(self, other: Any) -> Traced:
        return self._real("sub", other)

    def __rsub__(self, other: Any) -> Traced:
        return self._real("sub", other, True)

    def __mul__(self, other: Any) -> Traced:
        return self._real("mul", other)

    def __rmul__(self, other: Any) -> Traced:
        return self._real("mul", other, True)

    def __truediv__(self, other: Any) -> Traced:
        return self._real("div", other)

    def __rtruediv__(self, other: Any) -> Traced:
        return self._real("div", other, True)

    def __floordiv__(self, other: Any) -> Traced:
        # Rounded down after dividing by a power of two, which is exact; other quotients numpy corrects.
        if isinstance(other, Traced):
            exact = other.node.op == "power"
        else:
            exact = type(other) in (int, float) and _has_exact_reciprocal(float(other), "float32")
        if not exact:
            raise Unsupported("a quotient rounded down")
        return (self / other).unary("floor")

    def __mod__(self, other: Any) -> Traced:
        if not isinstance(other, int) or other != 2 or self.node.dtype not in REALS:
            raise Unsupported("a remainder other than by 2")
        return self - (self * 0.5).unary("floor") * 2.0

    def __pow__(self, other: Any) -> Traced:
        if other == 2 and isinstance(other, int):
            return self * self
        if other == 0.5:
            return self.unary("sqrt")
        raise Unsupported("a power other than 2 and 0.5")

    def unary(self, op: str) -> Traced:
        """A function of one real number."""
        if self.node.dtype not in REALS:
            raise Unsupported(f"{op} of {self.node.dtype}")
        return self._new(op, (self.node,), self.node.dtype)

    def extreme(self, op: str, other: Any) -> Traced:
        """The larger or the smaller, ``op`` being max or min."""
        a, b = self._together(other)
        if a.dtype == "bool":
            raise Unsupported(f"{op} of truth values")
        return self._new(op, (a, b), a.dtype)

    def __neg__(self) -> Traced:
        return self.unary("neg")

    def __abs__(self) -> Traced:
        return self if self.node.op == "abs" else self.unary("abs")

    def _compared(self, op: str, other: Any) -> Traced:
        if self.node.dtype == "bool" and op in ("eq", "ne") and not isinstance(other, Traced) and other in (0, 1):
            return ~self if (other == 0) == (op == "eq") else self
        a, b = self._together(other)
        if a.dtype == "bool" and op == "ne":
            return self._new("xor", (a, b), "bool")
        if a.dtype == "bool":
            raise Unsupported(f"{op} of truth values")
        return self._new(op, (a, b), "bool")

    def __lt__(self, other: Any) -> Traced:
        return self._compared("lt", other)

    def __le__(self, other: Any) -> Traced:
        return self._compared("le", other)

    def __gt__(self, other: Any) -> Traced:
        return self._compared("gt", other)

    def __ge__(self, other: Any) -> Traced:
        return self._compared("ge", other)

    def __eq__(self, other: Any) -> Traced:  # type: ignore[override]
        return self._compared("eq", other)

    def __ne__(self, other: Any) -> Traced:  # type: ignore[override]
        return self._compared("ne", other)

    __hash__ = object.__hash__

    def _logic(self, op: str, other: Any) -> Traced:
        a, b = self.node, self.operand(other, "bool")
        if a.dtype != "bool" or b.dtype != "bool":
            raise Unsupported(f"{op} of numbers")
        return self._new(op, (a, b), "bool")

    def __and__(self, other: Any) -> Traced:
        return self._logic("and", other)

    __rand__ = __and__

    def __or__(self, other: Any) -> Traced:
        return self._logic("or", other)

    __ror__ = __or__

    def __xor__(self, other: Any) -> Traced:
        return self._logic("xor", other)

    __rxor__ = __xor__

    def __invert__(self) -> Traced:
        if self.node.dtype != "bool":
            raise Unsupported("the bits of a number")
        return self._new("not", (self.node,), "bool")

    # --- what ``_arrays`` asks for -----------------------------------------------------------------------------------

    def table(self, values: np.ndarray) -> Table:
        return Table(values)

    def beside(self, table: Table) -> Traced:
        return self._new("beside", (self.node,), "int", table.key)

    def floor_index(self) -> Traced:
        # Converting cuts off the fraction, which is the floor of what is not negative.
        whole = self if _at_least_zero(self.node) else self.unary("floor")
        return self._new("index", (whole.node,), "int")

    def exponent(self) -> Traced:
        return self._new("exponent", (self.node,), "int")

    def power_of_two(self, dtype: str) -> Traced:
        return self._new("power", (self.node,), dtype)

    def stored(self, name: str) -> Traced:
        return self._new("store", (self.node,), self.node.dtype, name) if name in ("float16", "bfloat16") else self

    def nudged(self, name: str, ulps: int) -> Traced:
        return self._new("nudge", (self.node,), self.node.dtype, (name, ulps))

    def square_root(self) -> Traced:
        return self.unary("sqrt")


def _at_least_zero(node: Node) -> bool:
    """Whether a number is visibly not negative."""
    if node.op == "constant":
        return float.fromhex(node.attr) >= 0
    if node.op == "max":
        return any(_at_least_zero(a) for a in node.args)
    return node.op == "abs" or (node.op == "min" and all(_at_least_zero(a) for a in node.args))


def _has_exact_reciprocal(value: float, dtype: str) -> bool:
    """Whether dividing by ``value`` is multiplying by its reciprocal: both are powers of two, and normal numbers."""
    info = np.finfo(dtype)
    return abs(math.frexp(value)[0]) == 0.5 and float(info.tiny) <= abs(value) <= 1 / float(info.tiny)


class Condition:
    """``any`` or ``all`` of an array of truth values; asked for its truth it gives the ordinary answer and notes it."""

    __eq__ = __ne__ = __hash__ = __and__ = __or__ = __invert__ = _unknown

    def __init__(self, array: Traced, holds: bool) -> None:
        self.array, self.holds = array, holds

    def __bool__(self) -> bool:
        array = self.array if self.holds else ~self.array
        array.graph.require(array.node)
        return self.holds


class Table:
    """Constants to be looked up by an index."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.key = (str(values.dtype), values.tobytes())

    def __getitem__(self, index: Traced) -> Traced:
        if not isinstance(index, Traced) or index.node.dtype != "int":
            raise Unsupported("an index that is not recorded")
        return index._new("lookup", (index.node,), str(self.values.dtype), self.key)


class Namespace:
    """The functions of the array API that plain code uses."""

    @staticmethod
    def where(condition: Traced, a: Any, b: Any) -> Traced:
        like = a if isinstance(a, Traced) else b if isinstance(b, Traced) else None
        if like is None:
            kind = "int" if isinstance(a, int) and isinstance(b, int) else "float64"
            first, second = condition.operand(a, kind), condition.operand(b, kind)
        elif isinstance(a, Traced):
            first, second = like._together(b)
        else:
            second, first = like._together(a)
        if not isinstance(condition, Traced) or condition.node.dtype != "bool":
            raise Unsupported("where without a condition")
        if first is second:
            return Traced(condition.graph, first, condition.columns)
        return condition._new("where", (condition.node, first, second), first.dtype)

    @staticmethod
    def maximum(a: Any, b: Any) -> Traced:
        return a.extreme("max", b) if isinstance(a, Traced) else b.extreme("max", a)

    @staticmethod
    def minimum(a: Any, b: Any) -> Traced:
        return a.extreme("min", b) if isinstance(a, Traced) else b.extreme("min", a)

    @staticmethod
    def clip(x: Traced, low: Any = None, high: Any = None) -> Traced:
        x = x if low is None else Namespace.maximum(x, low)
        return x if high is None else Namespace.minimum(x, high)

    @staticmethod
    def max(x: Traced) -> Traced:
        return x.max()

    @staticmethod
    def isfinite(x: Traced) -> Traced:
        return abs(x) < math.inf

    @staticmethod
    def abs(x: Traced) -> Traced:
        return abs(x)


def entry(graph: Graph, name: str, dtype: str, rate: int, columns: int | None) -> Traced:
    """An array that a call gives to the kernel: ``name`` says which."""
    return Traced(graph, graph.add("input", (), dtype, name, rate), columns)

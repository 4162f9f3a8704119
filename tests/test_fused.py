"""Recording, writing out and keeping compiled code, apart from number formats."""

import math
import os
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lotion_theory import _arrays, _lookups, _tables, functions
from lotion_theory._lookups import bins
from lotion_theory.formats import codebooks
from lotion_theory.fused import call, machine, threads
from lotion_theory.fused.call import run
from lotion_theory.fused.forks import undivided
from lotion_theory.fused.graph import WEIGHT, Graph, Unsupported
from lotion_theory.fused.programs import Program
from lotion_theory.fused.traced import entry
from tests.strategies import LARGEST, SMALLEST, examples, numpy_type

needs_compiler = pytest.mark.skipif(machine.features() is None, reason="llvmlite, which comes with numba, is absent")

REALS = ("float32", "float64")
AWKWARD = {
    dtype: np.array(
        [0, -0.0, 1, -1, 1.5, 2.5, -2.5, 3, 0.1, 255, 1e30, -1e-30, SMALLEST[dtype], -3 * SMALLEST[dtype],
         float(np.finfo(dtype).tiny), LARGEST[dtype], -LARGEST[dtype], 2.0**-126, 6.0]
    ).astype(dtype)
    for dtype in REALS
}  # fmt: skip


def compiled(dtype, function, *, conditions=(), columns=None, outputs=1, **inputs):
    """A program of ``function(*arrays)`` recorded on (blocks, weights) arrays x, y, ..., given as types by name."""
    graph = Graph()
    arrays = [entry(graph, name, dtype, WEIGHT, columns) for name in inputs]
    found = function(*arrays)
    found = found if isinstance(found, tuple) else (found,)
    for condition in conditions:
        graph.require(condition(*arrays).node)
    named = {f"out{k}": (x.node, dtype) for k, x in enumerate(found)}
    return Program(graph, named, {name: dtype for name in inputs}, columns, dtype)


def results(dtype, function, *arrays, **options):
    """What ``function`` gives on arrays, compiled; None where a condition fails."""
    names = dict(zip("xyz", arrays, strict=False))
    program = compiled(dtype, function, columns=options.pop("columns", None), **options, **names)
    out = {name: np.empty(arrays[0].shape, dtype) for name in program.outputs}
    if not run(program, names | out, *arrays[0].shape):
        return None
    return tuple(out.values()) if len(out) > 1 else out["out0"]


def pairs(dtype):
    """Every pair of awkward numbers, as two arrays of rows."""
    x, y = np.meshgrid(AWKWARD[dtype], AWKWARD[dtype])
    return np.ascontiguousarray(x), np.ascontiguousarray(y)


def same_bits(a, b):
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


# --- operations ------------------------------------------------------------------------------------------------------


def numbered(x, *masks):
    """Truth values as the bits of a number of the type of ``x``."""
    return sum((0 * x + 2.0**k) * mask for k, mask in enumerate(masks))


BINARY = {
    "add": lambda x, y: x + y, "sub": lambda x, y: x - y, "mul": lambda x, y: x * y, "div": lambda x, y: x / (y + (y == 0)),
    "reflected": lambda x, y: (1 - x) + (3.0 * y) + (0 * x + 1) / (1 + y * y), "square": lambda x, y: (x * 0.5) ** 2 + y,
    "compare": lambda x, y: numbered(x, x < y, x <= y, x == y, x > y, x >= y, x != y),
    "logic": lambda x, y: numbered(x, (x > 0) & (y > 0), (x > 0) | (y > 0), (x > 0) ^ (y > 0), ~(x > 0)),
    "zero times": lambda x, y: 0 * x + y, "absolute": lambda x, y: abs(x) - abs(-y),
    "halves": lambda x, y: x / 2 - y / 8 + x / 3,
}  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("name", BINARY)
def test_arithmetic_has_the_bits_of_numpy(name, dtype):
    x, y = pairs(dtype)
    with np.errstate(all="ignore"):
        expected = BINARY[name](x, y).astype(dtype)
    found = results(dtype, BINARY[name], x, y)
    whole = ~np.isnan(expected)  # payloads of NaN are the processor's own
    assert np.array_equal(np.isnan(found), ~whole) and same_bits(found[whole], expected[whole])


@needs_compiler
@pytest.mark.parametrize("dtype", REALS)
def test_functions_of_arrays_have_the_bits_of_numpy(dtype):
    def function(x):
        xp = _arrays.namespace(x)
        big = xp.clip(x, -1000.0, 1000.0)
        e = _tables.exponent(xp.where(x == 0, 1 + 0 * x, x))
        index = xp.clip(_tables.floor_index(xp.clip(big, -7.0, 7.0)) + 7, 0, 14)
        return (
            xp.where(x > 1, big, x), _tables.power_of_two(xp.clip(e + e, -300, 300), x), functions.square_root(abs(x)),
            _tables.power_of_two(xp.clip(e, -300, 300), x),
            _tables.take(_tables.constants(codebooks.codebook("nf4").units, x), index),
            big // 2.0 + big % 2, _arrays.nudge(abs(big), dtype, 1), _arrays.block_max(x) + 0 * big,
            x[:, :1] + 0 * big,
        )  # fmt: skip

    x = AWKWARD[dtype].reshape(1, -1)
    with np.errstate(all="ignore"):
        expected = function(x)
    for k, (a, b) in enumerate(zip(results(dtype, function, x), expected, strict=True)):
        assert same_bits(a + 0, np.broadcast_to(b, a.shape).astype(dtype) + 0), k


@needs_compiler
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_values_are_stored_in_sixteen_bits_as_numpy_does(name):
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 2**32, 20_000, dtype=np.uint32).view(np.float32)
    ties = ((np.arange(0, 2**15, 7, dtype=np.uint32) << 16) | 0x8000).view(np.float32)
    x = np.concatenate([wide[np.isfinite(wide)], ties[np.isfinite(ties)], AWKWARD["float32"]]).reshape(1, -1)
    with np.errstate(over="ignore"):
        expected = x.astype(numpy_type(name)).astype(np.float32)
        # One place up; none beyond infinity.
        small = np.clip(abs(x), 0, LARGEST[name] / 2)
        moved = _arrays.nudge(small, name, 1)
    assert same_bits(results("float32", lambda x: _arrays.store(x, name), x), expected)
    assert same_bits(results("float32", lambda x: _arrays.nudge(x, name, 1), small), moved)


@needs_compiler
@pytest.mark.parametrize("columns", [None, 1, 2, 5, 16, 40])
def test_rows_of_any_length_and_number(columns):
    rng = np.random.default_rng(1)
    for rows in (1, 3, 16, 21):
        x = rng.standard_normal((rows, columns or 37))
        top = x.max(axis=1, keepdims=True)
        found = results("float64", lambda x: _arrays.block_max(x) - x * x[:, :1], x, columns=columns)
        assert same_bits(found, top - x * x[:, :1])


@needs_compiler
def test_the_first_weight_of_a_block_in_pieces(monkeypatch):
    monkeypatch.setattr(call, "_PART", 50)
    monkeypatch.setattr(threads, "count", lambda: 2)
    x = np.random.default_rng(2).standard_normal((2, 333))
    assert same_bits(results("float64", lambda x: x - x[:, :1], x), x - x[:, :1])

    def nested(x):
        y = x - _arrays.block_max(x)
        return y * _arrays.block_max(y * y)

    assert same_bits(results("float64", nested, x), nested(x))


# --- conditions ------------------------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("place", [(0, 0), (2, 17), (20, 39), (16, 32)])
def test_a_condition_that_fails_for_one_weight_is_told(place):
    x = np.ones((21, 40), np.float32)
    below = lambda x: x < 2  # noqa: E731
    assert results("float32", lambda x: x + 1, x, conditions=[below]) is not None
    x[place] = 3
    assert results("float32", lambda x: x + 1, x, conditions=[below]) is None
    assert results("float32", lambda x: x + _arrays.block_max(x), x, conditions=[below]) is None
    # One of a whole block too.
    tops = lambda x: _arrays.block_max(x) < 2  # noqa: E731
    assert results("float32", lambda x: x + 1, x, conditions=[tops]) is None
    x[place] = np.nan
    assert results("float32", lambda x: x + 1, x, conditions=[lambda x: abs(x) < math.inf]) is None


def test_python_decisions_are_those_of_ordinary_weights_and_are_noted():
    graph = Graph()
    x = entry(graph, "x", "float32", WEIGHT, None)
    assert not (x > 3).any() or pytest.fail("any() is taken to be false")
    assert bool((x < 3).all())
    assert len(graph.conditions) == 2


WRONG = {
    "truth": bool, "sum": lambda x: x.sum(axis=1), "power": lambda x: x**3, "remainder": lambda x: x % 3,
    "part": lambda x: x[0], "string": lambda x: x + "a", "integer with real": lambda x: x + _tables.exponent(x),
    "invert": lambda x: ~x, "and": lambda x: (x > 0) & 1.5, "rows": lambda x: x.max(axis=0), "index": lambda x: _tables.constants(codebooks.codebook("nf4").units, x)[0],
    "array": lambda x: x + np.ones(3),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_recorded_is_refused(name):
    x = entry(Graph(), "x", "float32", WEIGHT, None)
    with pytest.raises((Unsupported, TypeError)):
        WRONG[name](x)


def test_a_maximum_of_the_tensor_is_a_number_of_the_call():
    graph = Graph()
    x = entry(graph, "x", "float32", WEIGHT, None)
    once, again = abs(x).max(), abs(x).max()
    assert once.node is again.node and list(graph.maxima) == ["maximum0"]
    with pytest.raises(Unsupported, match="depends on another"):
        (x / once).max()


# --- threads ---------------------------------------------------------------------------------------------------------


def test_an_interrupted_call_waits_for_its_threads():
    done = []

    def slow():
        time.sleep(0.2)
        done.append(1)
        return 0

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        threads.in_parallel([interrupted, slow, slow], 3)
    assert len(done) == 2


def test_threads_that_cannot_start_are_done_without(monkeypatch):
    class Ending:
        def submit(self, task):
            raise RuntimeError("cannot schedule new futures after shutdown")

    monkeypatch.setattr(threads, "_pool", Ending())
    monkeypatch.setattr(threads, "_size", 8)
    assert threads.in_parallel([lambda: 1, lambda: 2, lambda: 4], 3) == 7


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_waits_for_the_compiler():
    held = threading.Event()

    def compiling():
        with undivided:
            held.set()
            time.sleep(0.2)

    thread = threading.Thread(target=compiling)
    thread.start()
    held.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forking with threads
        child = os.fork()
    if child == 0:
        os._exit(0 if undivided.acquire(timeout=60) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    thread.join()


# --- tables ----------------------------------------------------------------------------------------------------------


@examples(60)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=300, unique=True),
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20),
    st.sampled_from(REALS),
)
def test_bins_name_an_entry_beside_every_number(values, numbers, dtype):
    table = np.array(sorted(values), dtype)
    table = table[np.concatenate([[True], np.diff(table) > 0])]
    x = np.concatenate([np.array(numbers, dtype), table, -table, table * 1.5])
    found = bins(table.tobytes(), dtype) if len(table) > 1 else None
    if found is None:
        return
    shift, least, size, places = found
    integer = np.int32 if dtype == "float32" else np.int64
    key = np.clip((np.abs(x).view(integer) >> shift) - least, 0, size - 1) + size * (x < 0)
    place = np.frombuffer(places, np.int32)[key]
    low, high = np.minimum(x, table[place]), np.maximum(x, table[place])
    between = (table > low[:, None]) & (table < high[:, None])
    assert not between.any()


@needs_compiler
@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("name", codebooks.names())
def test_every_entry_of_a_table_is_looked_up_exactly(name, dtype):
    book = codebooks.codebook(name)
    for values in (book.levels, book.units, book.sided_units, book.shares, book.parity):
        index = np.arange(len(values), dtype=dtype).reshape(1, -1)

        def function(x, values=values):
            return _tables.take(_tables.constants(values, x), _tables.floor_index(x))

        assert same_bits(results(dtype, function, index), function(index))


@needs_compiler
def test_closed_forms_are_taken_where_they_are_exact():
    assert _lookups.on_line(np.arange(-7, 8, dtype="f4").tobytes(), "float32") == (-7, 1.0, 0.0)
    units = np.array([float(v) for v in codebooks.codebook("int8").units], "f4")
    assert _lookups.on_line(units.tobytes(), "float32") is not None
    for name in ("nf4", "e2m1", "dynamic8"):
        values = codebooks.codebook(name).values.astype("f4")
        assert _lookups.on_line(values.tobytes(), "float32") is None


# --- kept code -------------------------------------------------------------------------------------------------------

SCRIPT = """
import numpy as np, lotion_theory as lt
from lotion_theory.formats import fast
from lotion_theory.fused import machine
fast._COMPILE_AFTER = 0
made = []
keep = machine._keep
machine._keep = lambda *a: (made.append(1), keep(*a))
w = np.linspace(-1, 1, 64, dtype=np.float32)
print(len(made), hash(lt.Quantizer.parse("int4/absmax/block=32").cast(w).tobytes()) * 0, end=" ")
print(len(made))
"""


def made_by(folder, **env):
    """How many files a process keeps that casts once."""
    environment = {**os.environ, "LOTION_CACHE": str(folder), **env}
    out = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, check=True)
    return int(out.stdout.split()[-1])


@needs_compiler
def test_code_is_kept_for_other_processes_and_checked(tmp_path):
    assert made_by(tmp_path) == 1
    (file,) = (tmp_path / "lotion-theory" / "code").iterdir()
    assert made_by(tmp_path) == 0
    whole = file.read_bytes()
    for damaged in (whole[:-7], whole[:100] + bytes([whole[100] ^ 1]) + whole[101:], b""):
        file.write_bytes(damaged)
        assert made_by(tmp_path) == 1
        assert file.read_bytes() == whole
    # Others could have written it.
    file.parent.chmod(0o777)
    assert made_by(tmp_path) == 0 and made_by(tmp_path) == 0
    assert made_by(tmp_path / "missing" / "deep") == 1
    assert made_by(tmp_path, LOTION_COMPILED="0") == 0


@needs_compiler
def test_damaged_code_is_not_taken(tmp_path):
    machine._keep(tmp_path / "code", b"instructions")
    assert machine._kept(tmp_path / "code") == b"instructions"
    whole = (tmp_path / "code").read_bytes()
    (tmp_path / "code").write_bytes(whole[:-1] + b"t")
    assert machine._kept(tmp_path / "code") is None
    assert machine._kept(tmp_path / "absent") is None


def test_the_oldest_code_makes_room(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_MOST", 4)
    for k in range(6):
        machine._keep(tmp_path / str(k), b"x")
        os.utime(tmp_path / str(k), (k, k))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3", "4", "5"]


@needs_compiler
def test_a_place_that_cannot_be_written_costs_nothing(tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert made_by(tmp_path / "file") == 0


@needs_compiler
def test_text_that_is_no_module_is_refused_quietly():
    assert machine.function("define this") is None


@needs_compiler
def test_names_depend_on_text_and_processor():
    target = machine._target()
    assert target is not None
    assert all(part in target[3] for part in (target[1].triple, ",".join(sorted(target[2]))))

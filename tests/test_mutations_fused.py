"""Do the tests of compiled formats bite? Deliberate errors in recording, writing out, tables and calls are noticed."""

from functools import partial

import numpy as np
import pytest

from lotion_theory import _lookups
from lotion_theory.formats import lattice, law, passes
from lotion_theory.fused import call, lanes, llvm, machine, programs, tables, traced
from tests import test_fast as formats
from tests import test_fast_calls as calls
from tests import test_fused as fused
from tests.mutants import Mutant, by_hand, examples, noticed

pytestmark = pytest.mark.skipif(machine.features() is None, reason="llvmlite, which comes with numba, is absent")

ROWS = tuple(partial(fused.test_rows_of_any_length_and_number, columns) for columns in (None, 5, 16))
CONDITIONS = tuple(
    partial(fused.test_a_condition_that_fails_for_one_weight_is_told, place) for place in ((0, 0), (20, 39), (16, 32))
)


def served(text):
    """A catalogued format has the bits of the plain path."""
    return (partial(formats.test_every_catalogued_format_is_served_and_has_the_bits_of_the_plain_path, text),)


def arithmetic(name):
    return tuple(partial(fused.test_arithmetic_has_the_bits_of_numpy, name, dtype) for dtype in fused.REALS)


FUNCTIONS = tuple(partial(fused.test_functions_of_arrays_have_the_bits_of_numpy, dtype) for dtype in fused.REALS)
THREADS = tuple(
    by_hand(formats.test_same_bits_whatever_the_number_of_threads, text=text)
    for text in ("int4/absmax/block=32", "nvfp4/e4m3-up-2level", "int4full/gauge/tensor")
)
PIECES = (by_hand(formats.test_a_tensor_in_one_block_is_cut_into_pieces),)

RECORDING = {
    "operands change places": Mutant(
        traced, "        if swap:\n            a, b = b, a\n", "        if not swap:\n            a, b = b, a\n",
        arithmetic("sub"),
    ),
    "any third divided by multiplying": Mutant(
        traced, "return abs(math.frexp(value)[0]) == 0.5 and", "return", arithmetic("halves"),
    ),
    "conditions forgotten": Mutant(
        traced, "array.graph.require(array.node)", "array.node", (calls.test_a_rule_with_a_condition_of_its_own_is_held_to_it,),
    ),
    "a floor is cut off towards zero": Mutant(
        traced, 'return any(_at_least_zero(a) for a in node.args)', "return True", FUNCTIONS,
    ),
}  # fmt: skip

WRITING = {
    "what remains beside whole vectors is left out": Mutant(
        llvm, "if lanes > 1 and (columns is None or columns % lanes):", "if lanes > 1 and columns is None:", ROWS,
    ),
    "the last weights begin at the first": Mutant(
        llvm, 'w.do(f"add i64 {offset}, {whole}")', 'w.do(f"add i64 {offset}, 0")', ROWS,
    ),
    "the smaller half of a vector": Mutant(
        lanes, 'more = self.do(f"fcmp ogt {self.type(dtype)} {a}, {b}")',
        'more = self.do(f"fcmp olt {self.type(dtype)} {a}, {b}")', ROWS,
    ),
    "conditions on whole blocks are not checked": Mutant(
        llvm, "            if node.rate == BLOCK:\n                self._block_node(node)\n                value",
        "            if node.rate != node.rate:\n                self._block_node(node)\n                value", CONDITIONS,
    ),
    "conditions of the first weights alone": Mutant(
        llvm, "good = before[-1]\n", "good = scope.literal('i1', 'true')\n", CONDITIONS,
    ),
    "ties of bfloat16 go up": Mutant(
        lanes, "self.literal('i32', '32767')", "self.literal('i32', '32768')",
        (partial(fused.test_values_are_stored_in_sixteen_bits_as_numpy_does, "bfloat16"),),
    ),
    "subnormal numbers have the exponent of normal ones": Mutant(
        lanes, "(-bias - mantissa - 1, -bias)", "(-bias - mantissa, -bias)", FUNCTIONS,
    ),
    "powers beyond the range wrap around": Mutant(
        lanes, "least, most = (-252, 254)", "least, most = (-1000, 254)",
        (partial(fused.test_functions_of_arrays_have_the_bits_of_numpy, "float32"),),
    ),
}  # fmt: skip

TABLES = {
    "a closed form that is not exact": Mutant(
        _lookups, "if np.array_equal(codes * high + codes * low, table) and", "if True or",
        tuple(partial(fused.test_every_entry_of_a_table_is_looked_up_exactly, name, "float32") for name in ("nf4", "int8")),
    ),
    "even and odd change places": Mutant(
        tables, "    if alternating is not None:\n        odd", "    if alternating is not None:\n        alternating = not alternating\n        odd",
        (partial(fused.test_every_entry_of_a_table_is_looked_up_exactly, "int4", "float32"),),
    ),
    "bins of negative numbers are those of positive ones": Mutant(
        _lookups, "for a, b in ((lower, upper), (-upper, -lower)):", "for a, b in ((lower, upper), (lower, upper)):",
        examples(fused.test_bins_name_an_entry_beside_every_number, ([-3.0, -1.0, 0.5, 2.0], [0.1], "float32")),
    ),
    "bins of any width": Mutant(
        _lookups, "if all(fits.all() for _, fits in found):", "if found:",
        examples(fused.test_bins_name_an_entry_beside_every_number, ([1.0, 1.25, 1.5, 1.75, 2.0], [1.1], "float64")),
    ),
}  # fmt: skip

CALLS = {
    "parts of a thread begin at the first block": Mutant(
        call, "partial(_one, kernel, given.pointers(kernel, b),", "partial(_one, kernel, given.pointers(kernel, 0),", THREADS,
    ),
    "pieces of a block are not put together": Mutant(
        call, 'whole.max(axis=1)', "whole[:, -1]", PIECES,
    ),
    "the first of the last piece": Mutant(
        call, 'whole[:, 0] if name.startswith("first")', 'whole[:, -1] if name.startswith("first")',
        (by_hand(fused.test_the_first_weight_of_a_block_in_pieces),),
    ),
    "a stage too few": Mutant(
        programs, "while len(stages) < levels[node.number]:", "while len(stages) < min(levels[node.number], 1):", (by_hand(fused.test_the_first_weight_of_a_block_in_pieces),),
    ),
    "memory taken as if in order": Mutant(
        call, "return x if x.flags.c_contiguous and x.flags.aligned else np.array(x, order=\"C\")", "return x",
        (calls.test_arrays_of_any_layout_are_served,),
    ),
    "damaged code is run": Mutant(
        machine, "return code if whole else None", "return code or None",
        (by_hand(fused.test_damaged_code_is_not_taken),),
    ),
}  # fmt: skip

FORMATS = {
    "uniforms of 1": Mutant(
        passes, "graph.require(((uniform >= 0) & (uniform < 1)).node)", "graph.require((uniform >= 0).node)",
        (partial(calls.test_errors_are_those_of_the_plain_path, text="int4/absmax/block=32", place=31),),
    ),
    "weights that are no numbers pass": Mutant(
        passes, "graph.require((abs(x) < math.inf).node)", "graph.require((~(x > math.inf)).node)",
        (partial(calls.test_errors_are_those_of_the_plain_path, text="int4/absmax/block=32", place=31),),
    ),
    "anchors of the first call for ever": Mutant(
        passes, 'given[f"{name}{k}"] = x', 'given[f"{name}{k}"] = contiguous(np.ones_like(x))',
        (calls.test_frozen_lattices_come_with_each_call,),
    ),
    "a cell beyond the guess": Mutant(
        lattice, "near = self._searched(plain)", "near = self._beside(plain)", (partial(formats.test_a_guess_that_is_off_is_corrected, 2),),
    ),
    "parts of a large array all from the first": Mutant(
        law, "place = slice(i, i + rows), slice(j, j + columns)", "place = slice(0, rows), slice(j, j + columns)",
        (formats.test_large_arrays_go_part_by_part,),
    ),
}  # fmt: skip

ROOMS = {"recording": RECORDING, "writing": WRITING, "tables": TABLES, "calls": CALLS, "formats": FORMATS}
ALL = [(room, name) for room, mutants in ROOMS.items() for name in mutants]


@pytest.mark.parametrize(("room", "name"), ALL, ids=[f"{room}: {name}" for room, name in ALL])
def test_mutants_are_noticed(room, name):
    with np.errstate(all="ignore"):
        assert noticed(ROOMS[room][name])

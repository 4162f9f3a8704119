"""Do the tests of stored types bite? Deliberate errors in bytes, levels and scales are noticed."""

from functools import partial

import pytest

pytest.importorskip("gguf")

from lotion_theory.formats import lattice
from lotion_theory.stored import base, k_quants, layout, legacy, micro, rules, search
from tests import test_stored as stored
from tests import test_stored_scales as scales
from tests.mutants import Mutant, noticed

BYTES = tuple(partial(stored.test_any_bytes_are_read_as_gguf_reads_them_and_come_back, n) for n in ("q4_k", "tq1_0"))
SMALL = (partial(stored.test_every_byte_of_a_small_scale_is_read_as_gguf_reads_it, "nvfp4"),)
NEAREST = tuple(partial(stored.test_the_nearest_level_is_found_among_all, n) for n in ("q4_1", "iq4_nl"))
FACTOR = (stored.test_the_factor_of_a_tensor_is_a_tensor_beside_it,)


def own(*names):
    return tuple(partial(scales.test_own_rules_are_those_of_the_reference_to_the_bit, name) for name in names)


def searched(*names):
    return tuple(partial(scales.test_a_search_is_never_worse_than_the_own_rule, name, True) for name in names)


MUTANTS = {
    "bits read from one place higher": Mutant(
        layout, "(block[:, of_block] >> np.uint8(self.shift)) & self._mask", "(block[:, of_block] >> np.uint8(self.shift + 1)) & self._mask",
        BYTES,
    ),
    "bits written without their mask": Mutant(
        layout, "(numbers[:, of_numbers] >> np.uint8(self.bit)) & self._mask", "(numbers[:, of_numbers] >> np.uint8(self.bit))",
        BYTES,
    ),
    "trits rounded down": Mutant(
        layout, "np.uint16(256) + np.uint16(242)", "np.uint16(256) + np.uint16(0)", BYTES[1:],
    ),
    "the last trit first": Mutant(
        layout, "value = value * np.uint16(3) + numbers[:, self._of(digit)]",
        "value = value * np.uint16(3) + numbers[:, self._of(self.digits - 1 - digit)]", BYTES[1:],
    ),
    "minima added": Mutant(k_quants, '-(dmin * fields["mins"]', '(dmin * fields["mins"]', BYTES[:1]),
    "the code of NaN a scale": Mutant(micro, "    value[127] = 0\n", "    value[127] = 480\n", (lambda: _tables(),)),
    "a number that is no level let through": Mutant(
        base, "if len(self.levels) < 256 and (wrong", "if len(self.levels) < 2 and (wrong",
        (stored.test_a_number_that_is_no_level_is_refused,),
    ),
    "the level below": Mutant(base, "up = (second < first) |", "up = (second < 0) |", NEAREST),
    "shifts forgotten in the nearest level": Mutant(
        base, "centred = x if shift is None else x - shift", "centred = x", NEAREST[:1],
    ),
    "ties upwards": Mutant(base, "(low % 2 == 1)", "(low >= 0)", (stored.test_ties_go_to_even_places_for_steps_of_either_sign,)),
    "the factor left out of values": Mutant(base, "                    grouped *= parameters.factor\n", "                    grouped *= 1\n", FACTOR),
    "the factor left out of the lattice": Mutant(base, "step = step * parameters.factor", "step = step * 1", FACTOR),
    "idle blocks without weight": Mutant(
        base, "idle = (weight.reshape(-1, self.block) == 0).all(axis=1)", "idle = (weight.reshape(-1, self.block) < 0).all(axis=1)",
        (partial(scales.test_a_block_of_no_importance_counts_as_one_without, "q4_0"),),
    ),
    "sums in pairs": Mutant(
        rules, "    for term in terms[1:]:\n        out += term\n", "    out = terms[::2].sum(axis=0) + terms[1::2].sum(axis=0)\n",
        own("q4_k", "q6_k"),
    ),
    "the largest magnitude without its sign": Mutant(
        rules, "return np.take_along_axis(x, place[None], axis=0)[0] + ZERO", "return np.abs(np.take_along_axis(x, place[None], axis=0)[0])",
        own("q4_0"),
    ),
    "one trial less": Mutant(rules, "for k in (0, *range(-9, 0), *range(1, 10)):", "for k in (0, *range(-9, 0), *range(1, 9)):", own("q6_k")),
    "minima above zero": Mutant(rules, "    low = np.where(low > 0, ZERO, low)\n", "", own("q4_k", "q2_k")),
    "numbers rounded down": Mutant(
        k_quants, "numbers = np.clip(np.rint(np.where(most > 0", "numbers = np.clip(np.floor(np.where(most > 0", own("q4_k"),
    ),
    "the mean square of the row taken twice": Mutant(
        legacy, "mean_square(x)), BLOCK)", "mean_square(x, 2)), BLOCK)", own("q4_1", "q5_0"),
    ),
    "E4M3 halves down": Mutant(micro, "np.floor(np.ldexp(size, 3 - exponent) + np.float32(0.5))", "np.floor(np.ldexp(size, 3 - exponent) + np.float32(0.25))", own("nvfp4")),
    "what is offered always taken": Mutant(search, "better = error < self.error", "better = error < np.inf", searched("q4_0", "q4_k", "mxfp4")),
    "scales tried too far apart": Mutant(
        search, "np.linspace(1.06, edge, _CLOSE)", "np.linspace(1.6, edge, _CLOSE)",
        (partial(scales.test_the_search_of_one_scale_is_close_to_the_best_of_all_fp16_scales, "q8_0"),),
    ),
    "the most frequent scale for the best": Mutant(
        search, "score.argmax(axis=1)", "counts.argmax(axis=1)",
        (partial(scales.test_the_ternary_search_finds_the_least_error_of_all_fp16_scales, "tq1_0"),),
    ),
    "the offset of a format left out": Mutant(
        lattice, "values_at(self.units, index, self.top) + self.bottom, self.kind", "values_at(self.units, index, self.top), self.kind",
        (partial(stored.test_formats_of_the_same_name_are_the_same_rounding, "q5_1"),),
    ),
}  # fmt: skip


def _tables():
    """The table of small scales, made again, is the one that gguf's values were held to."""
    SMALL[0]()
    assert (micro._small_floats() == micro.FLOATS).all()


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_noticed(name):
    assert noticed(MUTANTS[name])

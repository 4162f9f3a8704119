"""Do the tests of stored weights bite? Deliberate errors in codes, packed files, GGUF and torchao are noticed."""

from functools import partial

import pytest

pytest.importorskip("torch")
pytest.importorskip("safetensors")

from lotion_theory.export import codes, gguf_file, loader, packed, torchao_tensors
from tests import test_export_codes as coded
from tests import test_export_packed as stored
from tests import test_export_points as points
from tests import test_export_runtimes as runtimes
from tests import test_export_sealed as sealed
from tests.mutants import Mutant, by_hand, noticed

NARROW = tuple(
    partial(coded.test_anchors_take_the_narrowest_type_that_is_exact, text, "float32", anchor, storage)
    for text, anchor, storage in (("mxfp4", "e8m0", 4.25), ("uint4/zp-int/row", "float32", 4 + 40 / 64))
)
GGUF = (by_hand(runtimes.test_gguf_dequantizes_to_the_cast_bit_for_bit, kind="Q4_0", text="q4_0"),)
REPORT = (by_hand(stored.test_patterns_formats_and_the_report),)
STREAM = (partial(stored.test_the_stream_is_little_endian_also_beyond_the_part_it_is_made_in, 3),)

MUTANTS = {
    "anchors not counted in the storage": Mutant(
        codes, "for kind in self.anchors) / self.block", "for kind in self.anchors[:1]) / self.block", NARROW,
    ),
    "a code more than bits": Mutant(
        codes, "return (len(self.book.levels) - 1).bit_length()", "return len(self.book.levels).bit_length()", NARROW,
    ),
    "scales that E8M0 does not have": Mutant(
        codes, "top = xp.where(idle, 0 * top + 2.0**fmt.min_exponent, top)", "top = top + 0 * idle",
        (coded.test_blocks_of_zeros_have_a_scale_that_e8m0_has,),
    ),
    "every point said to be on the lattice": Mutant(
        codes, "    if not bool(near.all()):\n", "    if not bool(near.any()):\n",
        (partial(coded.test_any_point_on_the_lattice_of_w_can_be_encoded, "int4/absmax/block=8", "float32"),),
    ),
    "of two near levels the first": Mutant(
        codes, "return index, alone & (xp.minimum(below, above) <= bound)", "return index, xp.minimum(below, above) <= bound",
        (points.test_what_may_be_either_of_two_levels_is_refused,),
    ),
    "lattices of a draw by the first block": Mutant(
        codes, "moves = ~exact & (there | (~near & close))", "moves = (~exact & (there | (~near & close)))[:1] | (0 * exact > 0)",
        (partial(coded.test_any_point_on_the_lattice_of_w_can_be_encoded, "nvfp4/sr", "float32"),),
    ),
    "two-level factor left out of the lattice": Mutant(
        codes, "            top = top * self.factor\n", "            top = top * 1.0\n",
        (partial(coded.test_named_formats_on_ordinary_weights_of_three_axes, "nvfp4/e4m3-nearest-2level", "float32"),),
    ),
    "integers counted from zero": Mutant(
        codes, "np.array([int(c) for c in book.levels], np.int8)", "np.array(range(len(book.levels)), np.int8)",
        (coded.test_integers_are_the_codes_of_integer_codebooks,),
    ),
    "parts of a stream that begin inside a byte": Mutant(
        packed, "for first in range(0, flat.size, 1 << 20):", "for first in range(0, flat.size, (1 << 20) + 1):", STREAM,
    ),
    "highest bit first": Mutant(
        packed, 'bitorder="little"), bitorder="little")', 'bitorder="little"), bitorder="big")', STREAM,
    ),
    "the last of the patterns counts": Mutant(
        packed, "next((f for pattern, f in formats.items() if _match(pattern, own[name])), None)",
        "next((f for pattern, f in reversed(formats.items()) if _match(pattern, own[name])), None)", REPORT,
    ),
    "include overrides exclude": Mutant(
        packed, "if fits and wanted and not any(_match(pattern, own) for pattern in exclude):",
        "if fits and (include or not any(_match(pattern, own) for pattern in exclude)) and wanted:", REPORT,
    ),
    "every number counted as quantized": Mutant(
        packed, "return PackedReport(sum(sizes.values()), sum(sizes[name] for name in bits)",
        "return PackedReport(sum(sizes.values()), sum(sizes.values())", REPORT,
    ),
    "codebooks of one name taken for one": Mutant(
        packed, "    while tables.setdefault(table, values) != values:\n", "    while tables.setdefault(table, values) is None:\n",
        (by_hand(points.test_codebooks_of_their_own_are_told_from_named_ones_and_from_each_other),),
    ),
    "written without its seal": Mutant(
        packed, "            loader.seal(part, write=True)\n", "            pass\n", REPORT,
    ),
    "the header left out of the checksum": Mutant(
        loader, "hashlib.sha256(start + header[:place] + BLANK.encode() + header[place + len(BLANK) :])", "hashlib.sha256()",
        (by_hand(sealed.test_every_truncation_and_every_added_byte_is_noticed),
         by_hand(stored.test_damaged_and_foreign_files_are_named), by_hand(sealed.test_every_flipped_bit_is_noticed)),
    ),
    "a first piece of the file in the checksum": Mutant(
        loader, "        while part := file.read(1 << 20):\n", "        if part := file.read(1 << 6):\n",
        (by_hand(stored.test_damaged_and_foreign_files_are_named),),
    ),
    "levels below zero by the anchor above": Mutant(
        loader, "x = np.where(unit >= 0, top * unit, bottom * -unit)", "x = top * unit",
        (by_hand(stored.test_probes_of_every_kind_of_format_in_one_file, dtype="float32"),),
    ),
    "bias of the other small float": Mutant(
        loader, '(7 if kind == "e4m3" else 15)', '(15 if kind == "e4m3" else 7)',
        (coded.test_one_byte_anchor_tables_are_the_scale_formats,),
    ),
    "bfloat16 cut off, not rounded": Mutant(
        loader, "((word + 0x7FFF + ((word >> 16) & 1)) >> 16)", "(word >> 16)",
        (by_hand(stored.test_probes_of_every_kind_of_format_in_one_file, dtype="bfloat16"),),
    ),
    "nibbles of neighbours in a byte": Mutant(
        gguf_file, "nibbles[:, :16] | (nibbles[:, 16:] << 4)", "nibbles[:, ::2] | (nibbles[:, 1::2] << 4)", GGUF,
    ),
    "zeros of either sign": Mutant(
        gguf_file, "fits = (d * code == leader[left]) & (sign[left] * np.sign(d) >= 0)", "fits = d * code == leader[left]",
        GGUF + tuple(
            by_hand(runtimes.test_gguf_dequantizes_to_the_cast_bit_for_bit, kind=kind, text=text)
            for kind, text in (("Q8_0", "q4_0"), ("Q4_0", "ternary/fp16-sr/row"))
        ),
    ),
    "scales of positive sign alone": Mutant(
        gguf_file, "for c in range(low, high + 1) if c)", "for c in range(0, high + 1) if c)", GGUF,
    ),
    "an absolute error for a relative one": Mutant(
        gguf_file, "float(abs(back - x).max() / abs(x).max())", "float(abs(back - x).max())",
        (by_hand(runtimes.test_gguf_refuses_what_it_cannot_hold_or_rounds_when_asked, kind="Q4_0",
                 text="int4/absmax/block=32", dtype="float32"),),
    ),
    "boxes counted from the first axis": Mutant(
        torchao_tensors, "for n in reversed(encoded.shape):", "for n in encoded.shape:",
        (runtimes.test_torchao_takes_blocks_that_are_boxes_of_any_shape,),
    ),
    "what would not be exact let through": Mutant(
        torchao_tensors, "    if wrong:\n", "    if wrong < 0:\n", (runtimes.test_torchao_refuses_what_would_not_be_exact,),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_noticed(name):
    assert noticed(MUTANTS[name])

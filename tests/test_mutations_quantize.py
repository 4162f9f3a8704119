"""Do the tests of quantized models bite? Deliberate errors in layers, moments, the walk, lattices and corrections."""

from functools import partial

import pytest

pytest.importorskip("torch")

from lotion_theory.quantize import corrections, folder, lattices, layers, moments, run, walk
from lotion_theory.rounders import points
from testbeds.quantizing import texts
from tests import test_quantize as models
from tests import test_quantize_commands as commands
from tests import test_quantize_walk as walked
from tests.mutants import Mutant, by_hand, noticed

CONVOLUTIONS = tuple(
    partial(walked.test_rows_times_inputs_are_the_outputs, kind) for kind in ("strided", "grouped", "reflected")
)
MOMENTS = (walked.test_moments_are_sums_over_batches,)
BLOCKS = (walked.test_blocks_are_found_and_give_the_moments_of_the_whole_model,)
FOLLOW = (walked.test_moments_follow_the_weights_as_they_are_then,)
SCHEMES = (partial(models.test_each_layer_is_the_scheme_on_its_own_moment, "int4/absmax/row", "gptq"),)
AFFINE = tuple(partial(models.test_affine_and_stored_lattices, text, "gptq") for text in ("uint4/zp-real/row", "q4_1"))
SEARCH = (models.test_searched_scales_are_the_best_of_those_tried,)
WINDOWS = (commands.test_windows_are_disjoint_and_held_out_ones_the_same_for_every_seed,)

MUTANTS = {
    "dilation of a convolution left out": Mutant(
        layers, "None, module.stride, padding, module.dilation)", "None, module.stride, padding)", CONVOLUTIONS[:1]
    ),
    "groups of a convolution mixed up": Mutant(
        layers, "x.unflatten(1, (groups, -1)).transpose(0, 1)", "x.unflatten(1, (-1, groups)).movedim(2, 0)",
        CONVOLUTIONS[1:2],
    ),
    "padding of zeros whatever the mode": Mutant(
        layers, 'if module.padding_mode != "zeros":', "if False:", CONVOLUTIONS[2:]
    ),
    "moments of the last batch alone": Mutant(
        moments, "self._products += narrow.transpose(1, 2) @ narrow", "self._products = narrow.transpose(1, 2) @ narrow", MOMENTS
    ),
    "moments that are sums": Mutant(moments, "h = self._products / self.vectors", "h = self._products / 1", MOMENTS),
    "moments about the mean": Mutant(
        moments, "        return (h + h.transpose(1, 2)) / 2", "        return (h + h.transpose(1, 2)) / 2 - self.mean[:, None] * self.mean[:, :, None]", MOMENTS
    ),
    "blocks that are not passed on": Mutant(walk, "while self._block < block:", "while self._block < block - 1:", BLOCKS),
    "hidden states of the float model": Mutant(
        walk, "self._states[number] = ((_hidden(module(*args, **kwargs)), *args[1:]), kwargs)",
        "self._states[number] = ((args[0], *args[1:]), kwargs)", FOLLOW,
    ),
    "rounded weights written at the end": Mutant(
        run,
        'if work.inputs == "quantized":\n            done.write()',
        'if work.inputs == "other":\n            done.write()',
        (models.test_float_inputs_are_those_of_the_float_model,),
    ),
    "the moment of the first group for all": Mutant(
        run, "Case(h[group].to(w.dtype), w[part], piece)",
        "Case(h[0].to(w.dtype), w[part], piece)",
        (models.test_grouped_convolutions_meet_their_own_inputs,),
    ),
    "a refusal that falls back by itself": Mutant(
        run, "            if self.fall_back is None:\n", "            if self.fall_back is None and False:\n",
        (models.test_a_refusal_is_an_error_unless_something_else_was_asked_for,),
    ),
    "errors without the moment": Mutant(run, "return float((x * (x @ h)).sum())", "return float((x * x).sum())", SCHEMES),
    "dead inputs not counted": Mutant(
        run, "h.diagonal(dim1=1, dim2=2) <= 0", "h.diagonal(dim1=1, dim2=2) < 0",
        (models.test_what_calibration_does_not_see_is_said,),
    ),
    "shift of an affine lattice left out": Mutant(
        points, "units, step, shift = lattice.units, lattice.top - lattice.bottom, lattice.bottom",
        "units, step, shift = lattice.units, lattice.top - lattice.bottom, 0 * lattice.bottom", AFFINE[:1],
    ),
    "searched scales by the unweighted error": Mutant(
        lattices, "    if h is not None:\n", "    if h is not None and False:\n", SEARCH,
    ),
    "searched scales that are the last tried": Mutant(lattices, "better = error < least", "better = error == error", SEARCH),
    "a folder for any work": Mutant(
        folder, "if before.get(key) != plan[key]", "if key not in before", (by_hand(models.test_a_killed_run_goes_on_to_the_same_bits),)
    ),
    "biases moved the other way": Mutant(
        corrections, "bias += shift.to(bias.dtype)", "bias -= shift.to(bias.dtype)", (models.test_biases_restore_the_mean_output,)
    ),
    "statistics that decay": Mutant(
        corrections, "norm.training, norm.momentum = True, None", "norm.training, norm.momentum = True, 0.1",
        (models.test_norms_are_measured_anew_and_back,),
    ),
    "held-out windows among the calibration": Mutant(
        texts, "permutation(whole - kept)[:calibration]", "permutation(whole)[:calibration]", WINDOWS
    ),
    "held-out windows by the seed": Mutant(
        texts, "spread = whole - kept + (np.arange(held_out) * kept) // max(held_out, 1)",
        "spread = whole - kept + (np.arange(held_out) * kept) // max(held_out, 1) + seed", WINDOWS,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_noticed(name):
    assert noticed(MUTANTS[name])

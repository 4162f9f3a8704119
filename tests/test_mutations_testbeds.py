"""Do the tests of problems, oracles, rounding schemes and results bite? Deliberate errors in each room are noticed."""

from functools import partial
from importlib import import_module

import pytest

from lotion_theory.rounders import (
    _adam,
    adaquant,
    adaround,
    clip_search,
    conditional,
    coordinate_descent,
    discquant,
    factor,
    gptq,
    grid,
    lotion_cell,
    lotion_ramp,
    lotion_splitting,
    matgptq,
    places,
    sweep,
    tuning,
)
from testbeds.oracles import best_scale, closest_vector, enumeration
from testbeds.problems import mlp, rotations
from testbeds.results import leaderboard, rows, sensitivity, statistics
from tests import test_leaderboard as boards
from tests import test_linear_regression as linear
from tests import test_mlp as nets
from tests import test_oracles_exact as oracles
from tests import test_rotations as turned
from tests import test_rounders_adaquant as quant
from tests import test_rounders_classical as classical
from tests import test_rounders_grid as lattices
from tests import test_rounders_learned as learned
from tests import test_rounders_lotion as ours
from tests import test_rounders_matgptq as cuts
from tests import test_rounders_splitting as split
from tests import test_rounders_tuning as tuned
from tests import test_statistics as numbers
from tests import test_sweep_figures as figures
from tests import test_two_layer as layered
from tests.mutants import Mutant, by_hand, examples, noticed

# The package exports functions under the names of these modules.
regression = import_module("testbeds.problems.linear_regression")
two_layer = import_module("testbeds.problems.two_layer")
INT3 = "int3/absmax/block=4"
KIND = ("int4", "float32", "numpy")
SIZE = (3, 2, 2)


def in_chunks():
    """Enumeration with few points at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(enumeration, "CHUNK", 7)
        oracles.test_enumeration_agrees_with_a_loop_over_all_points()


PROBLEMS = {
    "loss without its half": Mutant(
        regression, "** 2).sum(axis=1) / 2 + self.offset", "** 2).sum(axis=1) + self.offset",
        (partial(linear.test_loss_is_its_definition, "dense"),),
    ),
    "spectrum backwards": Mutant(
        regression, "self.rotation.transpose(vectors) * self.spectrum)",
        "self.rotation.transpose(vectors) * self.spectrum[::-1])",
        (partial(linear.test_structured_hessian_equals_the_dense_one, "mixing"),),
    ),
    "expected loss with the whole variance": Mutant(
        regression, "self.curvature @ variance / 2)", "self.curvature @ variance)",
        (partial(linear.test_expected_loss_is_the_smoothed_loss, "dense", "nf4/absmax/tensor"),),
    ),
    "label noise left out of the batch": Mutant(
        regression, "z @ self._factor(x - self.center) - self.noise", "z @ self._factor(x - self.center) - 0 * self.noise",
        (partial(linear.test_batch_gradients_of_the_population_are_those_of_its_samples, "dense"),),
    ),
    "rows of a batch drawn with replacement": Mutant(
        regression, "count, replace=False)", "count, replace=True)",
        (partial(linear.test_batches_of_fixed_samples_are_unbiased, "more samples"),),
    ),
    "quartic term halved": Mutant(
        two_layer, "self._c / 2 * float(s2.sum(axis=0)", "self._c / 4 * float(s2.sum(axis=0)",
        (partial(layered.test_expected_loss_is_the_enumerated_smoothed_loss, SIZE, "int3/frozen", 0.0),),
    ),
    "curvature of one output": Mutant(
        two_layer, "g1 = np.outer((w2**2).sum(axis=0)", "g1 = np.outer((w2**2).max(axis=0)",
        (partial(layered.test_gradient_and_curvature_are_those_of_the_value, SIZE),),
    ),
    "floor with one singular value too many": Mutant(
        two_layer, "self._svd[1][self.k :]", "self._svd[1][self.k - 1 :]",
        (partial(layered.test_optimum_is_a_balanced_global_minimiser, SIZE),),
    ),
    "backward pass without the activation's slope": Mutant(
        mlp, "delta = (delta @ matrices[layer]) * _ACTIVATIONS[self.activation].slope(values[layer])\n",
        "delta = delta @ matrices[layer]\n", (partial(nets.test_value_and_gradient, (4, 3, 2), "squared", "tanh"),),
    ),
    "signs on the wrong side of the transform": Mutant(
        rotations, "return self._transform(_checked(x, self.size)) * self.signs",
        "return self._transform(_checked(x, self.size) * self.signs)",
        (partial(turned.test_equals_its_matrix, "hadamard"),),
    ),
}  # fmt: skip

ORACLES = {
    "cross term once": Mutant(
        enumeration, "cross = 2 * (a @", "cross = (a @", (oracles.test_enumeration_agrees_with_a_loop_over_all_points,),
    ),
    "best of the last chunk alone": Mutant(
        enumeration, "best, found = losses[i, j], (start + i, j)", "best, found = losses[i, j], (i, j)", (in_chunks,),
    ),
    "the weights added back": Mutant(
        enumeration, "return np.concatenate([_member(sets[:split], i), _member(sets[split:], j)])",
        "return w + np.concatenate([a[i], b[j]])", (oracles.test_points_are_levels_also_far_from_the_weights,),
    ),
    "only whole rows counted": Mutant(
        enumeration, "if count > LIMIT:", "if count > 2 * LIMIT:",
        (by_hand(oracles.test_enumeration_refuses_what_is_too_large),),
    ),
    "a start taken for proof": Mutant(
        closest_vector, "bool(state.depth[0] == n)", "True", (oracles.test_an_interrupted_search_says_so,),
    ),
    "singular Hessians let through": Mutant(
        closest_vector, "if not _definite(h):", "if False:",
        (partial(oracles.test_singular_hessians_are_refused, oracles.np.diag([1.0, -1.0, 1.0])),),
    ),
    "search inside half of the first radius": Mutant(
        closest_vector, "loss = float((start - w) @ tree.h @ (start - w))",
        "loss = float((start - w) @ tree.h @ (start - w)) / 2",
        (partial(oracles.test_search_agrees_with_enumeration_of_the_cell, "natural"),),
    ),
    "bounds beyond what is feasible": Mutant(
        closest_vector, "np.zeros(k))\n    return found", "np.zeros(k)) * 1.5\n    return found",
        (oracles.test_bounds_are_feasible_and_nearly_the_best,),
    ),
    "scale of the first parabola": Mutant(
        best_scale, "loss, s, codes = min(found, key=lambda item: item[0])", "loss, s, codes = found[-1]",
        (partial(oracles.test_best_scale_is_the_least_over_all_assignments, oracles.BOOKS[0]),),
    ),
    "negative weights counted as positive": Mutant(
        best_scale, "np.sort(sign * levels)", "np.sort(levels)",
        (partial(oracles.test_best_scale_is_the_least_over_all_assignments, oracles.ONE_SIDED[0]),),
    ),
}  # fmt: skip

ROUNDERS = {
    "GPTQ: errors over the wrong pivot": Mutant(
        gptq, "astype(factor / pivots, name)", "astype(factor / pivots[0], name)", examples(classical.test_gptq_is_the_published_algorithm, *((INT3, s, d) for s in range(8) for d in (0.0, 0.3))),
    ),
    "GPTQ: damping of the largest entry": Mutant(
        factor, "damping * xp.mean(curvature)", "damping * xp.max(curvature)",
        examples(classical.test_gptq_is_the_published_algorithm, *((INT3, s, d) for s in range(8) for d in (0.0, 0.3))),
    ),
    "columns beyond the block not told": Mutant(
        sweep, "signal[stop:] += onward[stop:] @ moves", "signal[stop:] += 0 * onward[stop:] @ moves",
        (partial(classical.test_gptq_does_not_depend_on_the_column_block, 7),),
    ),
    "conditional: half the curvature": Mutant(
        conditional, "half[j] * bend[j]", "half[j] / 2 * bend[j]",
        examples(classical.test_conditional_expectation_keeps_its_promise, *((INT3, s) for s in range(20))),
    ),
    "coordinate descent stops after a sweep": Mutant(
        coordinate_descent, "if not count:", "if count:",
        examples(classical.test_coordinate_descent_ends_in_a_local_minimum_below_its_start, *((INT3, s) for s in range(20))),
    ),
    "clip search takes the worst factor": Mutant(
        clip_search, "better = change < least", "better = change > least",
        examples(classical.test_clip_search_is_never_worse_than_nearest, *((INT3, s) for s in range(3))),
    ),
    "AdaRound: slope without the stretch": Mutant(
        adaround, "(_HIGH - _LOW) * s * (1 - s) * inside", "s * (1 - s) * inside", (learned.test_adaround_soft_slope,),
    ),
    "Adam without bias correction": Mutant(
        _adam, "mean = self._mean / (1 - one**self._step)", "mean = self._mean",
        (learned.test_adam_is_the_published_algorithm,),
    ),
    "LOTION in the cell: penalty twice": Mutant(
        lotion_cell, "case.curvature * kernels.variance(w, lo, hi)).sum(axis=1) / 2",
        "2 * case.curvature * kernels.variance(w, lo, hi)).sum(axis=1) / 2",
        examples(ours.test_smoothed_loss_is_the_library_s, (0, INT3)),
    ),
    "LOTION's ramp comes late": Mutant(
        lotion_ramp, "cosine(t / steps) * unit", "unit", (ours.test_ramp_comes_to_rest_on_the_lattice,),
    ),
    "DiscQuant away from the nearer end": Mutant(
        discquant, "linprog(1 - 2 * place,", "linprog(2 * place - 1,",
        (partial(learned.test_discquant_vertices, 2, "int4/absmax/row"),),
    ),
    "splitting: the prox of a convex penalty": Mutant(
        lotion_splitting, "weight / (2 * (rho - weight)))", "-weight / (2 * (rho - weight)))",
        (partial(split.test_diagonal_hessians_keep_the_nearest_level, INT3),),
    ),
    "splitting: without the diagonal's root": Mutant(
        lotion_splitting, "(rho * xp.linalg.diagonal(hessian)) ** 0.5", "xp.linalg.diagonal(hessian) ** 0.5",
        (partial(split.test_the_end_is_a_fixed_point_of_the_published_equations, INT3),),
    ),
    "lattices of negative steps not turned back": Mutant(
        grid, "return where(self._flipped, hi, lo), where(self._flipped, lo, hi)", "return lo, hi",
        examples(lattices.test_levels_around_and_nearest_are_those_of_exact_arithmetic, *((s, KIND, 1.0) for s in range(3))),
    ),
    "columns trust their rounding": Mutant(
        places, "unsure = room < self._unsure[j]", "unsure = room < 0",
        examples(lattices.test_columns_find_the_same_levels, *((s, KIND, 1e3) for s in range(5))),
    ),
    "MatGPTQ hands on the error at eight bits": Mutant(
        matgptq, "mean = np.mean([grid.units[cut(codes, r, bits)] for r in widths], axis=0)", "mean = grid.units[codes]",
        (partial(cuts.test_the_sweep_is_the_published_one, (3, 4, 8), 0),),
    ),
    "AdaQuant: factors shared by nothing": Mutant(
        adaquant, "            if shared:\n                pull", "            if False:\n                pull",
        (quant.test_scales_are_learned_by_block,),
    ),
    "tuning beyond its budget": Mutant(
        tuning, "if len(trials) == budget:", "if len(trials) == budget + 1:",
        (partial(tuned.test_budgets_are_spent_and_not_exceeded, 2),),
    ),
}  # fmt: skip

RESULTS = {
    "t interval with one degree of freedom more": Mutant(
        statistics, "special.stdtrit(n - 1,", "special.stdtrit(n,", (partial(numbers.test_mean_interval_is_scipys, 3, 0.95),),
    ),
    "deviation over n": Mutant(
        statistics, "x.std(ddof=1)", "x.std()", (partial(numbers.test_mean_interval_is_scipys, 3, 0.95),),
    ),
    "one-sided sign flips": Mutant(
        statistics, "return float((np.abs(sums) >= reach).mean())", "return float((sums >= reach).mean())",
        (numbers.test_differences_of_one_size_give_the_sign_test,),
    ),
    "Bonferroni in place of Holm": Mutant(
        statistics, "(len(p_values) - rank) * p_values[k]", "len(p_values) * p_values[k]", (numbers.test_holm_known_answers,),
    ),
    "intervals for comparison not widened": Mutant(
        statistics, "widen = math.sqrt(len(complete) / (len(complete) - 1))", "widen = 1.0",
        (numbers.test_comparison_intervals_of_two_are_those_of_their_ratio,),
    ),
    "Wald in place of Wilson": Mutant(
        statistics, "middle = (share + z * z / (2 * n)) / (1 + z * z / n)", "middle = share",
        (partial(numbers.test_proportions_are_scipys_wilson, 1, 3),),
    ),
    "ratios with the noise floor in": Mutant(
        rows, "return {seed: v - floor.get(seed, 0.0) for", "return {seed: v for",
        (boards.test_ratios_are_of_losses_above_the_noise_floor,),
    ),
    "the first of repeated runs counts": Mutant(
        rows, 'row["finished"] >= kept[key]["finished"]', 'row["finished"] < kept[key]["finished"]',
        (boards.test_repeated_runs_count_once_and_the_last_wins,),
    ),
    "highest losses known": Mutant(
        leaderboard, "known[seed] = min(value, known.get(seed, math.inf))", "known[seed] = max(value, known.get(seed, 0.0))",
        (boards.test_known_optima_beat_lowest_losses,),
    ),
    "any learning rate at a weight": Mutant(
        sensitivity, "best = next(iter(at_best(of_weight).values()), [])", "best = of_weight",
        (figures.test_lambda_panels_hold_the_three_losses,),
    ),
}  # fmt: skip

ROOMS = {"problems": PROBLEMS, "oracles": ORACLES, "rounders": ROUNDERS, "results": RESULTS}
ALL = [(room, name) for room, mutants in ROOMS.items() for name in mutants]


@pytest.mark.parametrize(("room", "name"), ALL, ids=[f"{room}: {name}" for room, name in ALL])
def test_mutants_are_noticed(room, name):
    assert noticed(ROOMS[room][name])

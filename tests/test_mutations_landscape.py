"""Do the tests of landscapes bite? Deliberate errors in slices, fields, kinks, minima and trajectories are noticed."""

from functools import partial

import pytest

from lotion_theory.landscape import _batch, codes, fields, kinks, minima, search, slices, trajectories
from tests import test_landscape as drawn
from tests import test_landscape_minima as lowest
from tests.mutants import Mutant, examples, noticed

BATCH = (partial(drawn.test_batch_agrees_with_one_point_at_a_time, name="e2m1/e8m0-sr/row", frozen=False),)

MUTANTS = {
    "drawn lattices equally likely": Mutant(
        _batch, "drawn_with = np.prod(_choose(probs, chosen), axis=1)", "drawn_with = np.full(n, 0.5**self.blocks)", BATCH,
    ),
    "up with the probability of down": Mutant(
        _batch, "p[:, block, place] if risen else 1 - p[:, block, place]",
        "1 - p[:, block, place] if risen else p[:, block, place]", BATCH,
    ),
    "two-level factor of the whole batch": Mutant(
        _batch, "np.abs(rows).reshape(-1, self.blocks * self.size).max(axis=1)",
        "np.full(len(rows) // self.blocks, np.abs(rows).max())",
        (partial(drawn.test_batch_agrees_with_one_point_at_a_time, name="e2m1/e4m3-nearest-2level/row", frozen=False),),
    ),
    "all blocks have the curvature of the first": Mutant(
        fields, "np.tile(self._loss.curvature.reshape(self._blocks[1:]), (self._blocks[0], 1))",
        "np.tile(self._loss.curvature.reshape(self._blocks[1:])[:1], (self._rows[0], 1))",
        (partial(drawn.test_lotion_fields_are_the_exact_gradients, "int4full/gauge/block=2"),),
    ),
    "CAGE pulls away from the lattice": Mutant(
        fields, "slope + strength * (points - cast)", "slope + strength * (cast - points)",
        (drawn.test_check_table_of_the_theory,),
    ),
    "the lattice moves with the weights, asked or not": Mutant(
        fields, "batch.on_rows(len(points)), moving)", "batch.on_rows(len(points)), True)",
        (drawn.test_moving_and_detached_fields_differ,),
    ),
    "changes at the left end of their interval": Mutant(
        kinks, "((a[fine] + b[fine]) / 2).tolist()", "(a[fine] - (b - a)[fine] * 8).tolist()",
        examples(drawn.test_changes_of_a_staircase_are_found, ([1, 5, 4000],)),
    ),
    "half of each interval forgotten": Mutant(
        kinks, "a, b = np.concatenate([a, middle]), np.concatenate([middle, b])",
        "a, b = np.concatenate([a, a]), np.concatenate([middle, middle])",
        examples(drawn.test_changes_of_a_staircase_are_found, ([1, 5, 4000],)),
    ),
    "rounding errors taken for other cells": Mutant(
        kinks, "slack = 8 * np.finfo(float).eps *", "slack = 0.01 * np.finfo(float).eps *",
        (drawn.test_the_ray_through_a_quantized_point_has_no_spurious_kinks,),
    ),
    "second-order loss without its half": Mutant(
        slices, ".reshape(len(points), -1).sum(axis=1) / 2", ".reshape(len(points), -1).sum(axis=1)",
        (drawn.test_blends_run_from_float_to_smoothed_or_penalised,),
    ),
    "axes of a plane exchanged": Mutant(
        slices, "grid = w + s.reshape(1, -1, *extra) * first + t.reshape(-1, 1, *extra) * second",
        "grid = w + s.reshape(-1, 1, *extra) * first + t.reshape(1, -1, *extra) * second",
        (drawn.test_planes_agree_with_points,),
    ),
    "centres of a field at its edges": Mutant(
        slices, "return (edges[:-1] + edges[1:]) / 2", "return edges[:-1]", (drawn.test_planes_agree_with_points,),
    ),
    "both slices on the moving lattice": Mutant(
        slices, "Batch(moving.q.freeze(w), w.shape)", "moving", (drawn.test_fixed_and_moving_slices_differ,),
    ),
    "neighbours on one side alone": Mutant(
        minima, "((-rise, (1, 0)), (rise, (0, 1)))", "((-rise, (1, 0)),)",
        (partial(lowest.test_lattice_minima_against_a_plain_loop, 0),),
    ),
    "plateaus are strict": Mutant(
        minima, "level_with |= np.pad(gap == 0, pad)", "level_with |= np.pad(gap < 0, pad)", (lowest.test_plateaus_are_marked,),
    ),
    "steps that leave the range's end compared": Mutant(
        minima, "inside &= place[tuple(moved.T)] >= 0", "inside &= place[tuple(moved.T)] >= -1",
        (partial(lowest.test_no_minimum_on_a_moving_lattice_is_left_out, "int4full/gauge", 5),),
    ),
    "scales of either sign": Mutant(
        codes, "valid = (coefficients[:, : len(support)] >= 0).all(axis=1)",
        "valid = np.ones(len(coefficients), dtype=bool)",
        tuple(partial(lowest.test_smoothing_keeps_the_global_minimum, *case) for case in (("int4full/gauge", 2), ("nf4", 2))),
    ),
    "code vectors that do not set their own scale": Mutant(
        codes, "return index[q.scale.sets_scale(book.values[index], book)]", "return index",
        (partial(lowest.test_code_vectors_are_the_quantized_points, "int3full/gauge"),),
    ),
    "subnormal scales left out": Mutant(
        codes, "    if bits:\n        found.append(", "    if bits > 99:\n        found.append(",
        (lowest.test_stored_scale_points_are_the_support_of_rounding,),
    ),
    "minima not moved onto the point beside them": Mutant(
        search, "        return near, True\n", "        return x, True\n",
        (partial(lowest.test_local_minima_of_the_smoothed_loss_are_those_of_the_lattice, 1, "int4", 0),),
    ),
    "every step draws the same": Mutant(
        trajectories, "stream.uniforms((1, count), step=k,", "stream.uniforms((1, count), step=0,",
        (lowest.test_every_step_of_a_trajectory_draws_afresh,),
    ),
    "ramp on the whole field": Mutant(
        trajectories, "slope = plain + weight * (slope - plain)", "slope = plain + weight * slope",
        (lowest.test_trajectory_records_the_losses_and_follows_the_field,),
    ),
    "a learning rate that ends at half its peak": Mutant(
        trajectories, "return lambda k: peak * (1 - k / steps)", "return lambda k: peak * (1 - k / (2 * steps))",
        (lowest.test_lotion_settles_on_the_lattice,),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_noticed(name):
    assert noticed(MUTANTS[name])

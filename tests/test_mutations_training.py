"""Do the tests of training in torch bite? Deliberate errors in its sources, loops and schedules are noticed."""

from functools import partial

import pytest

from lotion_theory.training import (
    _site,
    casts,
    curvature,
    fake,
    gnb,
    hutchinson,
    kfac,
    measuring,
    monitors,
    penalty,
    recipes,
    schedules,
    selection,
    straight_through,
)
from lotion_theory.training._model import aside, held, swap
from lotion_theory.training._model import attached as _attached
from lotion_theory.training._model import state as _state
from lotion_theory.training._tensors import blocks as _blocks
from lotion_theory.training._tensors import noise
from lotion_theory.training._tensors import stacks as _stacks
from lotion_theory.training._tensors import term as _term
from lotion_theory.training._tensors.fused import rows
from tests import test_export_points as points
from tests import test_training_against_trainers as trainers
from tests import test_training_attached as attached
from tests import test_training_curvature as sources
from tests import test_training_fused as fused
from tests import test_training_held as found
from tests import test_training_levels as levels
from tests import test_training_loop as loop
from tests import test_training_measuring as places
from tests import test_training_monitors as watched
from tests import test_training_numbers as numbers
from tests import test_training_penalty as terms
from tests import test_training_recipes as recipe
from tests import test_training_schedules as times
from tests import test_training_selection as selected
from tests import test_training_stacks as company
from tests import test_training_straight_through as straight
from tests.mutants import Mutant, by_hand, examples, noticed

FLOAT64 = terms.torch.float64
CLIPPING = """            self.penalty.add_gradient_()
        if self.max_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self.max_norm)
"""
TOO_EARLY = """            if self.max_norm is not None:
                torch.nn.utils.clip_grad_norm_(parameters, self.max_norm)
            self.penalty.add_gradient_()
"""

MUTANTS = {
    "the move beside Adam without its eps": Mutant(
        penalty, '.sqrt_().add_(group["eps"])', ".sqrt_()",
        (partial(loop.test_the_move_beside_adam_is_divided_as_adam_divides, 10.0),),
    ),
    "penalty added after clipping": Mutant(
        recipes, CLIPPING, TOO_EARLY, (recipe.test_hooks_clip_the_penalty_along_with_the_gradient,),
    ),
    "the move beside Adam without bias correction": Mutant(
        penalty, '(1 - group["betas"][1] ** steps_of(state, step.device))', '(1 - 0 * steps_of(state, step.device))',
        (partial(loop.test_the_move_beside_adam_is_divided_as_adam_divides, 1e-8),),
    ),
    "steps that a scaler left out are counted": Mutant(
        recipes, "            if stepped:\n", "            if True:\n",
        (recipe.test_hooks_do_not_count_steps_that_are_left_out,),
    ),
    "value without its half": Mutant(
        _term, "curvature, half = item.blocks(curvature.detach()), (scale * 0.5)",
        "curvature, half = item.blocks(curvature.detach()), (scale * 1.0)",
        (partial(terms.test_value_is_half_the_weighted_variance, "int4/absmax", "row"),),
    ),
    "detached, and yet through a scale of the general kind": Mutant(
        _term, "quantizer if attached else quantizer.freeze(weights.detach())", "quantizer",
        (partial(terms.test_gradients_are_those_of_the_closed_form, "int4full/gauge", "block=4", FLOAT64, "detached"),),
    ),
    "the scale's share without curvature": Mutant(
        _term, "span_sums(through.mul_(half_g))", "span_sums(through.mul_(half))",
        (partial(terms.test_gradients_are_those_of_the_closed_form, "int4/absmax", "block=4", FLOAT64, "attached"),),
    ),
    "ties for the largest weight each get all": Mutant(
        _blocks, "sums / (count * (top + (top == 0)))", "sums / (top + (top == 0))",
        (partial(terms.test_gradients_are_those_of_the_closed_form, "int4/absmax", "block=4", FLOAT64, "attached"),),
    ),
    "top of the last piece": Mutant(
        _blocks, "top[rows] = torch.maximum(top[rows], here)", "top[rows] = here",
        (terms.test_large_tensors_and_other_memory_layouts,),
    ),
    "micro-batches counted off by one": Mutant(
        curvature, "alpha = (total - 1) / (total / batch_size - 1)", "alpha = total / (total / batch_size - 1)",
        (partial(sources.test_fisher_from_accumulated_micro_batches_is_exact_with_one_buffer, 1, 2, 2),),
    ),
    "the tracked mean's spread over 1 + rho": Mutant(
        curvature, "torch.ones_like(squares), 1 - squares)", "torch.ones_like(squares), 1 + squares)",
        (partial(sources.test_fisher_with_a_tracked_mean_is_exact, 2, 2),),
    ),
    "average not corrected for its start": Mutant(
        curvature, "return torch.where(left < 1, 1 - left, torch.ones_like(left))", "return torch.ones_like(left)",
        (partial(sources.test_fisher_neglecting_the_mean_overestimates_by_it, 2),),
    ),
    "overflow in one tensor spoils the others": Mutant(
        curvature, "            finite = squares_fit(gradients, weight, scale, tops) & finite\n", "            pass\n",
        (partial(loop.test_an_overflow_is_left_out_as_a_whole, float("inf"), "neglected"),),
    ),
    "most likely labels in place of drawn ones": Mutant(
        gnb, "torch.multinomial(_shares(part.detach()), 1, generator=generator)",
        "_shares(part.detach()).argmax(dim=1, keepdim=True)",
        (sources.test_gnb_is_the_gauss_newton_diagonal_of_softmax_regression,),
    ),
    "B for B squared in K-FAC": Mutant(
        kfac, "(batch_size / scale) ** 2", "batch_size / scale", (partial(sources.test_kfac_is_exact_for_linear_nets, 1),),
    ),
    "evaluation recorded as training": Mutant(
        kfac, "if not (self.recording and module.training and", "if not (self.recording and",
        (partial(sources.test_kfac_is_exact_for_linear_nets, 3),),
    ),
    "ramp clamped below alone": Mutant(
        schedules, "(self.end - self.start)).clamp(0, 1)", "(self.end - self.start)).clamp(min=0)",
        (terms.test_ramp_and_weight,),
    ),
    "gate closes a step late": Mutant(
        schedules, "self.set(self.start <= step < self.end)", "self.set(self.start <= step <= self.end)",
        (times.test_gates_follow_steps_and_hands,),
    ),
    "warm-up from nothing": Mutant(
        schedules, "return (step + 1) / self.warmup", "return step / self.warmup", (times.test_split_by_hand,),
    ),
    "shares of training rounded up an ulp": Mutant(
        schedules, "return float(step) if step / total_steps == moment else moment * total_steps",
        "return moment * total_steps", examples(times.test_a_share_is_reached_at_the_same_step_everywhere, (100, 55), (49, 7)),
    ),
    "include overrides exclude": Mutant(
        selection, "if not _matching(group[0], exclude)]", "if include or not _matching(group[0], exclude)]",
        (selected.test_patterns,),
    ),
    "the same noise at every step": Mutant(
        straight_through, "        self._step += 1\n", "        self._step += 0\n",
        (partial(straight.test_randomized_points_are_roundings_with_noise_of_their_own, "int4/absmax/row"),),
    ),
    "compiled noise begins with a whole word": Mutant(
        noise, "return table.reshape(-1)[skip : skip + size]", "return table.reshape(-1)[:size]",
        examples(levels.test_noise_is_that_of_the_stream, (5, 3, 2, 7)),
    ),
    "weights of the block stay": Mutant(
        swap, "_foreach_copy_([local(parameter) for parameter in self._held], self.originals)",
        "_foreach_copy_(self.originals, [local(parameter) for parameter in self._held])",
        (watched.test_casts_come_and_go,),
    ),
    "share of the outer tenth on one side": Mutant(
        monitors, "return torch.minimum(up, 1 - up)", "return up", (partial(watched.test_phases, "int4"),),
    ),
    "two optimizers' steps are two": Mutant(
        _attached, "if self._stepped.issuperset(self._hooks):", "if self._stepped:",
        (partial(attached.test_a_penalty_counts_steps_of_several_optimizers_once, "at once"),),
    ),
    "loops: ties for the largest weight each get all": Mutant(
        rows, "part = total / (x.dtype.type(count) * top)", "part = total / top",
        (partial(fused.test_the_plain_path_agrees, "int4", with_numba=False),),
    ),
    "loops: the neighbour on the other side": Mutant(
        rows, "k += t.one if off > t.zero else (-t.one if off < t.zero else t.zero)",
        "k -= t.one if off > t.zero else (-t.one if off < t.zero else t.zero)",
        (partial(fused.test_the_plain_path_agrees, "int4", with_numba=False),),
    ),
    "groups of noise begin with each shard": Mutant(
        _site, "u.repeat_interleave(shared)[skip : skip + x.numel()]", "u.repeat_interleave(shared)[: x.numel()]",
        (partial(straight.test_shards_see_their_part_of_the_whole, "quant_noise", {"group": 5, "seed": 1}),),
    ),
    "a step pushes instead of pulling": Mutant(
        _site, "weights.sub_((off * rate)", "weights.add_((off * rate)",
        (by_hand(trainers.test_same_weights_as_the_numpy_trainers, name="cage", settings={"silent": 0.25},
                 text="int4/absmax/block=8", kind="gd"),),
    ),
    "learned steps without their factor": Mutant(
        _site, "slope = sums * (self.span * rule.learned.factor(x.shape[1], rule.book))", "slope = sums * self.span",
        (by_hand(trainers.test_same_weights_as_the_numpy_trainers, name="lsq", settings={},
                 text="int4/absmax/block=8", kind="gd"),),
    ),
    "small tensors in company get each other's gradients": Mutant(
        _stacks, "rows.split([t.numel() // rows.shape[1] for t in tensors])",
        "rows.split([t.numel() // rows.shape[1] for t in tensors])[::-1]",
        (partial(company.test_the_penalty_gives_small_tensors_the_bits_that_they_have_alone, "int4/absmax/block=8"),),
    ),
    "half an observation stays": Mutant(
        curvature, "(gradients, abs(1 - alpha), scale))", "(first, alpha, first_scale))",
        (partial(numbers.test_an_overflow_in_either_half_of_an_accumulation_leaves_out_both, 1e20, True),),
    ),
    "an overflow looked for in sums alone": Mutant(
        curvature, "factor * n * n <= top for", "factor * n * n >= 0 for",
        (partial(numbers.test_gradients_that_overflow_leave_the_curvature_as_it_was, "neglected", 1e20),),
    ),
    "a learned step may become negative": Mutant(
        straight_through, "torch.maximum(site.learned, site.floor, out=site.learned)", "torch.minimum(site.learned, site.floor)",
        (straight.test_a_learned_step_stays_positive,),
    ),
    "gradients put aside and not put back": Mutant(
        aside, "            p.grad = gradient\n", "            p.grad = None\n",
        (sources.test_gnb_leaves_everything_else_alone,),
    ),
    "statistics of batches stay as a measurement leaves them": Mutant(
        aside, "buffer.copy_(value)", "value.copy_(buffer)",
        (partial(places.test_measuring_leaves_nothing_behind, "fisher", "mixture"),),
    ),
    "mixtures of half of the weights": Mutant(
        measuring, "point = mixed(weights, point, u, t)", "point = mixed(weights, point, u, 0.5)",
        (partial(places.test_points_are_weights_or_roundings, "int3/absmax/row"),),
    ),
    "measured at the weight after all": Mutant(
        measuring, "            item.local.copy_(point)\n", "            item.local.copy_(weights)\n",
        (partial(places.test_the_mean_curvature_is_that_of_its_place, "rounded"),),
    ),
    "each step of a warm-up at the same point": Mutant(
        measuring, "return WARM_UP + self._warming - 1 if self._warming", "return WARM_UP if self._warming",
        (places.test_a_warm_up_gives_the_first_step_curvature,),
    ),
    "targets of unit variance": Mutant(
        gnb, "(outputs.shape[-1] / 2) ** 0.5 * noise", "noise",
        (partial(places.test_gaussian_targets_give_the_gauss_newton_diagonal_of_a_squared_error, sources.nn.ReLU),),
    ),
    "Hutchinson without the second sign": Mutant(
        hutchinson, "(v * product).detach()", "product.detach()",
        (places.test_a_diagonal_hessian_takes_one_probe,),
    ),
    "tied weights that came apart taken for one": Mutant(
        held, "if any(other is not new for other in found):", "if new is None:",
        (found.test_tied_weights_that_come_apart_are_refused,),
    ),
    "states of matrices of another shape": Mutant(
        _state, "elif isinstance(own, str | list) and own != given:", "elif isinstance(own, str) and own != given:",
        (partial(numbers.test_states_of_other_formats_and_models_are_refused, numbers._straight),),
    ),
    "casts of all weights with the same noise": Mutant(
        casts, "    own = stream.spawn(item.name)\n", "    own = stream\n", (watched.test_casts_come_and_go,),
    ),
    "the last of the patterns counts": Mutant(
        casts, "(*exclude, *known), frozen)", "(*exclude,), frozen)", (points.test_quantized_takes_formats_by_pattern,),
    ),
    "ties to odd": Mutant(
        fake, "return (half == half.round()) == self.even", "return (half == half.round()) != self.even",
        (partial(levels.test_agrees_with_the_quantizer_on_probes, "int4/absmax", "float32"),),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_noticed(name):
    assert noticed(MUTANTS[name])

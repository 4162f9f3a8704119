"""Do the tests of language models bite? Deliberate errors in their layers, data, training and measuring are noticed."""

from functools import partial

import pytest

from testbeds import settings
from testbeds.lm.loop import checkpoint, evaluate, logs, schedules, train
from testbeds.lm.loop.config import assigned, preset
from testbeds.lm.measure import stepcost, tune
from testbeds.lm.model import casts, decoder, mixer, norm, quantized
from testbeds.lm.text import ids, sequences, sources, tokens
from tests import test_lm_config as configured
from tests import test_lm_data as ordered
from tests import test_lm_evaluate as evaluated
from tests import test_lm_ids as read
from tests import test_lm_model as layers
from tests import test_lm_prepare as prepared
from tests import test_lm_quantized as trained
from tests import test_lm_resume as resumed
from tests import test_lm_stepcost as measured
from tests.mutants import Mutant, by_hand, examples, noticed


def small_decoder():
    made = evaluated.Decoder(evaluated.SMALL.model)
    made.initialize(0)
    return made


def searched():
    """The repeats of a search; skipped without Optuna."""
    from tests import test_lm_tune as tuned

    by_hand(tuned.test_repeats_differ_by_their_seed, config=assigned(preset("tiny"), tuned.SMALL))()


HOOK = "        self.method.after_backward(step)\n"
CLIP = """        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.optimizer.clip or math.inf)
"""

MUTANTS = {
    "LOTION's ramp a step early": Mutant(
        quantized, "share = min(1.0, step.number / step.steps", "share = min(1.0, (step.number + 1) / step.steps",
        (partial(trained.test_the_ramp_starts_at_nothing_and_ends_when_it_says, 0.5),),
    ),
    "one seed for all repeats of a trial": Mutant(tune, "seed=FIRST_SEED + k)", "seed=FIRST_SEED)", (searched,)),
    "the method's gradient after clipping": Mutant(
        train, HOOK + CLIP, CLIP + HOOK, (trained.test_clipping_comes_after_the_penalty,),
    ),
    "a number too many in a permutation": Mutant(
        sequences, "todo = value >= size", "todo = value > size", examples(ordered.test_permutation_hits_everything_once, (5, 1), (9, 2)),
    ),
    "every epoch in the order of the first": Mutant(
        sequences, "keys, shift = self._epoch(epoch)", "keys, shift = self._epoch(0)", (ordered.test_epochs_differ_in_order_and_in_cut,),
    ),
    "every batch from the start of its epoch": Mutant(
        sequences, "permuted(np.arange(start, start + part), self.size, keys)", "permuted(np.arange(part), self.size, keys)",
        (partial(ordered.test_processes_and_micro_batches_share_the_same_batch, 3, 2),),
    ),
    "the token that was read as the target": Mutant(
        sequences, "return ids[:, :-1], ids[:, 1:]", "return ids[:, :-1], ids[:, :-1]",
        (ordered.test_evaluation_sequences_are_different_and_fixed,),
    ),
    "the first sequence of an array taken for one more of the array before": Mutant(
        tokens, 'np.searchsorted(ends, number, side="right")', 'np.searchsorted(ends, number, side="left")',
        (ordered.test_shifts_stay_inside_every_array,),
    ),
    "an id too large for the vocabulary": Mutant(
        tokens, "int(ids.max()) < vocabulary):", "int(ids.max()) <= vocabulary):",
        (by_hand(ordered.test_ids_outside_the_vocabulary_are_refused_and_nothing_stays, value=10),),
    ),
    "documents with the id that ended the one before": Mutant(
        ids, "starts = np.append(0, ends[:-1] + 1)", "starts = np.append(0, ends[:-1])",
        examples(read.test_documents_are_what_lies_between_the_ends, ([1, 9, 2],)),
    ),
    "the first of so many documents held out": Mutant(
        sources, "number % every == every - 1)", "number % every == 0)",
        (by_hand(prepared.test_every_so_manieth_document_is_held_out),),
    ),
    "documents counted anew where a preparation goes on": Mutant(
        sources, "enumerate(documents(start), start)", "enumerate(documents(start))",
        (by_hand(prepared.test_interrupted_preparation_goes_on_to_the_same_files),),
    ),
    "differences with old and new exchanged": Mutant(
        settings, 'f"{label}: {a}, now {b}"', 'f"{label}: {b}, now {a}"', (configured.test_differences_are_told_by_their_path,),
    ),
    "a step without learning": Mutant(
        schedules, "return config.lr * (step + 1) / warmup", "return config.lr * step / warmup",
        (partial(configured.test_learning_rate_rises_stays_and_falls, schedule="cosine", steps=10),),
    ),
    "the decay ends a step late": Mutant(
        schedules, "(step - start + 1) / max(1, steps - start)", "(step - start) / max(1, steps - start)",
        (configured.test_schedules_at_known_points,),
    ),
    "not-a-number passes for a setting": Mutant(
        settings, "if not value >= least:", "if value < least:",
        tuple(
            partial(configured.test_no_number_is_out_of_bounds, kind, name, float("nan")) for kind, name in configured.NUMBERS
        ),
    ),
    "deviation over n": Mutant(
        evaluate, "values.std(ddof=1)", "values.std()", (evaluated.test_estimate_and_interval_by_hand,),
    ),
    "standard error of the text alone": Mutant(
        evaluate, "math.hypot(rounding.standard_error, text.standard_error)", "text.standard_error",
        (evaluated.test_crossed_standard_error_covers_both_sources,),
    ),
    "every weight with the same noise": Mutant(
        casts, "stream, quantizer, scale = streams.spawn(name),", "stream, quantizer, scale = streams,",
        (evaluated.test_noise_is_the_same_for_every_model_and_differs_by_sample,),
    ),
    "weights kept without a copy": Mutant(
        casts, "kept[name] = weight.detach().clone()", "kept[name] = weight.detach()",
        (lambda: evaluated.test_weights_come_back_after_an_error(small_decoder(), "inside"),),
    ),
    "losses of what fills up a batch": Mutant(
        evaluate, ".numpy()[: len(numbers)]", ".numpy()",
        (lambda: evaluated.test_batches_do_not_matter(small_decoder(), 4),),
    ),
    "tokens that see the future": Mutant(
        decoder, "is_causal=True", "is_causal=False", (partial(layers.test_no_token_sees_the_future, mixer="attention", changed=5),),
    ),
    "a rotation that is a reflection": Mutant(
        decoder, "a * sin + b * cos", "a * sin - b * cos", (layers.test_rotary_products_depend_on_the_distance_only,),
    ),
    "layers into the residual stream not scaled by the depth": Mutant(
        decoder, "(2 * self.config.depth if residual else 1)", "(2 if residual else 1)",
        (layers.test_deeper_models_share_the_first_layers,),
    ),
    "strides that do not double": Mutant(
        mixer, "        stride *= 2\n", "        stride += 1\n", (partial(layers.test_scan_is_the_recurrence, 13),),
    ),
    "mean of a norm's gradient as a sum": Mutant(
        norm, "(product @ w).view(r.shape) / x.shape[-1]", "(product @ w).view(r.shape)",
        (layers.test_norm_has_the_derivatives_of_its_formula,),
    ),
    "checksums of a checkpoint not compared": Mutant(
        checkpoint, 'hashlib.file_digest(opened, "sha256").hexdigest() != digest', "not digest",
        (by_hand(resumed.test_damaged_checkpoint_is_named_and_left_only_when_asked, file="model.pt", how="flip"),),
    ),
    "a checkpoint too many kept": Mutant(
        checkpoint, "for old in steps(folder)[:-keep]:", "for old in steps(folder)[: -keep - 1]:",
        (by_hand(resumed.test_only_the_newest_checkpoints_are_kept),),
    ),
    "the log of steps that are done again kept": Mutant(
        logs, 'entry["step"] < step or (entry["step"] == step and entry["kind"] == "train")', 'entry["step"] <= step',
        (by_hand(resumed.test_a_resumed_log_drops_what_is_done_again),),
    ),
    "an interval one order statistic too narrow": Mutant(
        stepcost, "place = max(cut - 1, 0)", "place = cut", (measured.test_intervals_hold_the_median_as_often_as_they_say,),
    ),
    "overhead of a micro-batch for that of a step": Mutant(
        stepcost, "statistics.median(p.seconds for p in plain)) * more", "statistics.median(p.seconds for p in plain))",
        (measured.test_overhead_at_the_batch_of_the_preset_is_per_step,),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_noticed(name):
    assert noticed(MUTANTS[name])

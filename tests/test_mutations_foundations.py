"""Do the tests of streams, rounding, files, workers and text bite? Deliberate errors in each are noticed."""

import signal
from functools import partial

import pytest

from lotion_theory import _philox, arguments, csv_text, files, rounding, streams, workers
from testbeds.sweep.store import Store
from tests import test_arrays as arrays
from tests import test_files as written
from tests import test_philox as philox
from tests import test_rounding as rounded
from tests import test_streams as drawn
from tests import test_streams_uniformity as uniform
from tests import test_sweep_pools as pools
from tests import test_text as text
from tests import test_training_schedules as times
from tests.mutants import Mutant, by_hand, examples, noticed

CHUNKS = examples(drawn.test_any_chunking_gives_the_same_bits, ("numpy", "float32", 3, [5, 6, 50]))

STREAMS = {
    "first whole counter as far behind the start as it is before": Mutant(
        streams, "head = min(-start % per, size)", "head = min(start % per, size)", CHUNKS,
    ),
    "counters at the ends counted from this part's start": Mutant(
        streams, "counter, skip = divmod(start + begin, per)", "counter, skip = divmod(begin, per)", CHUNKS,
    ),
    "every pass draws the first one's numbers": Mutant(
        streams, "index = _arange(first + begin, len(part), flat)", "index = _arange(first, len(part), flat)",
        (partial(drawn.test_backends_agree_over_several_passes, "numpy", "float64"),),
    ),
    "seed in the other order of bytes": Mutant(
        streams, 'self.seed.to_bytes(8, "little")', 'self.seed.to_bytes(8, "big")',
        examples(drawn.test_every_backend_gives_the_defining_formula, ("float32", 3, "x", 1, 0, 4)),
    ),
    "low word of the step alone": Mutant(
        streams, "words = (_philox.low32(step), _philox.high32(step), *key)", "words = (_philox.low32(step), 0, *key)",
        (drawn.test_different_streams_and_steps_give_different_numbers,),
    ),
    "steps of a generator overlap": Mutant(
        streams, "counter=step << 192", "counter=step", (uniform.test_steps_of_the_numpy_generator_do_not_overlap,),
    ),
    "16-bit types drawn in their own type": Mutant(
        streams, "return _DRAWN_FOR[dtype_name(like)]", "return dtype_name(like)",
        (partial(drawn.test_numpy_like_sets_the_type, "float16", "float32"),),
    ),
    "start up to the limit, the elements beyond": Mutant(
        streams, "if start + size > _INDEX_LIMIT:", "if start > _INDEX_LIMIT:",
        (partial(drawn.test_bad_draws_are_refused, {"start": 2**63 - 1}, ValueError, ["start + size <= 2**63"]),),
    ),
    "the other word mixed in": Mutant(
        _philox, "c0 = ((p1 >> 32) & MASK) ^ c1 ^ k0", "c0 = ((p1 >> 32) & MASK) ^ c3 ^ k0",
        (partial(philox.test_philox_gives_the_known_answers, "python", *philox.KNOWN_ANSWERS[2]),),
    ),
    "halves of a 53-bit number overlap": Mutant(
        _philox, "((w0 >> 5) << 26) | (w1 >> 6)", "((w0 >> 5) << 26) | (w1 >> 5)",
        examples(drawn.test_every_backend_gives_the_defining_formula, *(("float64", s, "x", 1, 0, 4) for s in range(3))),
    ),
}  # fmt: skip

STEPS = tuple(partial(rounded.test_each_step_takes_the_lower_conditional_expectation, seed) for seed in range(42, 48))
ROUNDING = {
    "toward zero is down": Mutant(
        rounding, "where(abs(lo) <= abs(hi), lo, hi), where(", "where(lo <= hi, lo, hi), where(",
        (rounded.test_directions_on_a_known_lattice,),
    ),
    "moves taken off the slope": Mutant(
        rounding, "slope = slope + loss.product(step[None])[0]", "slope = slope - loss.product(step[None])[0]",
        (rounded.test_large_quadratics_need_no_enumeration,),
    ),
    "the whole curvature for its half": Mutant(
        rounding, "half = loss.curvature.ravel()[i] / 2", "half = loss.curvature.ravel()[i]",
        (partial(rounded.test_quadratic_and_enumerated_paths_are_one, "ternary/absmax"),),
    ),
    "sums for expectations": Mutant(
        rounding, "(probs * values)[at_hi].sum() / chance_hi - (probs * values)[~at_hi].sum() / chance_lo",
        "(probs * values)[at_hi].sum() - (probs * values)[~at_hi].sum()",
        STEPS,
    ),
    "ties go down": Mutant(
        rounding, "end = hi[i] if rise <= 0 else lo[i]", "end = hi[i] if rise < 0 else lo[i]",
        (rounded.test_ties_go_up_and_levels_stay,),
    ),
    "the order forgotten": Mutant(
        rounding, "free = [int(i) for i in order if hi[i] > lo[i]]", "free = [i for i in range(w.size) if hi[i] > lo[i]]",
        STEPS,
    ),
}  # fmt: skip

FILES = {
    "renamed before it is on the disk": Mutant(
        files, "                os.fsync(file.fileno())\n", "                pass\n",
        (by_hand(written.test_a_file_is_on_the_disk_before_it_gets_its_name),),
    ),
    "what is left of a failure stays": Mutant(
        files, "        part.unlink(missing_ok=True)\n", "        pass\n", (by_hand(written.test_a_failure_leaves_what_was_there),),
    ),
    "a link becomes a file": Mutant(
        files, "target = Path(os.path.realpath(path))", "target = Path(path)",
        (by_hand(written.test_a_symbolic_link_keeps_pointing_to_the_file),),
    ),
    "rights of a new file for an old one": Mutant(
        files, "rights = (target if target.exists() else part).stat()", "rights = part.stat()",
        (by_hand(written.test_rights_are_those_of_plain_writing_even_where_a_library_makes_its_file_private),),
    ),
    "writers of one process share a path": Mutant(
        files, ".{os.getpid()}-{secrets.token_hex(4)}.part", ".{os.getpid()}.part",
        (by_hand(written.test_writers_in_one_process_do_not_share_a_path),),
    ),
    "line ends changed": Mutant(
        files, 'part.write_text(text, encoding="utf-8", newline="")', 'part.write_text(text, encoding="utf-8", newline="\\r\\n")',
        (by_hand(written.test_long_names_and_line_ends_are_kept),),
    ),
    "the holder's note wiped by the one who is refused": Mutant(
        files, "            file.seek(0)\n            raise", "            file.truncate(0)\n            raise",
        (by_hand(written.test_a_lock_names_its_holder_and_ends_with_its_block),),
    ),
    "different texts in one file": Mutant(
        files, "hexdigest()[:8]", "hexdigest()[:0]",
        examples(written.test_different_texts_get_different_names, (["a b", "a/b"],)),
    ),
    "dashes in front kept": Mutant(
        files, '"-", text).lstrip(".-")', '"-", text).lstrip("-")',
        examples(written.test_names_stay_in_their_folder, (".hidden",)),
    ),
    "numbers with a sign taken for formulas": Mutant(
        csv_text, "and _FORMULA.match(value) and not _is_number(value)", "and _FORMULA.match(value)",
        examples(text.test_numbers_stay_as_they_are, (-1.5,)),
    ),
    "apostrophes of the text's own taken off": Mutant(
        csv_text, """found[1:] if found.startswith("'") and _FORMULA.match(found) else found""",
        """found[1:] if found.startswith("'") else found""",
        examples(text.test_a_cell_is_no_formula_and_comes_back, ("'tis",)),
    ),
}  # fmt: skip


def alone(test, **arguments):
    """A test of the driver, with a store of its own and signals as Python sets them."""

    def call(tmp_path, monkeypatch):
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with Store(tmp_path / "runs.db") as store:
                test(store, **({"monkeypatch": monkeypatch} if "monkeypatch" in test.__code__.co_varnames else {}))
        finally:
            signal.signal(signal.SIGINT, before)

    return by_hand(call)


NUMBERS = {
    "truth taken for a number": Mutant(
        arguments, "    if isinstance(value, bool | np.bool_):\n        return False\n", "",
        (partial(arrays.test_what_is_no_integer, True),),
    ),
    "the open end let in": Mutant(
        arguments, "and (value != lowest or not open_below)", "", (times.test_optimal_share,),
    ),
    "threads of this process left at one": Mutant(
        workers, "                os.environ[name] = value\n", "                pass\n",
        (alone(pools.test_workers_compute_with_one_thread),),
    ),
    "answers of a worker that has died since are lost": Mutant(
        workers, "if readable or (dead and worker.pipe.poll()):", "if readable and not dead:",
        (pools.test_a_worker_that_dies_between_two_calls,),
    ),
}  # fmt: skip

ROOMS = {"streams": STREAMS, "rounding": ROUNDING, "files": FILES, "numbers and workers": NUMBERS}
ALL = [(room, name) for room, mutants in ROOMS.items() for name in mutants]


@pytest.mark.parametrize(("room", "name"), ALL, ids=[f"{room}: {name}" for room, name in ALL])
def test_mutants_are_noticed(room, name):
    assert noticed(ROOMS[room][name])

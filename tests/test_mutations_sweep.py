"""Do the tests of sweeps bite? Deliberate errors in tasks, stores, archives and the driver are noticed."""

from inspect import signature

import pytest

from testbeds import documents
from testbeds.kinds import oracle
from testbeds.sweep import archive, driver, export, store, task
from testbeds.sweep.store import Store
from tests import test_damaged_rows as damaged
from tests import test_store as stored
from tests import test_sweep_driver as driven
from tests import test_sweep_kinds as kinds
from tests.mutants import Mutant, by_hand, noticed


def on_store(test, **arguments):
    """A test of the driver with a store of its own."""

    def call(tmp_path):
        with Store(tmp_path / "runs.db") as own:
            given = {"tmp_path": tmp_path} if "tmp_path" in signature(test).parameters else {}
            test(store=own, **given, **arguments)

    return by_hand(call)


SEVERAL = (by_hand(damaged.test_an_archive_comes_back_whatever_its_text_holds),)
CHOSEN = (by_hand(stored.test_rows_are_chosen_and_ordered_whatever_the_order_of_their_arrival),)

MUTANTS = {
    "an archive written in place of a renamed file": Mutant(
        archive, "part.write_bytes(lzma", "target.write_bytes(lzma",
        (by_hand(damaged.test_an_archive_that_cannot_be_written_leaves_the_old_one),),
    ),
    "the first packed stream alone": Mutant(
        archive, "data = packed.unused_data or file.read(_PIECE)", "data = file.read(_PIECE)", SEVERAL,
    ),
    "lines ended where Python ends them": Mutant(
        archive, '*whole, rest = (rest + piece).split(b"\\n")', "*whole, rest = (rest + piece).split()", SEVERAL,
    ),
    "what stands after the last line's end forgotten": Mutant(
        archive, "    if rest:\n        yield rest\n", "",
        (by_hand(damaged.test_a_file_that_is_no_archive_is_named, data=damaged.lzma.compress(b"{"), message="line 1"),),
    ),
    "one piece of a file": Mutant(
        archive, 'data = file.read(_PIECE) if packed.needs_input and not packed.eof else b""', 'data = b""',
        (by_hand(damaged.test_the_pieces_in_which_an_archive_is_read_do_not_show, piece=7),),
    ),
    "failed runs copied": Mutant(
        store, "\" AND status IN ('ok', 'diverged') ORDER BY finished DESC LIMIT 1\"", '" ORDER BY finished DESC LIMIT 1"',
        (by_hand(stored.test_equal_runs_are_copied_and_failed_ones_are_not),),
    ),
    "half of a transaction committed": Mutant(
        store, 'self._connection.execute("ROLLBACK")', 'self._connection.execute("COMMIT")',
        (by_hand(stored.test_several_outcomes_are_committed_together_or_not_at_all),),
    ),
    "damage overlooked": Mutant(
        store, 'if damage != "ok":', 'if damage == "":',
        (by_hand(stored.test_a_damaged_file_is_refused_before_anything_is_added, damage="overwritten"),),
    ),
    "checksums not looked at": Mutant(
        store, "if digest is not None and digest != _digest(values):", "if digest is None and digest != _digest(values):",
        (by_hand(stored.test_a_changed_value_is_noticed, change="seconds = 2.5"),),
    ),
    "checksums of everything but the last value": Mutant(
        store, 'zip(_COLUMNS, row, strict=True) if name != "attempts")', 'zip(_COLUMNS, row, strict=True) if name not in ("attempts", "finished"))',
        (by_hand(stored.test_a_changed_value_is_noticed, change="finished = '2020'"),),
    ),
    "damaged rows copied as sound ones": Mutant(
        store, "self._read(row)  # A damaged", "row  # A damaged",
        (by_hand(stored.test_a_changed_value_is_noticed, change="seconds = 2.5"),),
    ),
    "journals of the other kind of disk": Mutant(
        store, '"DELETE" if on_network(self.path) else "WAL"', '"WAL" if on_network(self.path) else "DELETE"',
        (by_hand(stored.test_a_network_file_system_gets_a_journal_that_works_there),),
    ),
    "rows by seed before their configuration": Mutant(
        store, '" ORDER BY experiment, phase, kind, config, seed"', '" ORDER BY experiment, phase, kind, seed, config"', CHOSEN,
    ),
    "retries of everything else": Mutant(store, "        if retry_failed:\n", "        if not retry_failed:\n", CHOSEN),
    "a key that forgets the kind": Mutant(
        task, "canonical([self.kind, self.config, self.seed])", "canonical([self.config, self.seed])",
        (stored.test_the_key_is_that_of_the_computation,),
    ),
    "settings in the order they were given": Mutant(
        documents, "json.dumps(value, sort_keys=True, allow_nan=False",
        "json.dumps(value, sort_keys=False, allow_nan=False",
        (stored.test_the_key_is_that_of_the_computation,),
    ),
    "a task that shares the mapping it was made from": Mutant(
        task, 'object.__setattr__(self, "config", _plain(self.config, "config"))', '_plain(self.config, "config")',
        (stored.test_a_task_does_not_change_with_the_mapping_it_was_made_from,),
    ),
    "a text per list lost in tables": Mutant(
        export, "canonical(value) if isinstance(value, list | dict) else value", "value",
        (by_hand(stored.test_csv_has_a_column_per_setting),),
    ),
    "counts rounded to floats": Mutant(
        export, "return values, polars.Int64", "return [None if v is None else float(v) for v in values], polars.Float64",
        (by_hand(stored.test_parquet_has_one_type_per_column),),
    ),
    "optima of the same problem under another seed": Mutant(
        oracle, 'row["config"]["format"], row["seed"]', 'row["config"]["format"], 0',
        (kinds.test_optima_are_joined_with_rounding_runs,),
    ),
    "twins of a run not stored": Mutant(
        driver, "for twin in self._groups[task.key]", "for twin in self._groups[task.key][:1]",
        (on_store(driven.test_equal_tasks_run_once),),
    ),
    "attempts never counted": Mutant(
        driver, "            self._attempts[task.key] += 1\n", "            self._attempts[task.key] += 0\n",
        (on_store(driven.test_every_end_of_a_task_has_its_status, pool="serial"),),
    ),
    "finished tasks asked for again": Mutant(
        driver, "            if task in self._finished:\n                continue\n", "",
        (on_store(driven.test_a_plan_is_asked_again_until_it_names_nothing_new),),
    ),
    "a plan asked once": Mutant(
        driver, "while batch := sweep.ask(plan):", "if batch := sweep.ask(plan):",
        (on_store(driven.test_a_plan_is_asked_again_until_it_names_nothing_new),),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_noticed(name):
    assert noticed(MUTANTS[name])

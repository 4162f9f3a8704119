"""Stores, archives and tables with damaged content: an answer in one line, exit status 2, and bounded memory."""

import copy
import json
import lzma
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from testbeds import cli
from testbeds.figures import sweeps as figures
from testbeds.report.sources import Sources, read
from testbeds.sweep import archive, schema
from testbeds.sweep.archive import read_archive, write_archive
from testbeds.sweep.results import stored_rows
from testbeds.sweep.store import Store
from testbeds.sweep.task import Outcome, Task
from tests import synthetic_rows as made
from tests.report_cases import write_sources

SEEDS = 2


def small_rows():
    """A few rows of every kind, each with what tables and figures read."""
    rows = [{**r, "experiment": "regression"} for r in made.contest(seeds=SEEDS, formats=("int4",))[: 5 * SEEDS]]
    studies = {
        "widths": made.widths(ks=(1, 4), seeds=SEEDS), "lambda": made.lambdas(("int4",), SEEDS)[: 12 * SEEDS],
        "rounding": made.rounding(instances=1)[:20], "estimators": made.estimators(("int4",), 1),
        "minima": made.minima(("int4",), 1),
    }  # fmt: skip
    return rows + [{**r, "experiment": name} for name, mine in studies.items() for r in mine]


def packed(path, lines):
    path.write_bytes(lzma.compress("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass")))
    return path


# --- archives --------------------------------------------------------------------------------------------------------


def test_an_archive_comes_back_whatever_its_text_holds(tmp_path):
    """Characters that end a line elsewhere end none here; several packed streams make one archive."""
    rows = [made.row("other", {}, seed, experiment="a\u2028b\x85c\x0bd") for seed in range(3)]
    write_archive(rows, tmp_path / "a.jsonl.xz")
    assert read_archive(tmp_path / "a.jsonl.xz") == rows
    data = (tmp_path / "a.jsonl.xz").read_bytes()
    (tmp_path / "b.jsonl.xz").write_bytes(data * 2)
    assert read_archive(tmp_path / "b.jsonl.xz") == rows * 2
    write_archive([], tmp_path / "c.jsonl.xz")
    assert read_archive(tmp_path / "c.jsonl.xz") == []


@pytest.mark.parametrize("piece", [1, 7, 2**16])
def test_the_pieces_in_which_an_archive_is_read_do_not_show(piece, tmp_path, monkeypatch):
    rows = made.contest(seeds=1, formats=("int4",))
    write_archive(rows, tmp_path / "a.jsonl.xz")
    monkeypatch.setattr(archive, "_PIECE", piece)
    monkeypatch.setattr(archive, "_DIGITS", 17)
    write_archive(rows, tmp_path / "a.jsonl.xz")
    assert read_archive(tmp_path / "a.jsonl.xz") == rows


def test_an_archive_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl.xz"
    write_archive([made.row("other", {}, 0)], path)
    before = path.read_bytes()

    def full(part, data):
        with part.open("wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device", str(part))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match=r"a\.jsonl\.xz"):
            write_archive([made.row("other", {}, 1)], path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_what_unpacks_to_too_much_is_refused_before_it_takes_memory(tmp_path, monkeypatch):
    import tracemalloc

    row = json.dumps(made.row("other", {}, 0)).encode() + b"\n"
    path = tmp_path / "bomb.jsonl.xz"
    path.write_bytes(lzma.compress(row * (2**22 // len(row)), preset=0))
    assert path.stat().st_size < 2**14
    monkeypatch.setattr(archive, "LIMIT", 2**21)
    monkeypatch.setattr(archive, "LINE", 2**20)
    tracemalloc.start()
    try:
        with pytest.raises(
            ValueError, match=r"bomb\.jsonl\.xz is not an archive of runs \(it unpacks to more than 2 MiB"
        ):
            read_archive(path)
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()
    path.write_bytes(lzma.compress(b" " * 3 * 2**19, preset=0))
    with pytest.raises(ValueError, match="a line is longer than 1 MiB"):
        read_archive(path)
    with pytest.raises(ValueError, match="an archive holds at most"):
        write_archive([made.row("other", {}, 0, experiment="x" * 2**21)], tmp_path / "large.jsonl.xz")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it ends too early"),
        (b"no archive", "not supported by decoder"),
        (lzma.compress(b"{}\n" * 1000)[:-5], "it ends too early"),
        (lzma.compress(b"\xff\xfe\n"), "line 1"),
        (lzma.compress(b"{}\n"), "line 1: not a run of a sweep .experiment is missing"),
        (lzma.compress(b"\n"), "line 1"),
        (lzma.compress(b"[" * 10**5), "line 1.*recursion"),
        (lzma.compress(b"9" * 5000), "line 1.*digits"),
        # A dictionary of 512 MiB, which unpacking would have to allocate.
        (lzma.compress(b"x", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 2**29, "preset": 0}]), "[Mm]emory"),
    ],
    ids=["empty", "foreign", "cut off", "no UTF-8", "no run", "blank", "deep", "long number", "dictionary"],
)  # fmt: skip
def test_a_file_that_is_no_archive_is_named(data, message, tmp_path):
    path = tmp_path / "a.jsonl.xz"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"(?s)a\.jsonl\.xz.*{message}"):
        read_archive(path)


def test_no_changed_byte_of_an_archive_goes_unnoticed(tmp_path):
    """The packed stream ends with a checksum of its content, so that a digit cannot become another one."""
    path = tmp_path / "a.jsonl.xz"
    write_archive(small_rows()[:4], path)
    data = path.read_bytes()
    for place in range(0, len(data), 5):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        with pytest.raises(ValueError, match=r"a\.jsonl\.xz is not an archive of runs"):
            read_archive(path)


# --- what a run must hold --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("seed",), True, "seed = True: expected a count"),
        (("seed",), 10**400, "seed = .*: expected a count"),
        (("experiment",), None, "experiment = None: expected a name"),
        (("status",), "fine", "status = 'fine': expected one of ok, diverged"),
        (("status",), [], r"status = \[\]: expected one of"),
        (("metrics",), [], r"metrics = \[\]: expected an object"),
        (("metrics", "rtn_loss"), "0.1", r"metrics\.rtn_loss = '0\.1': expected a finite number or null"),
        (("metrics", "rtn_loss"), float("inf"), r"metrics\.rtn_loss = inf"),
        (("metrics", "curve"), {"step": [1]}, r"metrics\.curve: expected lists named step, seconds, float, rtn"),
        (("metrics", "curve", "rtn"), [1.0], r"metrics\.curve: expected lists of the same length"),
        (("metrics", "curve", "step", 1), 1, r"metrics\.curve\.step: expected numbers that rise"),
        (("metrics", "curve", "seconds", 1), None, r"metrics\.curve\.seconds: expected finite numbers"),
        (("config", "method"), {}, r"config\.method = \{\}: expected a name, or an object"),
        (("config", "method", "weight"), "large", r"config\.method\.weight = 'large': expected a finite number"),
        (("config", "problem", "d"), 0, r"config\.problem\.d = 0: expected a positive number"),
        (("config", "lr"), "fast", r"config\.lr = 'fast': expected a finite number or null"),
    ],
)
def test_a_value_that_does_not_fit_is_named(path, value, message):
    row = copy.deepcopy(made.train({"name": "lotion"}, 0, 0.1))
    assert schema.checked_row(row) is row
    place = row
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        schema.checked_row(row)


def test_every_row_that_is_stored_here_fits():
    for path in sorted((Path(__file__).parents[1] / "results" / "sweeps").glob("*q*.jsonl.xz")):
        assert read_archive(path)
    assert all(schema.checked_row(row) is row for row in small_rows())


# --- the command on damaged content ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows():
    return small_rows()


@pytest.fixture
def lotion(capsys, monkeypatch):
    """Runs the command and says whether it went well: else it must have answered in one line, with status 2."""
    # What is drawn counts; writing pictures takes most of the time.
    monkeypatch.setattr(figures, "save", lambda figure, stem: [stem])

    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(a) for a in arguments])
        _, err = capsys.readouterr()
        assert stopped.value.code in (0, 2)
        if stopped.value.code:
            told = err.strip().splitlines()
            assert len(told) == 1 and told[0].startswith("lotion: "), err
        return stopped.value.code == 0

    return run


JUNK = (None, True, -1, 0, 10**30, 1.5, -1e308, 1e308, "", "x", "../x", "\u2028</script>", [], [None], {}, {"name": "x"}, [[1]])  # fmt: skip


def places(value, path=()):
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places(item, (*path, key))


def damaged(rows, rng):
    """The rows with one to three values removed, renamed or replaced."""
    rows = copy.deepcopy(rows)
    for _ in range(rng.integers(1, 4)):
        row = rows[rng.integers(len(rows))]
        path = (found := [p for p in places(row) if p])[rng.integers(len(found))]
        place = row
        for part in path[:-1]:
            place = place[part]
        match rng.integers(4):
            case 0 if isinstance(place, dict):
                del place[path[-1]]
            case 1 if isinstance(place, dict):
                place[f"{path[-1]}x"] = place.pop(path[-1])
            case _:
                place[path[-1]] = JUNK[rng.integers(len(JUNK))]
    return rows


def commands(store, folder):
    return (
        ("leaderboard", "--store", store, "--output", "json"),
        ("leaderboard", "--store", store, "--tuning"),
        ("report", "--store", store, "--out", folder / "report.html"),
    )


@pytest.mark.parametrize("seed", range(8))
def test_damaged_rows_are_answered_in_one_line(seed, rows, lotion, tmp_path):
    rng = np.random.default_rng(seed)
    path = packed(tmp_path / "a.jsonl.xz", map(json.dumps, damaged(rows, rng)))
    for command in commands(path, tmp_path):
        lotion(*command)


@pytest.mark.parametrize("seed", range(2))
def test_damaged_rows_are_drawn_or_answered_in_one_line(seed, rows, lotion, tmp_path):
    path = packed(tmp_path / "a.jsonl.xz", map(json.dumps, damaged(rows, np.random.default_rng(100 + seed))))
    lotion("figures", "--store", path, "--out", tmp_path / "figures")


def flipped(data, rng, most=4):
    """Bytes with a few of them changed, or cut off."""
    data = bytearray(data)
    if rng.integers(4) == 0:
        return bytes(data[: rng.integers(len(data))])
    for _ in range(rng.integers(1, most)):
        data[rng.integers(len(data))] = rng.integers(256)
    return bytes(data)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A small store: its path, and its bytes."""
    path = tmp_path_factory.mktemp("store") / "a.sqlite"
    with Store(path) as store:
        for row in made.contest(seeds=2, formats=("int4",))[:6]:
            task = Task("e", "final", "train", row["config"], row["seed"])
            store.add(task, Outcome("ok", "", row["metrics"], 1.0, "v", "m"))
    return path, path.read_bytes()


@pytest.mark.parametrize("seed", range(8))
def test_a_store_with_changed_bytes_is_answered_in_one_line(seed, stored, lotion, tmp_path):
    rng = np.random.default_rng(seed)
    path = tmp_path / "a.sqlite"
    path.write_bytes(flipped(stored[1], rng, 40))
    lotion("leaderboard", "--store", path)


@pytest.mark.parametrize("seed", range(8))
def test_an_archive_with_changed_bytes_is_answered_in_one_line(seed, rows, lotion, tmp_path):
    rng = np.random.default_rng(seed)
    text = "".join(json.dumps(row) + "\n" for row in rows[:12]).encode()
    # Changed before packing: the checksum of the packed file would find the rest.
    path = tmp_path / "a.jsonl.xz"
    path.write_bytes(lzma.compress(flipped(text, rng)) if seed % 2 else flipped(lzma.compress(text), rng))
    lotion("leaderboard", "--store", path)


@pytest.mark.parametrize(
    ("column", "value"),
    [("config", "no json"), ("config", "[1]"), ("config", "[" * 100_000), ("metrics", '{"rtn_loss": "x"}'),
     ("metrics", '{"rtn_loss": 1e999}'), ("status", "fine"), ("kind", ""), ("seed", -1)],
)  # fmt: skip
def test_a_damaged_run_of_a_store_is_named(column, value, stored, lotion, tmp_path):
    path = tmp_path / "a.sqlite"
    path.write_bytes(stored[1])
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        key = connection.execute("SELECT key FROM runs WHERE seed = 0 LIMIT 1").fetchone()[0]
        connection.execute(f"UPDATE runs SET {column} = ? WHERE key = ?", (value, key))
    assert not lotion("leaderboard", "--store", path)
    with pytest.raises(ValueError, match=rf"a\.sqlite: run {key} of e \(final\) is damaged"):
        stored_rows(path)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Sources:
    return write_sources(tmp_path_factory.mktemp("report"), with_language=False)


@pytest.mark.parametrize("seed", range(12))
def test_damaged_tables_of_a_report_are_answered_in_one_line(seed, sources, lotion, tmp_path):
    rng = np.random.default_rng(seed)
    theory, benchmarks = tmp_path / "theory", tmp_path / "benchmarks"
    for folder, source in ((theory, sources.theory), (benchmarks, sources.benchmarks)):
        folder.mkdir()
        for file in source.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    files = sorted([*theory.iterdir(), *benchmarks.iterdir()])
    chosen = files[seed % len(files)]
    if chosen.suffix == ".json" and rng.integers(2):
        chosen.write_text(
            json.dumps(damaged([json.loads(chosen.read_text(encoding="utf-8"))], rng)[0]), encoding="utf-8"
        )
    else:
        chosen.write_bytes(flipped(chosen.read_bytes(), rng, 20))
    nothing = packed(tmp_path / "a.jsonl.xz", [])
    lotion("report", "--theory", theory, "--benchmarks", benchmarks, "--store", nothing, "--out", tmp_path / "r.html")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("verify.csv", "a,b\n1\n", "verify.csv is not readable CSV .line 2 has not as many cells"),
        ("verify.csv", "a,b\n1,2\n", "verify.csv, line 2: not a row of lotion verify .'format' is missing"),
        ("verify.csv", "a\n" + "x" * 200_000, "verify.csv is not readable CSV"),
        ("real_losses.csv", "format,layer\nint4,0\n", "line 2: not a row of lotion reproduce .'rtn_relative' is missing"),
        ("summary.json", "[" * 100_000, "summary.json is not JSON"),
        ("summary.json", "[]", "summary.json: expected a JSON object"),
    ],
)  # fmt: skip
def test_a_damaged_table_of_a_report_is_named(name, text, message, sources, tmp_path):
    for file in sources.theory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read(Sources(theory=tmp_path))

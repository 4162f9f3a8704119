"""Rows: selection, order, proofs in their scope, storage, resuming, and the verdict on surprises."""

import csv
import dataclasses
import io
import json
from pathlib import Path

import pytest

import lotion_theory as lt
from lotion_theory import Quantizer
from lotion_theory.formats.catalog import FORMATS
from lotion_theory.theory import symbolic, verification
from lotion_theory.theory.claims import CLAIMS, EVIDENCE
from lotion_theory.theory.verification import (
    NO_FORMAT,
    Row,
    select,
    source_fingerprint,
    summary,
    surprises,
    to_csv,
    to_json,
    verify,
)

QUICK = ("C5", "C16", "C20")
"""Fast claims; none applies to fairy, which therefore has no rows, and one involves no format."""
SMALL = ("int2/absmax", "mxfp4", "fairy")


def run(formats=SMALL, claims=QUICK, evidence=("exhaustive", "property"), processes=1, **options):
    return verify(formats, claims, evidence, processes, **options)


def same(a, b):
    """Equal but for the time it took."""
    return [dataclasses.replace(r, seconds=0) for r in a] == [dataclasses.replace(r, seconds=0) for r in b]


@pytest.fixture(scope="module")
def rows():
    return run(evidence=None)


# --- rows ------------------------------------------------------------------------------------------------------------


def test_rows_are_complete_and_in_order(rows):
    """By claim, then format as given, then evidence; claims that do not apply are absent."""
    ids, names = list(CLAIMS), [*SMALL, NO_FORMAT]
    keys = [(ids.index(r.claim), names.index(r.format), EVIDENCE.index(r.evidence)) for r in rows]
    assert keys == sorted(keys)
    assert {(r.claim, r.format) for r in rows} == {
        ("C5", "int2/absmax"), ("C5", "mxfp4"), ("C16", "int2/absmax"), ("C16", "mxfp4"), ("C20", NO_FORMAT),
    }  # fmt: skip
    for row in rows:
        claim = CLAIMS[row.claim]
        assert (row.title, row.kind) == (claim.title, claim.kind)
        assert (
            row.evidence in EVIDENCE
            and row.verdict in ("holds", "fails")
            and row.expected in ("holds", "fails", "open")
        )
        assert row.checked > 0 and row.seconds >= 0
        if row.evidence != "proved":
            assert row.check in [name for _, name, _ in claim.checks]


def test_selections():
    assert select(None) == list(CLAIMS.values())
    assert [c.id for c in select(["c8"])] == ["C8", "C8b"]
    assert [c.id for c in select(["C18", "C18b"])] == ["C18", "C18b", "C18c"]
    assert [c.id for c in select(["C8b"])] == ["C8b"]
    assert [c.id for c in select(["C1"])] == ["C1"]
    assert {r.evidence for r in run(["int2"], ["C5"], ["exhaustive"])} == {"exhaustive"}
    assert [r.format for r in run(["int2", "int2", "int2/absmax"], ["C16"])] == ["int2", "int2/absmax"]
    assert same(lt.verify(["int2"], ["C16"], ["exhaustive"], 1), run(["int2"], ["C16"], ["exhaustive"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"formats": ["int2", "int99"]}, r"unknown codebook 'int99'; valid: int2"),
        ({"formats": ["int2/nonsense"]}, r"unknown scale 'nonsense'; valid: absmax"),
        ({"claims": ["C1", "C23"]}, r"unknown claim 'C23'; valid: C1, C2"),
        ({"claims": [""]}, r"unknown claim ''"),
        ({"evidence": ["exhaustive", "faith"]}, r"unknown evidence 'faith'; valid: proved, exhaustive, property"),
        ({"processes": 0}, "processes=0"),
        ({"processes": -1}, "processes=-1"),
    ],
)
def test_bad_requests_cost_nothing(options, message, monkeypatch, tmp_path):
    """The error comes before any check runs and before a cache folder is made."""
    monkeypatch.setattr(verification, "_check_format", lambda job: pytest.fail("a check was run"))
    with pytest.raises(ValueError, match=message):
        run(**options, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_nothing_to_check_is_said():
    with pytest.raises(ValueError, match=r"none of the claims C8.* applies to fairy"):
        run(["fairy"], ["C8"])


@pytest.mark.parametrize("evidence", [["exhaustive"], ["exhaustive", "proved"]])
def test_processes_do_not_show(evidence):
    """Two workers give the rows of one, in the same order."""
    options = {"formats": ["int2", "int3"], "claims": ["C16", "C20"], "evidence": evidence}
    calls = []
    parallel = run(**options, processes=2, progress=lambda *a: calls.append(a))
    assert same(run(**options), parallel)
    labels = {label for label, _, _ in calls}
    total = 3 + ("proved" in evidence)
    assert labels == {"int2", "int3", NO_FORMAT, *(["proofs"] if "proved" in evidence else [])}
    assert [(done, whole) for _, done, whole in calls] == [(i + 1, total) for i in range(total)]


# --- proofs ----------------------------------------------------------------------------------------------------------


def named_proofs(monkeypatch):
    """Every proof answers at once, its statement replaced by its scope: only who gets which is looked at here."""
    pytest.importorskip("z3")
    from lotion_theory.theory import smt

    for engine in (symbolic, smt):

        def run_all(claims, engine=engine):
            return [
                (dataclasses.replace(proof, statement=proof.scope), symbolic.Result(True, "", 0.0))
                for claim in claims
                for proof in engine.PROOFS[claim]
            ]

        monkeypatch.setattr(engine, "run_all", run_all)


def test_proofs_stay_in_their_scope(monkeypatch):
    """Attached only where the claim is expected to hold; statements about fixed lattices are no proof of anything that
    includes the scale, and those about grids k s none for a shifted grid."""
    named_proofs(monkeypatch)
    rows = verify(FORMATS, None, ["proved"], 1)
    assert {(r.verdict, r.expected, r.evidence) for r in rows} == {("holds", "holds", "proved")}
    seen = set()
    for row in rows:
        found = set(row.note.split("; "))
        assert found <= set(symbolic.SCOPES)
        assert row.measured == row.theoretical == row.checked > 0
        seen |= found
        if row.format == NO_FORMAT:
            assert found <= {"half", "minifloat"} or not CLAIMS[row.claim].per_format
            continue
        q = Quantizer.parse(row.format)
        assert CLAIMS[row.claim].expected(q) is True and not CLAIMS[row.claim].applies(q)
        assert not q.codebook.is_complex and not found & {"half", "minifloat"}
        if found & {"any", "quadratic", "uniform"}:
            assert q.scale.promise(q.codebook).unbiased and not q.scale.is_drawn
        if "uniform" in found:
            assert q.codebook.step is not None and not q.codebook.unsigned
        if "absmax" in found:
            assert q.scale.name == "absmax"
        if "sr-scale" in found:
            assert q.scale.is_drawn
        if "fixed-scale" in found:
            assert row.claim in ("C5", "C10", "C11", "C12", "C13", "C14") or q.scale.is_frozen
    assert seen == set(symbolic.SCOPES)
    proved = {(r.format, r.claim) for r in rows}
    assert ("int4/absmax/block=32", "C4") in proved and ("mxfp4/sr", "C1") in proved
    # The theory promises these, but no proof here covers them.
    for missing in (("bitnet", "C6"), ("int4full/gauge/block=32", "C6"), ("int4/slack1.1/block=32", "C6"), ("ternary/l2l1", "C4"), ("mxfp4/ceil", "C4")):  # fmt: skip
        assert missing not in proved
    assert "C18" not in {r.claim for r in rows}, "the convergence of descent rests on a cited theorem"


def test_a_failed_proof_is_a_surprise(monkeypatch):
    from lotion_theory import kernels

    monkeypatch.setattr(kernels, "variance", lambda w, lo, hi: (hi - lo) * (hi - lo) / 12)
    found = surprises(verify(["int4"], ["C2"], ["proved"], 1))
    assert found and all(r.evidence == "proved" and "variance" in r.counterexample for r in found)


# --- summaries and storage -------------------------------------------------------------------------------------------


def example(**changes):
    row = Row(
        "int4",
        "C1",
        "unbiased",
        "equality",
        "exhaustive",
        "exact mean",
        1.0,
        1.0,
        0.0,
        "holds",
        "holds",
        "",
        5,
        "",
        0.1,
    )
    return dataclasses.replace(row, **changes)


def test_summary_is_the_three_promises():
    rows = [
        example(),
        example(evidence="property"),
        example(claim="C6", verdict="fails", expected="fails", counterexample="(8, -8)"),
        example(claim="C6", verdict="fails", expected="fails", counterexample="float32 ...", evidence="property"),
        example(claim="C4"),
        example(claim="C8", verdict="fails"),
        example(format=NO_FORMAT, claim="C1"),
        example(format="nf4"),
    ]
    assert summary(rows) == [
        {
            "format": "int4",
            "unbiased": "yes",
            "continuous": "no",
            "continuous: counterexample": "(8, -8)",
            "support fixed": "yes",
        },
        {"format": "nf4", "unbiased": "yes"},
    ]
    # One failing row decides, wherever it stands.
    assert summary([example(), example(verdict="fails", counterexample="x")])[0]["unbiased"] == "no"


@pytest.mark.parametrize(
    ("verdict", "expected", "surprising"),
    [("holds", "holds", False), ("fails", "fails", False), ("holds", "fails", True), ("fails", "holds", True), ("holds", "open", False), ("fails", "open", False)],
)  # fmt: skip
def test_surprises(verdict, expected, surprising):
    row = example(verdict=verdict, expected=expected)
    assert row.surprising is surprising
    assert surprises([row]) == [row] * surprising


def test_json_and_csv_come_back(rows):
    """Every field, floats to the bit, text with commas, quotes, line breaks and Greek letters."""
    rows = [
        *rows,
        example(note='a "quoted", line\nand Σ', measured=0.1 + 0.2, counterexample="7.5 → 7, ⅓", tolerance=5e-324),
    ]
    assert [Row(**r) for r in json.loads(to_json(rows))] == rows
    types = {f.name: f.type for f in dataclasses.fields(Row)}
    read = list(csv.DictReader(io.StringIO(to_csv(rows), newline="")))
    assert [Row(**{k: {"float": float, "int": int}.get(types[k], str)(v) for k, v in r.items()}) for r in read] == rows
    assert json.loads(to_json([])) == []
    assert to_csv([]).splitlines() == [",".join(types)]


# --- cache -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch):
    """The formats that are really checked, as they are checked."""
    jobs = []
    whole = verification._check_format

    def counting(job):
        jobs.append(job[0] or NO_FORMAT)
        return whole(job)

    monkeypatch.setattr(verification, "_check_format", counting)
    return jobs


def stop_after(k):
    def progress(label, done, total):
        if done == k:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("k", [1, 2, 3])
def test_an_interrupted_run_goes_on(k, tmp_path, counted):
    """Formats finished before the interrupt are not checked again, and the rows are those of one whole run."""
    whole = run()
    del counted[:]
    with pytest.raises(KeyboardInterrupt):
        run(cache=tmp_path, progress=stop_after(k))
    first = list(counted)
    assert len(first) == k
    calls = []
    resumed = run(cache=tmp_path, progress=lambda *a: calls.append(a))
    assert counted[k:] == [label for label in (*SMALL, NO_FORMAT) if label not in first]
    assert same(whole, resumed)
    assert [done for _, done, _ in calls] == [1, 2, 3, 4] and {total for _, _, total in calls} == {4}
    # A third run checks nothing.
    del counted[:]
    assert run(cache=tmp_path) == resumed and not counted


def test_a_workers_error_is_not_kept(tmp_path, counted, monkeypatch):
    failing = verification._check_format

    def break_on_fairy(job):
        if job[0] == "fairy":
            raise RuntimeError("broken")
        return failing(job)

    monkeypatch.setattr(verification, "_check_format", break_on_fairy)
    with pytest.raises(RuntimeError, match="broken"):
        run(cache=tmp_path)
    monkeypatch.setattr(verification, "_check_format", failing)
    del counted[:]
    run(cache=tmp_path)
    assert counted == ["fairy", NO_FORMAT]


def test_other_code_claims_or_evidence_do_not_share_a_cache(tmp_path, counted, monkeypatch):
    run(cache=tmp_path)
    del counted[:]
    run(claims=QUICK[:2], cache=tmp_path)
    assert counted == [*SMALL]
    del counted[:]
    run(claims=QUICK[:2], evidence=["exhaustive"], cache=tmp_path)
    assert counted == [*SMALL]
    del counted[:]
    # More formats, though, reuse what is there.
    run(["int2/absmax", "int3"], QUICK[:2], ["exhaustive"], cache=tmp_path)
    assert counted == ["int3"]
    del counted[:]
    original = verification.source_fingerprint
    monkeypatch.setattr(
        verification, "source_fingerprint", lambda *a, extra="": original(*a, extra=extra + "other code")
    )
    run(["int2/absmax"], QUICK[:2], ["exhaustive"], cache=tmp_path)
    assert counted == ["int2/absmax"]


@pytest.mark.parametrize(
    "damage", ["truncated", "empty", "not json", "other fields", "no rows", "a list", "binary", "a folder"]
)
def test_damaged_files_are_done_again(damage, tmp_path, counted):
    whole = run(cache=tmp_path)
    del counted[:]
    (path,) = tmp_path.glob("mxfp4*.json")
    text = path.read_text(encoding="utf-8")
    stored = json.loads(text)
    if damage == "a folder":
        path.unlink()
        path.mkdir()
        with pytest.raises(OSError):
            run(cache=tmp_path)
        return
    if damage == "other fields":
        stored["rows"][0]["colour"] = "blue"
    path.write_bytes(
        {
            "truncated": text[: len(text) // 2].encode(), "empty": b"", "not json": b"rows!", "other fields": json.dumps(stored).encode(),
            "no rows": json.dumps({"fingerprint": stored["fingerprint"]}).encode(), "a list": b"[]", "binary": b"\xff\xfe\x00",
        }[damage]
    )  # fmt: skip
    assert same(whole, run(cache=tmp_path))
    assert counted == ["mxfp4"]
    assert not list(tmp_path.glob("*.partial"))


def test_proofs_are_kept_for_their_formats(tmp_path, monkeypatch):
    """They are as costly as all the rest, and attached to the formats that were asked for."""
    named_proofs(monkeypatch)
    whole = verification._proof_rows
    asked = []
    monkeypatch.setattr(verification, "_proof_rows", lambda names, ids: asked.append(names) or whole(names, ids))
    rows = run(evidence=["proved"], cache=tmp_path)
    assert run(evidence=["proved"], cache=tmp_path) == rows and len(asked) == 1
    more = run([*SMALL, "nf4"], evidence=["proved"], cache=tmp_path)
    assert len(asked) == 2 and {r.format for r in more} > {r.format for r in rows}


def test_every_format_has_a_file_of_its_own(tmp_path):
    store = verification._Cache(tmp_path, ("C1",), ("exhaustive",))
    names = [*FORMATS, NO_FORMAT]
    assert len({str(store._path(n)).lower() for n in names}) == len(names)
    assert all(store._path(n).parent == tmp_path for n in names)


def test_fingerprint_follows_the_code(tmp_path):
    assert source_fingerprint() == source_fingerprint()
    assert source_fingerprint() != source_fingerprint(extra="x")
    module = tmp_path / "a.py"
    module.write_text("x = 1\n")
    before = source_fingerprint(tmp_path)
    assert before != source_fingerprint()
    module.write_text("x = 2\n")
    assert source_fingerprint(tmp_path) != before
    (tmp_path / "notes.txt").write_text("no code")
    module.write_text("x = 1\n")
    assert source_fingerprint(tmp_path) == before
    # Where a line stands counts, and in which file.
    (tmp_path / "b.py").write_text("y = 1\n")
    both = source_fingerprint(tmp_path)
    module.write_text("x = 1\ny = 1\n")
    (tmp_path / "b.py").write_text("")
    assert source_fingerprint(tmp_path) != both
    assert Path(verification.__file__).parents[1].name == "lotion_theory"

"""Run the claims over the formats and collect rows: the theory as a table that a program fills in."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .. import csv_text
from ..files import file_name, write_text
from ..formats.catalog import FORMATS
from ..formats.quantizer import Quantizer
from ..workers import Call, answers, worker_count
from .claims import CLAIMS, EVIDENCE, Claim, Outcome
from .claims.blocks import shared_batches

NO_FORMAT = "any"
"""Format column of claims that involve no number format."""


@dataclass(frozen=True)
class Row:
    """One line of evidence.

    ``verdict``: ``holds`` or ``fails``. ``expected``: what the theory says, ``holds``, ``fails`` or ``open``.
    ``measured`` and ``theoretical``: the two sides at the worst case; ``checked``: the number of cases behind the line.
    """

    format: str
    claim: str
    title: str
    kind: str
    evidence: str
    check: str
    measured: float
    theoretical: float
    tolerance: float
    verdict: str
    expected: str
    counterexample: str
    checked: int
    note: str
    seconds: float

    @property
    def surprising(self) -> bool:
        """Whether the program contradicts the theory: a promised claim fails, or a predicted failure was not found."""
        return self.expected != "open" and self.verdict != self.expected


_VALID = {"evidence": EVIDENCE, "verdict": ("holds", "fails"), "expected": ("holds", "fails", "open")}


def row_of(stored: Mapping[str, Any]) -> Row:
    """The row that was stored as a JSON object or, all values being text, as a line of CSV.

    Raises ValueError naming the field that is missing, unknown or of another kind.
    """
    named = {f.name: str(f.type) for f in fields(Row)}
    for name in (*named, *stored):
        if name not in named or name not in stored:
            raise ValueError(f"{name!r} is {'unknown' if name in stored else 'missing'}")
    found: dict[str, Any] = {}
    for name, sort in named.items():
        value = stored[name]
        try:
            if sort == "str" and not isinstance(value, str):
                raise TypeError
            found[name] = {"str": str, "int": int, "float": float}[sort](value)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{name} = {str(value)[:60]!r} is no {sort}") from None
        if found[name] not in _VALID.get(name, (found[name],)):
            raise ValueError(f"{name} = {value!r}; valid: {', '.join(_VALID[name])}")
    return Row(**found)


def select(claims: Iterable[str] | None) -> list[Claim]:
    """The claims with these ids (all by default); ``C8`` also selects ``C8b``. ValueError lists the ids."""
    if claims is None:
        return list(CLAIMS.values())
    chosen = []
    for name in claims:
        found = [
            c for c in CLAIMS.values() if c.id.lower() == name.lower() or c.id.lower().rstrip("bcd") == name.lower()
        ]
        if not found:
            raise ValueError(f"unknown claim {name!r}; valid: {', '.join(CLAIMS)}")
        chosen += [c for c in found if c not in chosen]
    return chosen


def _evidence(evidence: Iterable[str] | None) -> tuple[str, ...]:
    levels = EVIDENCE if evidence is None else tuple(evidence)
    for level in levels:
        if level not in EVIDENCE:
            raise ValueError(f"unknown evidence {level!r}; valid: {', '.join(EVIDENCE)}")
    return levels


def check(claim: Claim, q: Quantizer | None, evidence: Iterable[str] | None = None) -> list[Row]:
    """Run the checks of one claim on one format (None for claims without a format).

    A claim that one check refutes keeps the refuting rows only: a search that found nothing is then no evidence.
    """
    levels = _evidence(evidence)
    expected = {True: "holds", False: "fails", None: "open"}[True if q is None else claim.expected(q)]
    rows = []
    for level, name, function in claim.checks:
        if level not in levels:
            continue
        start = time.perf_counter()
        outcome: Outcome = function(q)
        if outcome.checked == 0:
            continue
        rows.append(
            Row(
                NO_FORMAT if q is None else str(q), claim.id, claim.title, claim.kind, level, name,
                float(outcome.measured), float(outcome.theoretical), float(outcome.tolerance),
                "holds" if outcome.counterexample is None else "fails", expected,
                outcome.counterexample or "", outcome.checked, outcome.note, round(time.perf_counter() - start, 3),
            )
        )  # fmt: skip
    refuted = [row for row in rows if row.verdict == "fails"]
    if not refuted and expected == "fails" and {level for level, _, _ in claim.checks} - set(levels):
        # The check that finds the failure may be at a level that was not asked for.
        rows = [replace(row, expected="open") for row in rows]
    return refuted or rows


def _check_format(job: tuple[str | None, tuple[str, ...], tuple[str, ...]]) -> list[Row]:
    """All claims on one format, in a worker process."""
    text, ids, levels = job
    q = None if text is None else Quantizer.parse(text)
    rows = []
    with shared_batches():
        for id in ids:
            claim = CLAIMS[id]
            if claim.per_format == (q is None) or (q is not None and claim.applies(q)):
                continue
            rows += check(claim, q, levels)
    return rows


_ON_FIXED_LATTICES = {"C5", "C10", "C11", "C12", "C13", "C14"}


def _scope_covers(scope: str, claim: str, q: Quantizer) -> bool:
    """Whether a proof with this scope says something about a claim on a format (see ``symbolic.SCOPES``)."""
    if q.codebook.is_complex:
        return False
    clean = q.scale.promise(q.codebook).unbiased and not q.scale.is_drawn
    return {
        "any": clean,
        "quadratic": clean,
        # With a real zero point levels are k s + z, not k s.
        "uniform": clean and q.codebook.step is not None and not q.codebook.unsigned,
        "absmax": q.is_absmax,
        "fixed-scale": claim in _ON_FIXED_LATTICES or q.scale.is_frozen,
        "sr-scale": q.scale.is_drawn,
    }.get(scope, False)


def _proof_rows(formats: list[str], ids: tuple[str, ...]) -> list[Row]:
    """Machine proofs, run once each, attached to every format in their scope."""
    from . import symbolic

    claims = [CLAIMS[id] for id in ids]
    engines = [symbolic]
    if find_spec("z3"):
        from . import smt

        engines.append(smt)
    groups: dict[str, list] = {}
    for engine in engines:
        known = [c.id for c in claims if c.id in engine.PROOFS]  # C18 itself rests on a cited theorem: no proof here.
        for proof, result in engine.run_all(known) if known else []:
            groups.setdefault(proof.claim, []).append((proof, result))
    rows = []
    for claim in claims:
        for text in [*formats, NO_FORMAT]:
            q = None if text == NO_FORMAT else Quantizer.parse(text)
            if q is not None and (not claim.per_format or claim.applies(q) or claim.expected(q) is not True):
                continue
            found = [
                (proof, result)
                for proof, result in groups.get(claim.id, [])
                if (
                    _scope_covers(proof.scope, claim.id, q)
                    if q is not None
                    else proof.scope in ("half", "minifloat") or not claim.per_format
                )
            ]
            if not found:
                continue
            proved = sum(r.proved for _, r in found)
            failed = [p.name for p, r in found if not r.proved]
            rows.append(
                Row(
                    text, claim.id, claim.title, claim.kind, "proved",
                    " and ".join(sorted({p.method for p, _ in found})), float(proved), float(len(found)), 0.0,
                    "fails" if failed else "holds", "holds", ", ".join(failed), len(found),
                    "; ".join(p.statement for p, _ in found), round(sum(r.seconds for _, r in found), 3),
                )
            )  # fmt: skip
    return rows


def verify(
    formats: Iterable[str] | None = None,
    claims: Iterable[str] | None = None,
    evidence: Iterable[str] | None = None,
    processes: int | None = 1,
    progress: Callable[[str, int, int], None] | None = None,
    cache: Path | str | None = None,
) -> list[Row]:
    """Check ``claims`` on ``formats`` (all by default) and return the rows, ordered by claim and format.

    ``evidence``: any of ``proved`` (sympy, and z3 where installed), ``exhaustive`` (exact rational laws of small
    blocks; all float16 values) and ``property`` (random and directed blocks in every float type). ``processes``: worker
    processes, None for one per core; with several, a script needs the usual ``if __name__ == "__main__"``.
    ``progress(label, done, total)`` is called after each format. ``cache``: a folder where each format's rows are kept
    as they come, so that an interrupted run goes on where it was; rows made by other code or other numpy versions are
    not reused. Raises ValueError for an unknown format, claim or evidence, before anything is run, and
    ChildProcessError naming the format whose worker process was killed. Workers die with this process, however it dies.
    """
    # A bare string means one name, not its letters.
    formats = [formats] if isinstance(formats, str) else formats
    claims = [claims] if isinstance(claims, str) else claims
    names = list(dict.fromkeys(str(Quantizer.parse(f)) for f in (FORMATS if formats is None else formats)))
    workers = worker_count(processes)
    chosen, levels = select(claims), _evidence(evidence)
    ids = tuple(c.id for c in chosen)
    jobs: list[tuple] = [(name, ids, levels) for name in names]
    if any(not c.per_format for c in chosen):
        jobs.append((None, ids, levels))
    total = len(jobs) + ("proved" in levels)
    rows: list[Row] = []
    store = _Cache(cache, ids, levels) if cache is not None else None
    # Proof rows depend on which formats they are attached to.
    proofs = f"proofs-{hashlib.sha256(repr(names).encode()).hexdigest()[:12]}"
    labels = [job[0] or NO_FORMAT for job in jobs] + [proofs] * ("proved" in levels)
    known = store.known(labels) if store else {}
    jobs = [job for job in jobs if (job[0] or NO_FORMAT) not in known]
    due = "proved" in levels and proofs not in known
    # Closed at once where the loop is left: whoever keeps the exception would keep the workers too.
    with closing(_run(jobs, names, ids, due, workers)) as fresh:
        for done, (label, part) in enumerate(itertools.chain(known.items(), fresh), 1):
            rows += part
            if store and label not in known:
                store.keep(proofs if label == "proofs" else label, part)
            if progress is not None:
                progress(label, done, total)
    if not rows:
        raise ValueError(
            f"none of the claims {', '.join(ids)} applies to {', '.join(names)} at the level {', '.join(levels)}"
        )
    order = {name: i for i, name in enumerate([*names, NO_FORMAT])}
    rank = {id: i for i, id in enumerate(ids)}
    # Within a claim the checks keep the order of their definition: exact ones, with simple counterexamples, first.
    place = {(c.id, name): i for c in chosen for i, (_, name, _) in enumerate(c.checks)}
    rows.sort(
        key=lambda r: (rank[r.claim], order[r.format], EVIDENCE.index(r.evidence), place.get((r.claim, r.check), -1))
    )
    return rows


def _run(
    jobs: list[tuple], names: list[str], ids: tuple[str, ...], proofs_due: bool, workers: int
) -> Generator[tuple[str, list[Row]], None, None]:
    proofs: list[Call] = [("proofs", _proof_rows, (names, ids))] if proofs_due else []
    calls: list[Call] = [(job[0] or NO_FORMAT, _check_format, (job,)) for job in jobs]
    workers = min(workers, len(calls) + len(proofs))
    if workers <= 1 or len(jobs) <= 1:
        return answers([*calls, *proofs], 1)
    # Proofs take longest, then drawn scales, whose laws have two lattices.
    calls.sort(key=lambda call: call[0] == NO_FORMAT or not Quantizer.parse(call[0]).scale.is_drawn)
    return answers([*proofs, *calls], workers)


def _version(name: str) -> str | None:
    """Version of an installed distribution, None if it is absent."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def source_fingerprint(*folders: Path, extra: str = "") -> str:
    """A hash of this package's code, of any other ``folders`` of code, and of the libraries that decide the rows."""
    # Proofs need sympy and z3, bfloat16 rows ml_dtypes: their presence decides which rows there are.
    versions = {name: _version(name) for name in ("numpy", "scipy", "sympy", "z3-solver", "ml_dtypes")}
    digest = hashlib.sha256(repr((extra, versions)).encode())
    for folder in (Path(__file__).parents[1], *folders):
        for source in sorted(folder.rglob("*.py")):
            data = source.read_bytes()
            # Names and lengths too: moving a line from one file to the next is a change.
            digest.update(f"{source.relative_to(folder)}:{len(data)}:".encode() + data)
    return digest.hexdigest()


class _Cache:
    """Rows of finished formats on disk, one file each, written whole or not at all."""

    def __init__(self, folder: Path | str, ids: tuple[str, ...], levels: tuple[str, ...]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.fingerprint = source_fingerprint(extra=repr((ids, levels)))

    def _path(self, label: str) -> Path:
        return self.folder / f"{file_name(label.replace('/', '_').replace('=', ''))}.json"

    def known(self, labels: list[str]) -> dict[str, list[Row]]:
        found = {}
        for label in labels:
            try:
                stored = json.loads(self._path(label).read_text(encoding="utf-8"))
                if stored["fingerprint"] == self.fingerprint:
                    found[label] = [row_of(row) for row in stored["rows"]]
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                continue
        return found

    def keep(self, label: str, rows: list[Row]) -> None:
        path = self._path(label)
        stored = {"fingerprint": self.fingerprint, "rows": [asdict(r) for r in rows]}
        write_text(path, json.dumps(stored, ensure_ascii=False))


def summary(rows: Iterable[Row]) -> list[dict[str, str]]:
    """Per format the three promises, unbiased (C1), continuous (C6) and support fixed (C4), with a counterexample each
    where the program found one."""
    table: dict[str, dict[str, str]] = {}
    for row in rows:
        column = {"C1": "unbiased", "C6": "continuous", "C4": "support fixed"}.get(row.claim)
        if column is None or row.format == NO_FORMAT:
            continue
        line = table.setdefault(row.format, {"format": row.format})
        if row.verdict == "fails":
            line[column] = "no"
            # Rows come in order of evidence: the exact one, with the simplest counterexample, first.
            line.setdefault(f"{column}: counterexample", row.counterexample)
        else:
            line.setdefault(column, "yes")
    return list(table.values())


def to_json(rows: Iterable[Row]) -> str:
    """The rows as a JSON array of objects, one line each."""
    return "[\n" + ",\n".join(json.dumps(asdict(r), ensure_ascii=False) for r in rows) + "\n]\n"


def to_csv(rows: Iterable[Row]) -> str:
    """The rows as CSV with a header line; text as :func:`.csv_text.cell` writes it."""
    return csv_text.to_csv([f.name for f in fields(Row)], map(asdict, rows))


def surprises(rows: Iterable[Row]) -> list[Row]:
    """Rows in which program and theory disagree; a predicted failure counts as found if any row of its claim did."""
    return [row for row in rows if row.surprising]

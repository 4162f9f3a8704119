"""Rows of finished runs in one SQLite file: written by one sweep at a time, readable while it runs."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lotion_theory.files import lock

from ..documents import canonical
from .export import export_rows
from .schema import checked_row
from .task import STATUSES, Outcome, Task

SCHEMA_VERSION = 2
"""Rows of schema 1 have no checksum; such a file is read as it is, and gets the column when it is written to."""
_COLUMNS = (
    "experiment", "phase", "key", "kind", "config", "seed", "status", "message", "seconds", "metrics", "attempts",
    "version", "machine", "finished",
)  # fmt: skip
_STORED = (*_COLUMNS, "digest")
_SCHEMA = f"""
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE runs (
    experiment TEXT NOT NULL, phase TEXT NOT NULL, key TEXT NOT NULL, kind TEXT NOT NULL, config TEXT NOT NULL,
    seed INTEGER NOT NULL, status TEXT NOT NULL, message TEXT NOT NULL, seconds REAL NOT NULL, metrics TEXT NOT NULL,
    attempts INTEGER NOT NULL, version TEXT NOT NULL, machine TEXT NOT NULL, finished TEXT NOT NULL,
    digest TEXT, PRIMARY KEY (experiment, phase, key)
) STRICT;
CREATE INDEX runs_key ON runs (key);
INSERT INTO meta VALUES ('format', 'lotion sweep'), ('schema', '{SCHEMA_VERSION}');
"""
_ADD = f"""
INSERT INTO runs ({", ".join(_STORED)}) VALUES ({", ".join("?" * len(_STORED))})
ON CONFLICT DO UPDATE SET {", ".join(f"{c} = excluded.{c}" for c in _STORED if c != "attempts")},
    attempts = runs.attempts + excluded.attempts
"""
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "beegfs", "gpfs", "ceph", "afs", "9p", "fuse.sshfs"}


class Store:
    """The runs in the SQLite file ``path``, which is made if it is absent and ``readonly`` is not set.

    One process at a time may write: :meth:`writing` takes an exclusive lock on the file ``<path>.lock``, which ends
    with the process however it ends. Reading needs no lock. A committed row survives the death of the process and the
    loss of power. Runs that were not committed are as if they had never been.
    Raises ValueError if the file is not a sweep's, FileNotFoundError if it is absent and ``readonly``,
    IsADirectoryError for a folder.
    """

    def __init__(self, path: Path | str, readonly: bool = False) -> None:
        self.path = Path(path)
        self.readonly = readonly
        self._writing = False
        if sqlite3.sqlite_version_info < (3, 37):
            raise OSError(f"this Python's SQLite is {sqlite3.sqlite_version}; sweeps need 3.37 or later")
        if readonly and not self.path.exists():
            raise FileNotFoundError(f"{self.path}: no such file")
        if self.path.is_dir():
            raise IsADirectoryError(f"{self.path}: is a folder, not a file")
        if not readonly:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._explained():
            self._connection = self._open()
        try:
            with self._explained():
                self._prepare()
        except BaseException:
            self.close()
            raise

    def _open(self) -> sqlite3.Connection:
        if not self.readonly:
            return sqlite3.connect(self.path, timeout=60, isolation_level=None)
        address = self.path.absolute().as_uri()
        connection = sqlite3.connect(f"{address}?mode=ro", timeout=60, isolation_level=None, uri=True)
        try:
            connection.execute("SELECT 1 FROM sqlite_master").fetchone()
        except sqlite3.OperationalError:
            connection.close()
            # In a folder that cannot be written to SQLite cannot make the files it shares with a writer.
            if os.access(self.path.parent, os.W_OK) or Path(f"{self.path}-wal").exists():
                raise
            connection = sqlite3.connect(f"{address}?immutable=1", isolation_level=None, uri=True)
        return connection

    def _prepare(self) -> None:
        """Make the tables of a new file; refuse a file with other tables."""
        if not self.readonly and not self._tables():
            self._connection.execute("BEGIN IMMEDIATE")
            with self._transaction():
                if not self._tables():  # Nobody else was faster.
                    for statement in _SCHEMA.split(";")[:-1]:
                        self._connection.execute(statement)
        if not {"meta", "runs"} <= self._tables():
            raise ValueError(f"{self.path}: not a sweep's results file")
        meta = dict(self._connection.execute("SELECT name, value FROM meta").fetchall())
        if meta.get("format") != "lotion sweep":
            raise ValueError(f"{self.path}: not a sweep's results file")
        if meta.get("schema") not in ("1", str(SCHEMA_VERSION)):
            raise ValueError(
                f"{self.path}: results of schema {meta.get('schema')}; this version reads up to {SCHEMA_VERSION}"
            )

    def _selected(self) -> str:
        """The columns to read; one that a file of an older schema lacks is null."""
        there = {name for _, name, *_ in self._connection.execute("PRAGMA table_info(runs)")}
        return ", ".join(name if name in there else f"NULL AS {name}" for name in _STORED)

    def _upgrade(self) -> None:
        """Give a file of schema 1 the column of checksums; its rows stay without."""
        if "NULL AS digest" in self._selected():
            self._connection.execute("BEGIN IMMEDIATE")
            with self._transaction():
                self._connection.execute("ALTER TABLE runs ADD COLUMN digest TEXT")
                self._connection.execute("UPDATE meta SET value = ? WHERE name = 'schema'", (str(SCHEMA_VERSION),))

    def _set_journal(self) -> None:
        # Write-ahead logging lets others read during a sweep, but needs memory shared between all who open the file.
        mode = "DELETE" if on_network(self.path) else "WAL"
        # Refused while somebody reads at this very moment; either mode is safe, so that the next writer may try again.
        with contextlib.suppress(sqlite3.OperationalError):
            self._connection.execute(f"PRAGMA journal_mode={mode}").fetchone()
        # A commit waits for the disk: some 10 ms, for all runs that finished meanwhile together.
        self._connection.execute("PRAGMA synchronous=FULL")

    def _tables(self) -> set[str]:
        return {name for (name,) in self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Commit the transaction that was begun, or undo it if the block or the commit fails."""
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # A full disk has undone it already.
                self._connection.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """SQLite's errors as OSError (the disk, a lock, a lack of rights) or ValueError (the file), naming the file."""
        try:
            yield
        except (sqlite3.ProgrammingError, sqlite3.IntegrityError):
            raise
        except sqlite3.OperationalError as error:
            raise OSError(f"{self.path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{self.path}: not a readable results file: {error}") from error

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only writer for the length of the block; may be nested.

        Raises BlockingIOError naming the file and the process that writes it, ValueError if the file is damaged.
        """
        if self._writing:
            yield
            return
        if self.readonly:
            raise ValueError(f"{self.path}: opened for reading only")
        # Kept apart from the results: closing any other handle of a SQLite file would drop SQLite's own locks on it.
        with lock(f"{self.path}.lock", f"{self.path}: another sweep is writing to it"):
            self._writing = True
            try:
                with self._explained():
                    damage = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]
                    if damage != "ok":
                        raise ValueError(f"{self.path}: not a readable results file: {damage}")
                    self._set_journal()
                    self._upgrade()
                yield
            finally:
                self._writing = False

    def add(self, task: Task, outcome: Outcome, attempts: int = 1) -> dict[str, Any]:
        """Commit the outcome of a run, in place of an earlier one of the same task; returns its row.

        ``attempts``: how often it was started; added to those of an earlier row.
        """
        return self.add_all([(task, outcome, attempts)])[0]

    def add_all(self, items: Iterable[tuple[Task, Outcome, int]]) -> list[dict[str, Any]]:
        """Commit several ``(task, outcome, attempts)`` together, all or none; returns their rows."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        rows: list[tuple] = []
        for task, outcome, attempts in items:
            if outcome.status not in STATUSES:
                raise ValueError(f"status={outcome.status!r}: must be one of {', '.join(STATUSES)}")
            rows.append(
                (
                    task.experiment, task.phase, task.key, task.kind, canonical(task.config), task.seed,
                    outcome.status, outcome.message, float(outcome.seconds), canonical(outcome.metrics), attempts,
                    outcome.version, outcome.machine, now,
                )
            )  # fmt: skip
        self._write(lambda: self._connection.executemany(_ADD, [(*row, _digest(row)) for row in rows]))
        return [_parsed(row) for row in rows]

    def _write(self, action: Callable[[], sqlite3.Cursor]) -> sqlite3.Cursor:
        with self.writing(), self._explained():
            self._connection.execute("BEGIN IMMEDIATE")
            with self._transaction():
                return action()

    def copy(self, tasks: Iterable[Task]) -> list[dict[str, Any]]:
        """Answer tasks from finished runs of the same key under another experiment or phase; returns the new rows.

        Only runs that ended ok or diverged are copied, with the version, machine and date of the original.
        """
        found = []
        with self._explained():
            for task in tasks:
                row = self._connection.execute(
                    f"SELECT {self._selected()} FROM runs WHERE key = ? AND (experiment, phase) <> (?, ?)"
                    " AND status IN ('ok', 'diverged') ORDER BY finished DESC LIMIT 1",
                    (task.key, task.experiment, task.phase),
                ).fetchone()
                if row is not None:
                    self._read(row)  # A damaged one gets no checksum that says it is sound.
                    copied = (task.experiment, task.phase, *row[2:-1])
                    found.append((*copied, _digest(copied)))
        if found:
            self._write(lambda: self._connection.executemany(_ADD, found))
        return [self._read(row) for row in found]

    def rows(
        self,
        experiment: str | None = None,
        phase: str | None = None,
        kind: str | None = None,
        status: str | Sequence[str] | None = None,
    ) -> list[dict[str, Any]]:
        """Stored runs as dictionaries, all by default, ordered by experiment, phase, kind, configuration and seed.

        The order does not depend on when the runs finished. ``config`` and ``metrics`` are parsed.
        """
        statuses = [status] if isinstance(status, str) else status
        for name in statuses or ():
            if name not in STATUSES:
                raise ValueError(f"status={name!r}: must be one of {', '.join(STATUSES)}")
        terms, values = ["1"], []
        for column, value in (("experiment", experiment), ("phase", phase), ("kind", kind)):
            if value is not None:
                terms.append(f"{column} = ?")
                values.append(value)
        if statuses is not None:
            terms.append(f"status IN ({', '.join('?' * len(statuses))})")
            values += statuses
        with self._explained():
            query = (
                f"SELECT {self._selected()} FROM runs WHERE {' AND '.join(terms)}"
                " ORDER BY experiment, phase, kind, config, seed"
            )
            return [self._read(row) for row in self._connection.execute(query, values)]

    def _read(self, row: tuple) -> dict[str, Any]:
        """A stored row with its checksum, parsed; ValueError naming the run that is damaged."""
        *values, digest = row
        try:
            if digest is not None and digest != _digest(values):
                raise ValueError("its values do not fit their checksum")
            return checked_row(_parsed(values))
        except (ValueError, TypeError, RecursionError) as error:
            name = dict(zip(_STORED, row, strict=True))
            where = f"run {name['key']} of {name['experiment']} ({name['phase']})"
            raise ValueError(f"{self.path}: {where} is damaged ({error})") from None

    def done(self, experiment: str, phase: str, retry_failed: bool = False) -> set[str]:
        """Keys of the tasks that need no run: all stored ones; if ``retry_failed``, those that ended ok or diverged."""
        query = "SELECT key FROM runs WHERE experiment = ? AND phase = ?"
        if retry_failed:
            query += " AND status IN ('ok', 'diverged')"
        with self._explained():
            return {key for (key,) in self._connection.execute(query, (experiment, phase))}

    def export(self, path: Path | str) -> None:
        """Write all runs to a .csv or .parquet file, one column per setting and metric, such as ``config.problem.d``.

        Lists are written as JSON text. Parquet needs polars.
        """
        export_rows(self.rows(), Path(path), [c for c in _COLUMNS if c not in ("config", "metrics")])

    def close(self) -> None:
        """Close the file; the object cannot be used any more."""
        if hasattr(self, "_connection"):
            self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _digest(row: Sequence[Any]) -> str:
    """Checksum of a row's values, but for how often its run was started, which grows while the others stay."""
    values = (str(value) for name, value in zip(_COLUMNS, row, strict=True) if name != "attempts")
    return hashlib.sha256("\0".join(values).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _parsed(row: Sequence[Any]) -> dict[str, Any]:
    named = dict(zip(_COLUMNS, row, strict=True))
    return {**named, "config": json.loads(named["config"]), "metrics": json.loads(named["metrics"])}


def on_network(path: Path) -> bool:
    """Whether ``path`` lies on a network file system, as far as Linux says; False where that is not known."""
    try:
        told = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    mounts = [line.split() for line in told.splitlines()]
    folder = path.resolve().parent
    found = [(len(m[1]), m[2]) for m in mounts if folder.is_relative_to(m[1].replace("\\040", " "))]
    return max(found, default=(0, ""))[1] in _NETWORK

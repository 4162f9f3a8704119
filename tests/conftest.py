"""Settings that hold for every test: one thread per process, the hypothesis profiles, and signals that are not ignored.

``default`` runs the same examples everywhere, so that a failure is about the code and not about luck; ``explore`` runs
other and more examples at every call, ``exhaustive`` 2,000 per property. ``HYPOTHESIS_PROFILE`` names the profile.
"""

import atexit
import gc
import os
import shutil
import signal
import tempfile
from pathlib import Path

# Set before numpy or torch is imported, here or in the worker processes that inherit it: several workers with several
# threads each are slower than one thread each, and the order of a threaded sum is not reproducible.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

# Hugging Face's libraries read where their cache is when they are imported; the home may be none that can be written.
if "HF_HOME" not in os.environ:
    os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="lotion-tests-hf-")
    atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402
from hypothesis.database import DirectoryBasedExampleDatabase  # noqa: E402
from hypothesis.internal.conjecture import providers  # noqa: E402

# No deadline and no check for slow generation: both measure time, and time on a shared machine is not a property of
# the code (numba compiles in the first call). No database: an example stored by an earlier run would be run as well.
settings.register_profile(
    "default",
    deadline=None,
    max_examples=50,
    derandomize=True,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "explore",
    parent=settings.get_profile("default"),
    max_examples=200,
    derandomize=False,
    database=DirectoryBasedExampleDatabase(Path(__file__).parents[1] / ".hypothesis" / "examples"),
)
settings.register_profile("exhaustive", parent=settings.get_profile("explore"), max_examples=2000)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE") or "default"
settings.load_profile(PROFILE)

if PROFILE == "default":
    # hypothesis also draws constants of the project's modules, of those that this process happens to have imported:
    # examples would depend on which tests ran before, and on whether the checkout lies in a folder called "tests".
    providers._get_local_constants = lambda: providers._local_constants


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Tests and modules are there until the end: looking for garbage among them, time and again, finds none."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


# Their tests share what takes seconds to get: frameworks, compiled loops, a browser. First, each of them stays with one of
# several workers, and none is still running when the others have nothing left.
FIRST = (
    "test_training_recipes", "test_training_compile", "test_report_browser", "test_docs", "test_descent",
    "test_mutations_descent", "test_trainers_rivals", "test_oracles", "test_oracles_exact", "test_sweep_kinds",
    "test_mutations_sweep",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(FIRST)))


@pytest.fixture
def plain_signals():
    """The signals that end a process do so, here and in the processes that a test starts.

    A background job of a shell, or of nohup, starts with some of them ignored, and passes that on.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in numbers[1:]:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@pytest.fixture
def store(tmp_path):
    """An empty store of a sweep's runs."""
    from testbeds.sweep.store import Store

    with Store(tmp_path / "runs.db") as store:
        yield store


@pytest.fixture
def lotion(capsys, monkeypatch):
    """Runs the command; returns exit status, standard output and standard error."""
    from testbeds import cli

    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return stopped.value.code, out, err

    return run

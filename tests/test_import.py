"""Importing the package must stay light: heavy and optional packages are imported by the functions that need them."""

import json
import subprocess
import sys
from pathlib import Path

LAZY = {"torch", "numba", "sympy", "matplotlib", "z3"}


def modules_after(statement: str) -> set[str]:
    """Return the top-level modules loaded in a fresh interpreter that ran ``statement``."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(name.partition('.')[0] for name in sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_core_import_leaves_optional_packages_alone():
    loaded = modules_after("import lotion_theory")
    assert "lotion_theory" in loaded
    assert not loaded & LAZY


def test_core_does_not_import_the_test_beds():
    assert "testbeds" not in modules_after("import lotion_theory")


def test_probe_sees_imports():
    # Guards the two tests above against a probe that always comes back empty.
    assert "sympy" in modules_after("import sympy")


def test_the_core_says_that_it_has_types():
    """PEP 561: type checkers read the annotations of an installed package only where this file is."""
    import lotion_theory

    assert (Path(lotion_theory.__file__).parent / "py.typed").exists()

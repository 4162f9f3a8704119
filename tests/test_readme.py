"""The README tells the truth: its snippets run, and its numbers are those of the stored rows."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)


def publisher():
    spec = importlib.util.spec_from_file_location("publish", ROOT / "scripts" / "publish.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("snippet", SNIPPETS, ids=[s.strip().splitlines()[-1][:40] for s in SNIPPETS])
def test_snippets_run(snippet):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(snippet, "README.md", "exec"), {"__name__": "readme"})
    assert printed.getvalue().strip()


def test_there_are_snippets():
    assert len(SNIPPETS) == 5


def test_numbers_are_those_of_the_stored_rows():
    text = README.read_text()
    assert publisher().filled(text) == text


def test_linked_files_exist():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text()):
        assert (ROOT / target).exists(), target

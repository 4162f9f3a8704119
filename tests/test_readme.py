"""The README tells the truth: its snippets run, and its numbers are those of the stored rows."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from functools import cache
from pathlib import Path

import pytest

import lotion_theory

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)


@cache
def publisher():
    """The program that fills the pages; it reads the stored rows once."""
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
    assert len(SNIPPETS) == 1


@pytest.mark.parametrize("page", publisher().PAGES)
def test_numbers_are_those_of_the_stored_rows(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert publisher().filled(text) == text


def test_every_section_stands_on_one_page():
    made = publisher()
    found = [name for page in made.PAGES for name in made.marked((ROOT / page).read_text(encoding="utf-8"))]
    assert sorted(found) == sorted(made.SECTIONS)


@pytest.mark.parametrize("page", publisher().PAGES)
def test_linked_files_exist(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        assert ((ROOT / page).parent / target).exists(), target


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize(
    ("page", "pattern"), [("CITATION.cff", r"^version: (.*)$"), ("docs/about/cite.md", r"version = \{(.*)\}")]
)
def test_the_version_is_that_of_the_package(page, pattern):
    """What cites the toolkit cannot import it."""
    assert re.findall(pattern, (ROOT / page).read_text(encoding="utf-8"), re.M) == [lotion_theory.__version__]

"""The documentation: every snippet runs, the site builds without a warning and without a network, and no name is missing."""

import importlib
import os
import re
import shlex
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.inventory import InventoryFile

from testbeds.cli import Reproduce, main
from testbeds.lm.commands import Prepare, Train
from testbeds.sweep.commands import Figures, Leaderboard, Sweep
from tests import docs_pages

ROOT = Path(__file__).resolve().parent.parent
PUBLIC = ("lotion_theory", "lotion_theory.training", "lotion_theory.export")
# Two packages that take ten seconds each to import.
SLOW = {"guide/frameworks.md"}
NOT_RUN = {
    "guide/language-models.md": 2, "guide/own-loop.md": 1, "guide/paper.md": 2, "guide/sweeps.md": 2,
    "guide/tuning.md": 1, "index.md": 1,
}  # fmt: skip
# Commands that the pages describe and the command line does not have.
PLANNED = {"tune"}
WITH_SNIPPETS = [page for page in docs_pages.PAGES if any(b.runs for b in docs_pages.blocks(page))]


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A folder in which a reader tries things: the stored results beside, one process of a group, quiet libraries."""
    (tmp_path / "results").symlink_to(ROOT / "results")
    monkeypatch.chdir(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


@pytest.mark.parametrize("page", [pytest.param(p, marks=[pytest.mark.slow] * (p in SLOW)) for p in WITH_SNIPPETS])
def test_snippets_run(page, reader):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert docs_pages.run_page(page) == sum(
            b.runs and b.language in ("python", "bash", "yaml") for b in docs_pages.blocks(page)
        )


def test_few_blocks_are_not_run_and_they_are_counted():
    counts = {page: sum(not b.runs for b in docs_pages.blocks(page)) for page in docs_pages.PAGES}
    assert {page: count for page, count in counts.items() if count} == NOT_RUN


def not_run_commands():
    """The arguments of ``lotion`` in blocks that are not run, behind torchrun too."""
    for page in NOT_RUN:
        for block in docs_pages.blocks(page):
            for words in block.commands if block.language == "bash" and not block.runs else ():
                if "testbeds.cli" in words:
                    yield words[words.index("testbeds.cli") + 1 :]
                elif words[0] == "lotion":
                    yield words[1:]


def test_commands_that_are_not_run_are_valid(monkeypatch):
    """Their options parse; the commands themselves are replaced."""
    seen = []
    for command in (Train, Prepare, Sweep, Leaderboard, Figures, Reproduce):
        monkeypatch.setattr(command, "run", lambda self, console: seen.append(type(self)) or 0)
    for arguments in not_run_commands():
        if arguments[0] not in PLANNED:
            with pytest.raises(SystemExit) as stopped:
                main(arguments)
            assert stopped.value.code == 0, shlex.join(arguments)
    assert set(seen) == {Train, Prepare, Sweep, Leaderboard, Figures, Reproduce}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site, and what the build complained about."""
    out = tmp_path_factory.mktemp("docs")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", out / "doctrees", "docs", out / "html"],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=600,
    )  # fmt: skip
    return out / "html", done


def test_the_site_builds_without_a_warning(site):
    html, done = site
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (html / "index.html").exists()


def test_every_public_name_is_in_the_reference_and_has_a_docstring(site):
    inventory = InventoryFile.loads((site[0] / "objects.inv").read_bytes(), uri="")
    known = {name for kind in inventory.data.values() for name in kind}
    for module in PUBLIC:
        package = importlib.import_module(module)
        assert package.__doc__
        for name in package.__all__:
            assert f"{module}.{name}" in known, f"{module}.{name} is not in the reference"
            thing = getattr(package, name)
            if callable(thing):
                assert thing.__doc__, f"{module}.{name} has no docstring"
            else:
                documented = {
                    n for m in list(sys.modules) if m.startswith(f"{module}.")
                    if getattr(sys.modules[m], name, None) is thing
                    for _, n in ModuleAnalyzer.for_module(m).find_attr_docs()
                }  # fmt: skip
                assert name in documented, f"{module}.{name} has no docstring"


def test_pages_ask_for_nothing_from_elsewhere(site):
    """No script, style, font or picture from another host: links in the text are all that leaves the site."""
    loads = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=\"((?:https?:)?//[^\"]+)\"")
    for page in site[0].rglob("*.html"):
        assert not loads.findall(page.read_text(encoding="utf-8")), page.name
    for style in site[0].rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", style.read_text(encoding="utf-8")), style.name

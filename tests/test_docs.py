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

from lotion_theory.formats import codebooks, scale_protocol
from testbeds.cli import main
from testbeds.commands import command
from tests import docs_pages

ROOT = Path(__file__).resolve().parent.parent
PUBLIC = ("lotion_theory", "lotion_theory.training", "lotion_theory.export", "lotion_theory.sources")
# Two packages that take ten seconds each to import.
SLOW = {"guide/frameworks.md"}
NOT_RUN = {
    "guide/language-models.md": 2, "guide/own-loop.md": 1, "guide/paper.md": 2, "guide/sweeps.md": 2,
    "guide/tuning.md": 1, "index.md": 1, "about/tests.md": 2,
}  # fmt: skip
# What a page or a style loads by itself from another host; links in the text are not that.
LOADED = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=\"((?:https?:)?//[^\"]+)\"")
STYLED = re.compile(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//")
WITH_SNIPPETS = [page for page in docs_pages.PAGES if any(b.runs for b in docs_pages.blocks(page))]


def public_names():
    """The public names of the packages, each behind its package."""
    return [f"{module}.{name}" for module in PUBLIC for name in importlib.import_module(module).__all__]


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A folder in which a reader tries things: the stored results beside, one process of a group, quiet libraries."""
    (tmp_path / "results").symlink_to(ROOT / "results")
    # What a page registers is forgotten after it.
    monkeypatch.setattr(codebooks, "_OWN", dict(codebooks._OWN))
    monkeypatch.setattr(scale_protocol, "_RULES", dict(scale_protocol._RULES))
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
    classes = [command(n) for n in ("train", "tune", "prepare", "sweep", "leaderboard", "figures", "reproduce")]
    for one in classes:
        monkeypatch.setattr(one, "run", lambda self, console: seen.append(type(self)) or 0)
    for arguments in not_run_commands():
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 0, shlex.join(arguments)
    assert set(seen) == set(classes)


@pytest.mark.slow
def test_the_site_builds_and_is_complete(tmp_path):
    """One test, so that parallel workers build the site once: no warning, no missing name, nothing from elsewhere."""
    html = tmp_path / "html"
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", tmp_path / "doctrees", "docs", html],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=900,
    )
    assert (done.returncode, done.stderr) == (0, "")
    inventory = InventoryFile.loads((html / "objects.inv").read_bytes(), uri="")
    known = {name for kind in inventory.data.values() for name in kind}
    missing = [name for name in public_names() if name not in known]
    assert not missing, f"not in the reference: {', '.join(missing)}"
    assert len(list(html.rglob("*.html"))) > len(docs_pages.PAGES)
    for page in html.rglob("*.html"):
        assert not LOADED.findall(page.read_text(encoding="utf-8")), page.name
    for style in html.rglob("*.css"):
        assert not STYLED.search(style.read_text(encoding="utf-8")), style.name


@pytest.mark.parametrize("path", public_names())
def test_every_public_name_has_a_docstring(path):
    module, _, name = path.rpartition(".")
    package = importlib.import_module(module)
    thing = getattr(package, name)
    assert package.__doc__
    if callable(thing):
        assert thing.__doc__
        return
    # Data: a text below the assignment, in whichever module makes it.
    makers = [m for n, m in sys.modules.items() if n.startswith(f"{module}.") and getattr(m, name, None) is thing]
    documented = {n for maker in makers for _, n in ModuleAnalyzer.for_module(maker.__name__).find_attr_docs()}
    assert name in documented

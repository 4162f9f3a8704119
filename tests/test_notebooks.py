"""Notebooks: they run from their source, stored pairs hold the same cells with outputs, and nothing of a machine in them."""

import importlib.util
import json
import re
import sys
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("jupytext")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("ipywidgets")
new_output = pytest.importorskip("nbformat.v4").new_output

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("notebook_script", ROOT / "scripts" / "notebooks.py")
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)
SOURCES = script.sources()
MOST_BYTES = 400_000
MOST_PICTURE = 100_000
HERE = (ROOT, Path.home(), Path(sys.prefix), Path(tempfile.gettempdir()))
# Absolute paths, addresses of objects, terminal colours.
NOISE = re.compile(
    "|".join([*(re.escape(f"{path}/") for path in HERE), r"(?<![\w.:/])/(?:home|usr|opt|var|Users)/", r"[A-Z]:\\\\",
              r"\bat 0x[0-9a-f]{6,}", r"\x1b\["])
)  # fmt: skip


def stored(path):
    return json.loads(path.with_suffix(".ipynb").read_text(encoding="utf-8"))


def text_of(cell):
    return "".join(cell["source"])


def outputs(notebook):
    return [output for cell in notebook["cells"] for output in cell.get("outputs", [])]


def test_there_are_eight():
    assert [path.name[:2] for path in SOURCES] == [f"{n:02}" for n in range(1, 9)]


@pytest.mark.slow
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_runs_from_its_source(path):
    done = script.execute(script.read_source(path))  # raises where a cell fails
    kinds = {kind for output in outputs(done) for kind in output.get("data", {})}
    assert {"image/png", "text/markdown"} <= kinds
    assert not any("widget" in kind for kind in kinds), "sliders belong into cells tagged live"
    assert not NOISE.search(json.dumps(done, ensure_ascii=False))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_pair_is_in_sync(path):
    source, pair = script.read_source(path), stored(path)
    assert [(c.cell_type, c.source) for c in source.cells] == [(c["cell_type"], text_of(c)) for c in pair["cells"]]
    assert [c["id"] for c in pair["cells"]] == [c.id for c in source.cells]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_opens_with_a_question_and_a_picture_and_ends_with_what_is_not_known(path):
    first, second, *_, last = stored(path)["cells"]
    assert text_of(first).startswith("# ") and text_of(first).count("**Question:**") == 1
    assert any("image/png" in output.get("data", {}) for output in second["outputs"])
    assert "## What is not known\n" in text_of(last) and last["cell_type"] == "markdown"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_stored_outputs_are_complete_small_and_clean(path):
    pair, file = stored(path), path.with_suffix(".ipynb")
    assert file.stat().st_size < MOST_BYTES
    assert NOISE.search(file.read_text(encoding="utf-8")) is None
    assert set(pair["metadata"]) == {"kernelspec", "jupytext"}
    code = [c for c in pair["cells"] if c["cell_type"] == "code"]
    assert [c["execution_count"] for c in code] == list(range(1, len(code) + 1)), "run in order, in a fresh kernel"
    for output in outputs(pair):
        assert output["output_type"] in ("execute_result", "display_data", "stream")
        # base64 has four characters for three bytes
        assert len(output.get("data", {}).get("image/png", "")) * 3 / 4 < MOST_PICTURE


def test_names_are_found_or_refused():
    assert [p.name[:2] for p in script.sources(["03", "01_what"])] == ["03", "01"]
    with pytest.raises(ValueError, match="no notebook '99'; valid: 01_"):
        script.sources(["99"])


def test_noise_is_stripped():
    notebook = script.read_source(SOURCES[0])
    code = next(c for c in notebook.cells if c.cell_type == "code")
    live = next(c for c in notebook.cells if "live" in c.metadata.get("tags", []))
    output = {"output_type": "display_data", "metadata": {}}
    code.metadata["execution"] = {"iopub.status.busy": "2026-01-01"}
    code.outputs = [
        {**output, "data": {"image/png": "x", "text/plain": "<Image at 0x7f0000000000>"}},
        {"output_type": "stream", "name": "stderr", "text": "a warning"},
    ]
    live.outputs = [{**output, "data": {"application/vnd.jupyter.widget-view+json": {}}}]
    notebook.metadata["widgets"] = {"state": {}}
    cleaned = script.cleaned(notebook)
    assert "widgets" not in cleaned.metadata and "execution" not in code.metadata
    assert code.outputs == [{**output, "data": {"image/png": "x"}}] and live.outputs == []


def test_text_is_taken_over_without_executing_and_code_is_not(tmp_path):
    source, pair = tmp_path / "01_a.py", tmp_path / "01_a.ipynb"
    source.write_text("# %% [markdown]\n# old\n\n# %%\n1 + 1\n")
    with pytest.raises(ValueError, match="does not exist"):
        script.with_outputs(script.read_source(source), pair)
    first = script.read_source(source)
    first.cells[1].outputs = [new_output("stream", text="2")]
    first.cells[1].execution_count = 1
    pair.write_text(script.written(first))
    source.write_text(source.read_text().replace("old", "new"))
    second = script.with_outputs(script.read_source(source), pair)
    assert second.cells[0].source == "new" and second.cells[1].outputs == first.cells[1].outputs
    source.write_text(source.read_text().replace("1 + 1", "1 + 2"))
    with pytest.raises(ValueError, match="other code"):
        script.with_outputs(script.read_source(source), pair)

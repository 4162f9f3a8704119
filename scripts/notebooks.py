"""Execute the notebooks and write their pairs: ``python scripts/notebooks.py [NAME ...]``.

Every ``notebooks/NN_name.py`` (jupytext, ``py:percent``) is the source; ``NN_name.ipynb`` beside it holds the same cells
with outputs. The .ipynb is written anew from the source: same cells, ids by position, no timestamps, no widget state.
``--check`` executes without writing; ``--text`` takes over changed text without executing, and is refused where code
changed. Needs the extra ``notebooks``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from lotion_theory.files import write_text

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks"
TIMEOUT = 1800
"""Seconds a single cell may take."""
LIVE = "live"
"""Tag of cells whose output needs a running kernel (sliders): their output is not stored."""
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def sources(names: list[str] | None = None) -> list[Path]:
    """The sources, in order; ``names``: stems or their beginnings. ValueError, listing them all, for one that is none."""
    every = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
    chosen = []
    for name in names or []:
        stem = Path(name).stem
        found = [path for path in every if path.stem.startswith(stem)]
        if not found:
            raise ValueError(f"no notebook {name!r}; valid: {', '.join(path.stem for path in every)}")
        chosen += [path for path in found if path not in chosen]
    return chosen or every


def read_source(path: Path) -> Any:
    """The notebook of a source, without outputs; ids of cells are their numbers."""
    import jupytext

    notebook = jupytext.read(path, fmt="py:percent")
    notebook.metadata = {"kernelspec": KERNEL, "jupytext": {"formats": "ipynb,py:percent"}}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells, 1):
        cell.id = f"cell-{number:02}"
    return notebook


def execute(notebook: Any) -> Any:
    """The notebook, run in a fresh kernel of this interpreter in ``notebooks/`` on one thread, cleaned of noise.

    Raises nbclient's CellExecutionError, which shows the cell, if one fails.
    """
    from jupyter_client.kernelspec import NATIVE_KERNEL_NAME
    from nbclient import NotebookClient

    inherited = os.environ.get("PYTHONPATH")
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT,
        # Resolved to this interpreter, whatever kernels are registered on the machine.
        kernel_name=NATIVE_KERNEL_NAME,
        resources={"metadata": {"path": str(FOLDER)}},
        record_timing=False,
    )
    client.execute(
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *([inherited] if inherited else [])]),
            "OMP_NUM_THREADS": "1",
        }
    )
    return cleaned(notebook)


def cleaned(notebook: Any) -> Any:
    """Without widget state, timestamps, warnings on standard error, and what only a running kernel can show."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata.pop("language_info", None)
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.metadata.pop("execution", None)
        live = LIVE in cell.metadata.get("tags", [])
        kept = [] if live else [o for o in cell.outputs if o.get("name") != "stderr"]
        for output in kept:
            # The text form of a picture or a table is the address of an object.
            if len(output.get("data", {})) > 1:
                output["data"].pop("text/plain", None)
        cell.outputs = kept
    return notebook


def with_outputs(notebook: Any, pair: Path) -> Any:
    """The notebook with the outputs stored in ``pair``; ValueError if code was changed since, or there is no pair."""
    import nbformat

    if not pair.exists():
        raise ValueError(f"{pair.name} does not exist; execute the notebook first")
    old = [cell for cell in nbformat.read(pair, 4).cells if cell.cell_type == "code"]
    new = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [cell.source for cell in old] != [cell.source for cell in new]:
        raise ValueError(f"{pair.name} holds other code than its source; execute the notebook instead of --text")
    for cell, with_output in zip(new, old, strict=True):
        cell.outputs, cell.execution_count = with_output.outputs, with_output.execution_count
    return notebook


def written(notebook: Any) -> str:
    """The text of an .ipynb file: keys in order, one line at the end."""
    import nbformat

    return json.dumps(json.loads(nbformat.writes(notebook)), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Execute the notebooks that are named, or all; the exit status."""
    parser = argparse.ArgumentParser(description="Execute notebooks and write their .ipynb files.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="e.g. 03 or 03_formats; default: all")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--check", action="store_true", help="execute, write nothing")
    way.add_argument("--text", action="store_true", help="take over changed text, execute nothing")
    options = parser.parse_args(arguments)
    try:
        chosen = sources(options.names)
    except ValueError as error:
        parser.error(str(error))
    from nbclient.exceptions import CellExecutionError

    failed = []
    for path in chosen:
        begin = time.perf_counter()
        pair = path.with_suffix(".ipynb")
        try:
            notebook = with_outputs(read_source(path), pair) if options.text else execute(read_source(path))
        except (CellExecutionError, ValueError) as error:
            print(error, file=sys.stderr)
            failed.append(path.stem)
            continue
        text = written(notebook)
        if not options.check:
            write_text(pair, text)
        print(f"{path.stem}: {time.perf_counter() - begin:.1f} s, {len(text) / 1024:.0f} KiB", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

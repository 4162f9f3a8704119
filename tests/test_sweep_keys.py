"""The keys of stored runs: every preset plans the same runs as ever, and finds those of the stored results done."""

import hashlib
from pathlib import Path

import pytest

from testbeds.sweep.config import load, presets
from testbeds.sweep.plan import plan
from testbeds.sweep.results import stored_rows

STORED = Path(__file__).parent.parent / "results" / "sweeps"
PLANNED = {
    "curvature": (346, "b7527d951ffe59d9a31a68485de89610412e143a7bf495f2092fc3f90009b360"),
    "lm": (193, "48e6244e6c394860a3c70a523cfeed08e9046eb55eba7c36f1b86c98a5c5cfeb"),
    "lm-quick": (18, "7cec1b7a4ebe3ff4af4758bc8a953b36e5924f5ac9303588f238f8a84efc1f9f"),
    "paper": (12250, "8f0b930dc67e94c4b4619a92cfe7000b3a9201e69c55c315ae9325469a81c360"),
    "quantize": (141, "4d6aa1d0d306830e1c56e50a90b42325de25b4c5ae02c629a8c615e34f40997b"),
    "quick": (604, "9adab6250010680af282ec0b0f197d92c6d3fdba93453d3978ff97b415cb07de"),
}
"""By preset how many runs can be named before any has been done, and a hash of their experiments, phases and keys."""


def test_no_preset_is_left_out():
    assert set(PLANNED) == set(presets())


@pytest.mark.parametrize("name", PLANNED)
def test_planned_runs_keep_their_keys(name):
    tasks = plan(load(name), [])
    lines = "\n".join(" ".join(task.name) for task in tasks)
    assert (len(tasks), hashlib.sha256(lines.encode()).hexdigest()) == PLANNED[name]


@pytest.mark.parametrize("path", sorted(STORED.glob("*.jsonl.xz")), ids=lambda path: path.name.split(".")[0])
def test_stored_runs_are_found_done(path):
    """With the stored rows at hand their runs are among those of the preset, which may have others still to be done."""
    rows = stored_rows(path)
    stored = {(row["experiment"], row["phase"], row["key"]) for row in rows}
    tasks = plan(load(path.name.split(".")[0]), rows)
    assert {task.name for task in tasks} >= stored and len(stored) == len(rows)

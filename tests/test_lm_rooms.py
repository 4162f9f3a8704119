"""The rooms of the language models: imports go from measuring to the loop, and from there to model and text, never back."""

import ast
from pathlib import Path

import pytest

LM = Path(__file__).resolve().parents[1] / "testbeds" / "lm"
BELOW = {"text": set(), "model": set(), "loop": {"text", "model"}, "measure": {"text", "model", "loop"}}


def imported(path: Path) -> set[str]:
    """What the file imports of ``testbeds.lm``, by the room or the module beside the rooms; of every depth of its code."""
    package = ("testbeds", "lm", *path.relative_to(LM).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) + 1 - node.level]] if node.level else []
            base += node.module.split(".") if node.module else []
            targets = [[*base, alias.name] for alias in node.names]
        else:
            continue
        found |= {target[2] for target in targets if target[:2] == ["testbeds", "lm"] and len(target) > 2}
    return found


@pytest.mark.parametrize("room", BELOW)
def test_imports_go_one_way(room):
    files = sorted((LM / room).rglob("*.py"))
    assert len(files) > 5
    for path in files:
        assert imported(path) <= BELOW[room] | {room}, path


def test_the_probe_sees_imports():
    assert {"loop", "model"} <= imported(LM / "runs.py") and {"model", "text", "loop"} <= imported(
        LM / "loop" / "train.py"
    )

"""Task files of lm-evaluation-harness can run Python code: what does is refused, unless the file is trusted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...documents import read_text

STANDARD = "tag:yaml.org,2002:"
CURE = "pass --allow-code if you trust it"


def check_task_file(path: Path, trusted: tuple[Path, ...] = ()) -> None:
    """ValueError naming file, line and key of what would run code, in a task's YAML file and those it names.

    That is ``!function`` and other tags of its own, ``class``, ``trust_remote_code``, data sets of pickles
    (``pandas``), and metrics that the harness does not have and would fetch as code. Files in the folders ``trusted``
    may hold all of it.
    """
    import yaml
    from lm_eval.api import metrics  # noqa: F401  fills the registry
    from lm_eval.api.registry import metric_registry

    def look(file: Path, seen: set[Path]) -> None:
        file = file.resolve()
        if file in seen or any(folder in file.parents for folder in trusted):
            return
        seen.add(file)
        try:
            root = yaml.compose(read_text(file), yaml.SafeLoader)
        except yaml.YAMLError as error:
            raise ValueError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
        for key, node in _values(root):
            place = f"{file}, line {node.start_mark.line + 1}"
            if not node.tag.startswith(STANDARD) or node.tag.startswith(f"{STANDARD}python"):
                raise ValueError(f"{place}: {key}: {node.tag} {node.value} runs Python code; {CURE}")
            runs = (
                key in ("class", "hf_evaluate", "trust_remote_code") and str(node.value).lower() not in ("false", "no"),
                key == "dataset_path" and node.value == "pandas",
                key == "metric" and isinstance(node.value, str) and node.value not in metric_registry,
            )
            if any(runs):
                raise ValueError(f"{place}: {key}: {node.value} may run Python code; {CURE}")
            other = file.parent / node.value if isinstance(node.value, str) else file
            if other.suffix in (".yaml", ".yml") and other.is_file():
                look(other, seen)

    look(path, set())


def _values(root: Any) -> Iterator[tuple[str, Any]]:
    """Every node of a YAML tree (names of settings included), once, with the name it stands under."""
    todo, seen = [("", root)], set()
    while todo:
        name, node = todo.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        yield name, node
        for child in node.value if not isinstance(node.value, str) else ():
            if isinstance(child, tuple):
                todo += [("", child[0]), (str(child[0].value), child[1])]
            else:
                todo.append((name, child))


@contextmanager
def sandboxed(wanted: bool) -> Iterator[None]:
    """In the block, if ``wanted``, the harness's templates reach no Python internals."""
    if not wanted:
        yield
        return
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    plain = utils.env
    safe = SandboxedEnvironment(
        loader=plain.loader, undefined=plain.undefined, keep_trailing_newline=plain.keep_trailing_newline
    )
    safe.filters.update(plain.filters)
    utils.env = safe
    try:
        yield
    finally:
        utils.env = plain

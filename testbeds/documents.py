"""Text, JSON and YAML: files that users hand in, where whatever is wrong is told in a sentence, and files written."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lotion_theory.files import write_text

MOST_VALUES = 1_000_000
"""Values of a YAML document with its aliases written out: a few lines of aliases can stand for billions."""
TEXT, MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


def fault(error: Exception) -> str:
    """What is wrong with a document whose reading ended in ``error``, in words that are not Python's."""
    if isinstance(error, KeyError):
        return f"no {error} in it"
    return "a value of another type in it" if isinstance(error, TypeError | AttributeError | IndexError) else str(error)


def regular_file(path: Path) -> Path:
    """``path``, if a plain file is there.

    Raises FileNotFoundError where nothing is, and ValueError for a folder, pipe, device or socket: opening those can
    block for ever.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"no such file: {path}") from None
    except ValueError as error:  # a zero byte in the name
        raise ValueError(f"{str(path)!r} cannot be the name of a file: {error}") from None
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe, a device or a socket"
        raise ValueError(f"{path} is {what}, not a file")
    return path


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without byte order mark.

    Raises ValueError naming the file for other encodings, FileNotFoundError and ValueError as :func:`regular_file`.
    """
    data = regular_file(path).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None


def read_json(path: Path) -> Any:
    """The value in a JSON file; ValueError naming the file if it holds none."""
    text = read_text(path)
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{path} is not valid JSON: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None


def read_yaml(source: Path | str, where: str = "configuration") -> dict[str, Any]:
    """The mapping in a YAML file, or in a text that errors call ``where``.

    Raises FileNotFoundError; ValueError naming the file for what is no YAML, no mapping, a name given twice or that is
    no text, aliases that contain themselves; ImportError without PyYAML.
    """
    if isinstance(source, Path):
        source, where = read_text(source), str(source)
    found = yaml_value(source, where)
    if not isinstance(found, dict):
        there = "nothing" if found is None else short(found)
        raise ValueError(f"{where}: expected settings such as 'steps: 100', not {there}")
    return found


def yaml_value(text: str, where: str) -> Any:
    """The one value, of any kind, that a YAML text stands for; raises as :func:`read_yaml`."""
    try:
        import yaml
    except ImportError:
        raise ImportError("YAML needs PyYAML: pip install 'lotion-theory[lm]'") from None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, {})
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = "" if mark is None else f"line {mark.line + 1}: "
        raise ValueError(f"{where}: not valid YAML: {place}{error.problem or error.context}") from None
    except RecursionError:
        raise ValueError(f"{where}: not valid YAML: nested too deeply") from None
    # Values that only look like dates or carry a wrong tag raise errors of many kinds.
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None


def _check(node: Any, sizes: dict[int, int | None]) -> int:
    """Number of values under a node with aliases written out.

    Raises ValueError for too many, for a node within itself, and for a name that is no text or is given twice.
    """
    if isinstance(node.value, str):
        return 1
    line = node.start_mark.line + 1
    if id(node) in sizes:
        known = sizes[id(node)]
        if known is None:
            raise ValueError(f"line {line}: an alias that contains itself")
        return known
    sizes[id(node)] = None
    total = 1
    names = set()
    for child in node.value:
        if isinstance(child, tuple):
            name, child = child
            if name.tag not in (TEXT, MERGE):
                raise ValueError(f"line {name.start_mark.line + 1}: a name must be text; put it in quotes")
            if name.tag == TEXT and name.value in names:
                raise ValueError(f"line {name.start_mark.line + 1}: {name.value!r} is given twice")
            names.add(name.value)
        total += _check(child, sizes)
    if total > MOST_VALUES:
        raise ValueError(f"more than {MOST_VALUES:,} values with aliases written out")
    sizes[id(node)] = total
    return total


def first_line(error: BaseException) -> str:
    """What an error of another library says, without what follows its first line; its type if it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def short(value: Any, most: int = 60) -> str:
    """``value`` as Python writes it, cut after ``most`` characters."""
    try:
        text = repr(value)
    except ValueError:
        text = "an integer of thousands of digits"  # Python refuses to write it.
    return text if len(text) <= most else f"{text[: most - 3]}..."


def canonical(value: Any) -> str:
    """JSON text that is the same for equal values: sorted keys, floats as ``repr`` writes them, no NaN."""
    return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))


def write_json(path: Path, value: Any) -> None:
    """Write ``value``, all or nothing; OSError naming the file if it cannot be written."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data with the SHA-256 of all of it, as :func:`unsealed` wants it."""
    return {**content, "sha256": _digest(content)}


def unsealed(found: Mapping[str, Any]) -> dict[str, Any]:
    """What was :func:`sealed`, or has no SHA-256, as earlier versions wrote none; ValueError where it was changed,
    TypeError for what is no mapping."""
    if not isinstance(found, Mapping):
        raise TypeError("sealed data is a mapping")
    content = dict(found)
    if content.pop("sha256", None) not in (None, _digest(content)):
        raise ValueError("its SHA-256 is another")
    return content


def _digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of plain data, the same before and after JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def yaml_text(value: Any) -> str:
    """``value`` (dicts, lists, numbers, strings) as YAML that :func:`read_yaml` reads back."""
    try:
        import yaml
    except ImportError:
        raise ImportError("configuration files need PyYAML: pip install 'lotion-theory[lm]'") from None
    return yaml.safe_dump(value, sort_keys=False)

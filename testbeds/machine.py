"""Where, and with which code, a number was computed."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from pathlib import Path

import lotion_theory
from lotion_theory.workers import cores


def processor() -> str:
    """The processor's name as Linux gives it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


@cache
def machine() -> str:
    """Processor and cores in words, such as ``"AMD EPYC 7B13, 2 cores"``."""
    return f"{processor()}, {cores()} cores"


@cache
def code_version() -> str:
    """Version, hash of the code of both packages and its libraries, and git commit where the code is a checkout.

    Such as ``"0.1.0 source=9c2752e8ad7e commit=d53704058c60"``. Computed once per process.
    """
    from lotion_theory.theory.verification import source_fingerprint

    folder = Path(__file__).resolve().parent
    commit = _commit(folder)
    return f"{lotion_theory.__version__} source={source_fingerprint(folder)[:12]}" + (
        f" commit={commit[:12]}" if commit else ""
    )


def _commit(folder: Path) -> str | None:
    """HEAD of the repository whose root holds the package ``folder``; None without git or outside a checkout."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "--show-toplevel", "HEAD"],
            capture_output=True, check=True, timeout=10,
        ).stdout.splitlines()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    # An environment inside somebody else's repository: that commit says nothing about this code.
    if len(answer) != 2 or Path(os.fsdecode(answer[0])).resolve() != folder.parent:
        return None
    return answer[1].decode("ascii")

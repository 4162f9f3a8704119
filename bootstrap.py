#!/usr/bin/env python3
"""Set up and run the project with nothing but Python: make .venv, install pinned packages, run the command.

This file parses on every Python since 2.7, so that a too old one gets a sentence; the rest is scripts/_bootstrap.py.
"""

import os
import sys

MINIMUM_PYTHON = (3, 11)


def python_problem(version):
    """Return a sentence saying why ``version`` (a sequence, major first) is too old, or None if it will do."""
    if tuple(version[:2]) >= MINIMUM_PYTHON:
        return None
    found = ".".join(str(part) for part in version[:3])
    needed = ".".join(str(part) for part in MINIMUM_PYTHON)
    sentence = "this project needs Python {0} or newer, and this is Python {1}: try python{0} bootstrap.py"
    return sentence.format(needed, found)


if __name__ == "__main__":
    if python_problem(sys.version_info):
        sys.exit("bootstrap: " + python_problem(sys.version_info))
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "scripts"))
    import _bootstrap

    sys.exit(_bootstrap.run_command(sys.argv[1:]))

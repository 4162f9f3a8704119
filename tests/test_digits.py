"""The embedded digits: their loader refuses anything else, and the script that rebuilds them checks what it writes."""

import hashlib
import importlib.util
import lzma
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbeds.data import DIGITS_FILE, DIGITS_SHA256, load_digits
from tests.strategies import examples

ROOT = Path(__file__).resolve().parents[1]


def _script():
    spec = importlib.util.spec_from_file_location("rebuild_digits", ROOT / "scripts" / "rebuild_digits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


rebuild = _script()
PACKED = DIGITS_FILE.read_bytes()


def test_digits_are_the_documented_table():
    images, labels = load_digits()
    provenance = (DIGITS_FILE.parent / "PROVENANCE.md").read_text(encoding="utf-8")
    table = lzma.decompress(PACKED)
    assert hashlib.sha256(table).hexdigest() == DIGITS_SHA256 == rebuild.TABLE_SHA256
    assert all(pin in provenance for pin in (DIGITS_SHA256, "264,712", "CC BY 4.0", "10.24432/C50P49"))
    assert (len(table), len(PACKED) < 60_000) == (264_712, True)
    assert images.shape == (1797, 64)
    assert images.dtype == np.float64
    assert (images.min(), images.max()) == (0, 1)
    np.testing.assert_array_equal(np.bincount(labels), [178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
    rows = np.column_stack([images * 16, labels]).astype(int).tolist()
    assert rebuild.table(rows) == table


def test_digits_are_those_of_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = load_digits()
    theirs = datasets.load_digits()
    np.testing.assert_array_equal(images * 16, theirs.data)
    np.testing.assert_array_equal(labels, theirs.target)


def test_missing_digits_are_named_with_the_cure(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.xz are missing: .*rebuild_digits"):
        load_digits(tmp_path / "gone.xz")


# The format's own checks leave no byte without cover.
@examples(15)
@given(st.integers(0, len(PACKED) - 1), st.integers(0, 7))
def test_any_flipped_bit_is_refused(tmp_path_factory, position, bit):
    path = tmp_path_factory.mktemp("digits") / "flipped.xz"
    path.write_bytes(PACKED[:position] + bytes([PACKED[position] ^ 1 << bit]) + PACKED[position + 1 :])
    with pytest.raises(ValueError, match=r"flipped\.xz are damaged .*rebuild_digits"):
        load_digits(path)


@pytest.mark.parametrize("content", [b"", PACKED[:-1], lzma.compress(b"0,1\n"), b"plain"])
def test_other_content_is_refused(tmp_path, content):
    path = tmp_path / "other.xz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.xz are damaged .*rebuild_digits"):
        load_digits(path)


def test_script_makes_the_file_again_and_refuses_other_tables(tmp_path, capsys):
    table, output = tmp_path / "table.csv", tmp_path / "out.xz"
    arguments = ["--table", str(table), "--output", str(output)]
    table.write_bytes(lzma.decompress(PACKED).replace(b"\n", b"\r\n"))
    rebuild.main(arguments)
    assert lzma.decompress(output.read_bytes()) == lzma.decompress(PACKED)
    assert "out.xz" in capsys.readouterr().out
    output.unlink()
    table.write_text("1,2\n3,4\n")
    with pytest.raises(SystemExit, match=r"the table has the digest .*nothing was written"):
        rebuild.main(arguments)
    table.write_text("1,two\n")
    with pytest.raises(SystemExit, match=r"table\.csv is not a readable table of integers"):
        rebuild.main(arguments)
    with pytest.raises(SystemExit, match="is not a readable table"):
        rebuild.main(["--table", str(tmp_path / "gone.csv")])
    assert not output.exists()


def test_script_takes_the_table_from_scikit_learn_or_says_how_to_do_without(monkeypatch):
    class Module:
        @staticmethod
        def load_digits():
            class Digits:
                data, target = np.array([[0.0, 16.0], [3.0, 4.0]]), np.array([7, 9])

            return Digits

    monkeypatch.setitem(__import__("sys").modules, "sklearn", Module)
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", Module)
    assert rebuild.table(rebuild.from_package()) == b"0,16,7\n3,4,9\n"
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(SystemExit, match=r"scikit-learn is not installed.*--table"):
        rebuild.from_package()

"""Pictures and tables for notebooks."""

import io

import numpy as np
import pytest

from testbeds.notebook import picture, table
from testbeds.results.statistics import Interval

pytest.importorskip("IPython")


def figure():
    from testbeds.figures.style import new_figure

    figure, axes = new_figure(1, 1, 2.0, 3.0)
    axes[0, 0].imshow(np.arange(400.0).reshape(20, 20))
    return figure


def test_picture_is_small_described_and_the_same_every_time():
    first, second = picture(figure(), "a ramp"), picture(figure(), "a ramp")
    assert first.data == second.data and first.data.startswith(b"\x89PNG")
    assert first.alt == "a ramp"
    for noise in (b"Software", b"tIME", b"matplotlib"):
        assert noise not in first.data
    plain = io.BytesIO()
    figure().savefig(plain, format="png", dpi=110)
    assert len(first.data) < len(plain.getvalue())


def test_picture_needs_a_description():
    with pytest.raises(ValueError, match="alt=' '"):
        picture(figure(), " ")


def test_table():
    rows = [("a|b", 1.23456, 12345, True, None), ("c", 2e-9, 1, False, Interval(2.0, 1.0, 3.0, 5))]
    header, rule, first, second = table(["|x|", "y", "n", "ok", "ci"], rows).data.splitlines()
    assert header == "| \\|x\\| | y | n | ok | ci |"
    assert rule == "| --- | ---: | ---: | --- | ---: |"
    assert first == "| a\\|b | 1.23 | 12,345 | yes |  |"
    assert second == "| c | 2e-09 | 1 | **no** | 2 [1, 3] |"
    assert table(["x"], []).data.splitlines() == ["| x |", "| --- |"]


def test_table_takes_numpy_numbers():
    assert table(["x"], [[np.float64(0.125)]]).data.splitlines()[1:] == ["| ---: |", "| 0.125 |"]
    assert table(["n"], [[np.int64(7000)]]).data.splitlines()[1:] == ["| ---: |", "| 7,000 |"]


def test_table_refuses_ragged_rows():
    with pytest.raises(ValueError, match="a row has 1 cells, the header 2"):
        table(["x", "y"], [["a"]])

"""Figures: what they show is what the arrays say, files repeat to the byte, and every kind of format can be drawn."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

import lotion_theory as lt
from lotion_theory import landscape as ls
from testbeds import figures
from testbeds.figures import gallery, style
from testbeds.figures.gallery import DoubleWell, rotated_quadratic, unit_step


def line(fields=("rtn_straight_through", "lotion", "cage")) -> ls.Slice1D:
    q = lt.Quantizer.parse("int4").with_scale(1.0)
    loss = lt.Quadratic(np.array([2.0]), np.array([0.3]))
    return ls.slice_1d(loss, np.array([0.0]), np.array([1.0]), q, (-1.2, 1.8), 41, fields=fields)


def plane(**options) -> ls.Slice2D:
    loss, _ = rotated_quadratic(0)
    return ls.slice_2d(loss, np.zeros(2), tuple(np.eye(2)), "int3", (-0.4, 1.4), 25, **options)


def drawn(figure, label: str) -> np.ndarray:
    """The y values of the line of that label in the figure's axes."""
    return next(
        line.get_ydata() for ax in figure.axes for line in ax.get_lines() if str(line.get_label()).startswith(label)
    )


def test_lines_hold_the_slices_arrays():
    s = line()
    figure = figures.figure_1d([s, s], ["one", "two"])
    for label, values in {
        "float loss": s.loss, "raw quantized": s.quantized, "smoothed": s.smoothed, "second order": s.second_order,
        "STE (QAT)": s.fields["rtn_straight_through"], "LOTION": s.fields["lotion"], "CAGE": s.fields["cage"],
    }.items():  # fmt: skip
        assert np.array_equal(drawn(figure, label), values), label
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == ["(a) one", "(b) two", "(c) slopes followed", "(d) slopes followed"]
    assert all(ax.get_xlabel() for ax in figure.axes[2:]) and figure.axes[0].get_ylabel() == "loss"


def test_cage_states_its_strength():
    names = [text.get_text() for legend in figures.figure_1d(line()).legends for text in legend.get_texts()]
    assert any("CAGE" in name and "10" in name for name in names)


def test_the_path_of_the_minimum_reaches_the_lattice():
    # For h = 2, w* = .3, step 1 the minimum of the blend is (w* - λ/2) / (1 - λ), until it meets level 0 at λ = .6.
    q, loss = lt.Quantizer.parse("int4").with_scale(1.0), lt.Quadratic(np.array([2.0]), np.array([0.3]))
    lambdas = [k / 10 for k in range(11)]
    s = ls.slice_1d(loss, np.array([0.0]), np.array([1.0]), q, (-0.5, 1.2), 1701, lambdas=lambdas)
    path = figures.figure_lambda(s).axes[1].get_lines()[-1].get_ydata()
    expected = [max(0.0, (0.3 - k / 2) / (1 - k)) if k < 0.6 else 0.0 for k in lambdas]
    # Half the spacing of the grid, plus the width that is cut out around a kink.
    assert np.abs(path - expected).max() <= 0.001 / 2 + 1e-7


def test_surfaces_share_one_scale():
    s = plane()
    figure = figures.figure_2d(s, rays=ls.codes.values(lt.Quantizer.parse("int3"), 2), title="int3")
    images = [ax.images[0] for ax in figure.axes[:3]]
    for image, values in zip(images, (s.loss, s.quantized, s.smoothed), strict=True):
        assert np.array_equal(image.get_array(), values)
        assert image.get_clim() == images[0].get_clim()


def test_fields_minima_and_trajectories_draw():
    loss, shape = rotated_quadratic(0)
    s = plane(fields=("float", "lotion", "cage", "lotion_detached"), field_points=9)
    best = ls.global_minimum_quantized(loss, "int3", shape)
    figure = figures.figure_fields(s, best.point)
    assert [ax.get_title(loc="left")[:3] for ax in figure.axes[:4]] == ["(a)", "(b)", "(c)", "(d)"]
    found = ls.local_minima_moving(loss, "int3")
    figure = figures.figure_minima([s, s], [found, found], ["left", "right"])
    assert np.array_equal(drawn(figure, "global minimum"), found.points[:1, 1])
    assert np.array_equal(drawn(figure, "local minimum"), found.points[1:, 1])
    runs = [
        ls.trajectory(loss, np.array([1.2, 0.6]), "int3", m, 20, 0.01) for m in ("float", "straight_through", "lotion")
    ]
    figure = figures.figure_trajectories(s, runs, (best.point, best.value), window=1)
    assert np.array_equal(drawn(figure, "LOTION"), runs[2].quantized)  # a median over one step is the step


def test_files_repeat_to_the_byte_across_processes(tmp_path):
    code = (
        "import sys, numpy as np, lotion_theory as lt\n"
        "from lotion_theory import landscape as ls; from testbeds import figures\n"
        "q = lt.Quantizer.parse('int4').with_scale(1.0); loss = lt.Quadratic(np.array([2.0]), np.array([0.3]))\n"
        "s = ls.slice_1d(loss, np.array([0.0]), np.array([1.0]), q, (-1.2, 1.8), 41, fields=['lotion'])\n"
        "figures.save(figures.figure_1d(s), sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "there" / "figure")], check=True)
    figures.save(figures.figure_1d(line(["lotion"])), tmp_path / "here" / "figure")
    for kind in ("png", "pdf", "svg"):
        here, there = (tmp_path / place / f"figure.{kind}" for place in ("here", "there"))
        assert here.stat().st_size > 1000 and here.read_bytes() == there.read_bytes(), kind


def test_files_hold_no_date(tmp_path):
    figure, _ = style.new_figure(1, 1, 1.0)
    for path in style.save(figure, tmp_path / "empty", dpi=20):
        content = path.read_bytes()
        assert not any(mark in content for mark in (b"CreationDate", b"dc:date", b"date:create"))


def test_saving_keeps_dots_in_names_and_leaves_global_settings_alone(tmp_path):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    paths = figures.save(figures.figure_1d(line(())), tmp_path / "deep" / "absmax7.5", dpi=50)
    assert [p.name for p in paths] == ["absmax7.5.png", "absmax7.5.pdf", "absmax7.5.svg"] and all(
        p.exists() for p in paths
    )
    assert dict(mpl.rcParams) == before


def test_matplotlib_is_imported_late():
    code = "import testbeds.figures, sys; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_looks_differ_in_more_than_colour():
    for looks in (style.LOSSES, style.METHODS):
        dashes = [str(look.dash) for name, look in looks.items() if not name.startswith("cage_at")]
        assert len({look.marker for look in looks.values()}) == len(looks)
        # Grey printing: at most two lines share a dash, and then one of them is drawn thicker or stepped.
        assert max(dashes.count(d) for d in dashes) <= 2
    assert set(style.METHODS) == set(ls.FIELDS)


def test_double_well_derivatives():
    well, x, h = DoubleWell(0.2, 1.3), np.linspace(-2, 2, 41)[:, None], 1e-4
    slope = (well(x + h) - well(x - h)) / (2 * h)
    bend = (well.gradient(x + h) - well.gradient(x - h))[:, 0] / (2 * h)
    # Third and fourth derivatives of (z² - 1)² are at most 24 z and 24 in z: the differences are off by O(h²) of them.
    assert np.abs(slope - well.gradient(x)[:, 0]).max() <= 24 * 2 * h * h + 1e-10
    assert np.abs(bend - well.curvature(x)[:, 0]).max() <= 24 * h * h + 1e-10


@pytest.mark.parametrize(
    "name", ["int4", "int2", "int4full/gauge", "uint4", "binary", "ternary", "nf4", "e2m1", "pot4", "e5m2", "dynamic8"]
)
def test_unit_step_puts_one_gap_above_the_middle(name):
    q, middle, (low, high) = unit_step(lt.Quantizer.parse(name))
    levels = ls.lattice_levels(q, np.zeros(1))[0]
    assert (levels[0], levels[-1]) == (low, high)
    place = int(np.argmin(np.abs(levels - middle)))
    assert levels[place] == middle and levels[place + 1] - middle == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "dimension"),
    [("int3", 1), ("nvfp4/sr", 1), ("mxfp4", 2), ("int2", 2), pytest.param("uint3", 2, marks=pytest.mark.slow)],
)
def test_every_kind_of_format_is_drawn(name, dimension, tmp_path, monkeypatch):
    def draw(figure, stem):
        """Lays everything out and draws it, once; a file would be drawn twice."""
        figure.set_dpi(20)
        FigureCanvasAgg(figure).draw()
        return [stem]

    monkeypatch.setattr(gallery, "save", draw)
    seen = []
    paths = figures.landscape_figures(name, tmp_path, dimension, points=13, progress=seen.append, steps=8)
    expected = (
        ["losses", "ramp", "line"]
        if dimension == 1
        else ["losses", "losses_fixed", "fields", "fields_fixed", "trajectories"]
    )
    assert seen[: len(expected)] == expected and len(paths) == len(seen)
    assert ("minima" in seen) == (name == "int2")


def test_formats_that_cannot_be_drawn_say_why(tmp_path):
    with pytest.raises(ValueError, match="complex"):
        figures.landscape_figures("fairy", tmp_path)
    with pytest.raises(ValueError, match="no lattice of its own"):
        figures.landscape_figures("int4/frozen", tmp_path)
    with pytest.raises(ValueError, match="dimension=3; valid: 1, 2"):
        figures.landscape_figures("int4", tmp_path, dimension=3)

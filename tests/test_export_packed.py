"""Packed safetensors files: what is loaded is the cast that was saved, and a damaged file is named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lotion_theory import Quantizer
from lotion_theory.export import encode, load_packed, pack, save_packed, unpack
from lotion_theory.export import loader as standalone
from tests.strategies import FORMATS, as_torch, cases, examples, numpy_type, probes, same
from tests.test_export_codes import bits, cast

safetensors = pytest.importorskip("safetensors")


@given(width=st.integers(1, 8), data=st.data())
@examples(60)
def test_unpack_of_pack_is_the_identity(width: int, data: st.DataObject) -> None:
    codes = data.draw(hnp.arrays(np.uint8, st.integers(0, 40), elements=st.integers(0, 2**width - 1)))
    stream = pack(codes, width)
    assert stream.dtype == np.uint8 and stream.size == -(-codes.size * width // 8)
    assert np.array_equal(unpack(stream, width, codes.size), codes)


@pytest.mark.parametrize("width", [2, 3, 4, 8])
def test_the_stream_is_little_endian_also_beyond_the_part_it_is_made_in(width: int) -> None:
    codes = np.random.default_rng(0).integers(0, 2**width, (1 << 20) + 13).astype(np.uint8)
    stream = pack(codes, width)
    number = int.from_bytes(stream[:3].tobytes(), "little")
    assert [number >> i * width & (2**width - 1) for i in range(24 // width)] == codes[: 24 // width].tolist()
    assert np.array_equal(unpack(stream, width, codes.size), codes)


def test_codes_that_do_not_fit_are_refused() -> None:
    for codes, width in (([4], 2), ([0], 0), ([0], 9)):
        with pytest.raises(ValueError, match="bits"):
            pack(np.array(codes, np.uint8), width)
    with pytest.raises(ValueError, match="exactly"):
        unpack(np.zeros(2, np.uint8), 4, 5)


@pytest.mark.filterwarnings("ignore:.*one weight")
@given(case=cases(), torch_too=st.booleans())
@examples(25)
def test_loaded_weights_are_the_cast_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[Quantizer, np.ndarray], torch_too: bool
) -> None:
    q, w = case
    path = tmp_path_factory.mktemp("packed") / "w.safetensors"
    save_packed(path, {"w": as_torch(w) if torch_too else w}, q)
    loaded = load_packed(path)["w"]
    assert loaded.dtype == w.dtype and loaded.shape == w.shape
    np.testing.assert_array_equal(bits(loaded), bits(cast(q, w)))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_probes_of_every_kind_of_format_in_one_file(tmp_path: Path, dtype: str) -> None:
    weights = {text: probes(text, dtype, rows=12, size=8, seed=3) for text in FORMATS}
    save_packed(tmp_path / "w", weights, {text: f"{text}/row" for text in FORMATS})
    for text, loaded in load_packed(tmp_path / "w").items():
        np.testing.assert_array_equal(bits(loaded), bits(cast(Quantizer.parse(f"{text}/row"), weights[text])), text)


def some_weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "embed.weight": rng.standard_normal((16, 64)).astype(numpy_type("bfloat16")),
        "layer.weight": rng.standard_normal((8, 64)).astype(np.float32),
        "layer.bias": rng.standard_normal(8).astype(np.float32),
        "steps": np.array(7), "mask": np.array([[True, False]]),
    }  # fmt: skip


def test_patterns_formats_and_the_report(tmp_path: Path) -> None:
    w, path = some_weights(), tmp_path / "w.safetensors"
    report = save_packed(path, w, {"embed*": "int8/absmax/row", "*": "int4/absmax/block=32"})
    assert report.bits == {"embed.weight": 8 + 16 / 64, "layer.weight": 4 + 32 / 32}
    assert (report.weights, report.quantized) == (16 * 64 + 8 * 64 + 8 + 1 + 2, 16 * 64 + 8 * 64)
    assert report.file_bytes == path.stat().st_size and report.bits_per_weight == 8 * report.file_bytes / report.weights
    loaded = load_packed(path)
    assert list(loaded) == list(w)
    for name, text in (("embed.weight", "int8/absmax/row"), ("layer.weight", "int4/absmax/block=32")):
        assert same(loaded[name], Quantizer.parse(text).cast(w[name]))
    for name in ("layer.bias", "steps", "mask"):
        assert loaded[name].dtype == w[name].dtype and np.array_equal(loaded[name], w[name])

    save_packed(path, w, "int4/absmax/row", include=("layer.*", "layer.bias"), exclude=("*.weight",))
    loaded = load_packed(path)
    assert same(loaded["layer.weight"], w["layer.weight"])
    assert same(loaded["layer.bias"], Quantizer.parse("int4/absmax/row").cast(w["layer.bias"]))

    point = Quantizer.parse("int4").round(w["layer.weight"], np.random.default_rng(1).random((8, 64), np.float32))
    given_codes = {"a": encode(w["layer.weight"], "int4", point), "b": w["embed.weight"]}
    save_packed(path, given_codes, "int8", exclude=("b",))
    assert same(load_packed(path)["a"], point) and same(load_packed(path)["b"], w["embed.weight"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"include": ("nothing*",)}, "nothing"), ({"exclude": "layer"}, "tuple"), ({"exclude": ("*",)}, "nothing to quant"),
        ({"format": {"nothing*": "int4"}}, "nothing"), ({"format": "int4/block=48"}, "weight.*block=48"),
        ({"weights": {}}, "empty"), ({"weights": {"a::b": np.ones((2, 2))}}, "::"), ({"weights": {"a": 3}}, "int"),
        ({"weights": {"a": np.full((2, 2), np.nan)}}, "^a: "), ({"weights": {"a": np.arange(4)}}, "floating"),
    ],
)  # fmt: skip
def test_what_cannot_be_saved_is_refused_and_leaves_no_file(tmp_path: Path, arguments: dict, message: str) -> None:
    keywords = {"weights": some_weights(), "format": "int4", **arguments}
    with pytest.raises(ValueError, match=message):
        save_packed(tmp_path / "w", **keywords)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, w = tmp_path / "w", some_weights()
    save_packed(path, w, "int4")
    before = path.read_bytes()

    def full(arrays: dict, target: Path, metadata: dict) -> None:
        Path(target).write_bytes(b"half")
        raise safetensors.SafetensorError("No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(OSError, match="No space"):
        save_packed(path, w, "int8")
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        save_packed(tmp_path / "absent" / "w", w, "int4")


def test_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_packed(path, some_weights(), "int4")
    whole = path.read_bytes()
    damaged = [whole[:n] for n in range(0, len(whole), max(1, len(whole) // 60))]
    damaged += [b"GGUF and so on" * 9, whole + b"x"]
    header = 8 + int.from_bytes(whole[:8], "little")
    for place in np.linspace(header, len(whole) - 1, 30).astype(int):
        damaged.append(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"w\.safetensors is not a complete file of packed weights"):
            load_packed(path)
    with pytest.raises(FileNotFoundError):
        load_packed(tmp_path / "absent")

    from safetensors.numpy import save_file

    for metadata in (
        {},
        {"lotion_packed": "{}"},
        {"lotion_packed": "["},
        {"lotion_packed": json.dumps({"version": 99})},
    ):
        save_file({"a": np.ones(3)}, path, metadata)
        with pytest.raises(ValueError, match=r"w\.safetensors is not"):
            load_packed(path)


def test_the_loader_stands_alone(tmp_path: Path) -> None:
    """Copied away, without this package and without ml_dtypes: bfloat16 then comes as float32 of the same values."""
    w, path = some_weights(), tmp_path / "w.safetensors"
    save_packed(path, w, {"embed*": "int3/absmax/block=32", "*": "nvfp4/sr"})
    shutil.copy(standalone.__file__, tmp_path / "tiny.py")
    program = (
        "import sys; sys.modules['ml_dtypes'] = None; sys.path.insert(0, sys.argv[1]); import numpy, tiny\n"
        "loaded = tiny.load_packed(sys.argv[2])\n"
        "assert not any(name.startswith(('lotion_theory', 'torch')) for name in sys.modules)\n"
        "numpy.savez(sys.argv[3], **{name: array for name, array in loaded.items()})"
    )
    out = tmp_path / "out.npz"
    subprocess.run([sys.executable, "-c", program, str(tmp_path), str(path), str(out)], check=True, cwd=tmp_path)
    loaded = np.load(out)
    for name, array in load_packed(path).items():
        assert np.array_equal(loaded[name], array.astype(np.float32) if name == "embed.weight" else array), name


def test_torch_modules_tied_weights_and_the_loss(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from tests.torch_models import mlp

    torch.manual_seed(0)
    for dtype, text in (
        (torch.float32, "int4/absmax/block=8"),
        (torch.bfloat16, "mxfp4/sr/block=8"),
        (torch.float32, "q8_0/row"),
    ):
        model = mlp((8, 16, 16, 8), dtype)
        model.append(torch.nn.Identity())
        model.head = torch.nn.Linear(8, 16, bias=False, dtype=dtype)
        model.head.weight = model[0].weight
        path = tmp_path / "model.safetensors"
        wrapper = torch.nn.Module()
        # As DistributedDataParallel names it.
        wrapper.module = model
        report = save_packed(path, wrapper, text, exclude=("2.weight",))
        assert sorted(report.bits) == ["0.weight", "4.weight"]
        loaded = load_packed(path, like="torch")
        assert set(loaded) == set(model.state_dict()) and loaded["head.weight"] is loaded["0.weight"]
        x = torch.randn(5, 8, dtype=dtype)
        fresh = mlp((8, 16, 16, 8), dtype, seed=1)
        fresh.append(torch.nn.Identity())
        fresh.head = torch.nn.Linear(8, 16, bias=False, dtype=dtype)
        fresh.load_state_dict(loaded)
        q = Quantizer.parse(text)
        with torch.no_grad():
            for name in ("0.weight", "4.weight"):
                parameter = model.get_parameter(name)
                parameter.copy_(q.cast(parameter))
            loss, ours = ((m.head(m[:6](x)) ** 2).mean() for m in (fresh, model))
        assert float(loss) == float(ours)
    with pytest.raises(ValueError, match="like"):
        load_packed(path, like="jax")

"""Packed files notice every changed bit; what no file can hold is refused by name; files have ordinary rights."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lotion_theory import Quantizer
from lotion_theory.export import encode, load_packed, loader, save_packed, write_gguf
from tests.oracles import library
from tests.strategies import as_torch, same
from tests.test_export_codes import bits

safetensors = pytest.importorskip("safetensors")


def small() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"w": rng.standard_normal((2, 8)).astype(np.float32), "b": rng.standard_normal(2).astype(np.float32)}


def same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype and a[n].shape == b[n].shape and a[n].tobytes() == b[n].tobytes() for n in a
    )


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_packed(path, small(), "int2/absmax/block=4")
    good, whole = load_packed(path), path.read_bytes()
    silent = []
    with open(path, "rb+") as file:
        for place in range(len(whole)):
            for bit in range(8):
                os.pwrite(file.fileno(), bytes([whole[place] ^ 1 << bit]), place)
                try:
                    if not same_bits(load_packed(path), good):
                        silent.append((place, bit))
                except ValueError as error:
                    assert str(path) in str(error)
            os.pwrite(file.fileno(), whole[place : place + 1], place)
    assert silent == [] and same_bits(load_packed(path), good)


def test_every_truncation_and_every_added_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_packed(path, small(), "int2/absmax/block=4")
    whole = path.read_bytes()
    head = 8 + int.from_bytes(whole[:8], "little")
    for length in reversed(range(len(whole))):
        os.truncate(path, length)
        with pytest.raises(ValueError, match=r"w\.safetensors is not a complete file of packed weights"):
            load_packed(path)
    added = [whole + tail for tail in (b"\0", b"\0" * 8, b"x" * 100, whole)]
    inside = [whole[:n] + b" " + whole[n:] for n in (0, 8, head, len(whole) - 1)]
    for data in (*added, *inside):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"w\.safetensors is not a complete file of packed weights"):
            load_packed(path)


def parts_of(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Any]]:
    """Metadata, arrays and description of a packed file."""
    with safetensors.safe_open(path, framework="np") as file:
        metadata = file.metadata()
        return metadata, {name: file.get_tensor(name) for name in file.keys()}, json.loads(metadata["lotion_packed"])  # noqa: SIM118


def rewrite(path: Path, arrays: dict[str, np.ndarray], index: Any, sealed: bool = True) -> None:
    """A packed file made by hand, with a checksum that fits where ``sealed``."""
    from safetensors.numpy import save_file

    text = index if isinstance(index, str) else json.dumps(index)
    save_file(arrays, path, {"lotion_packed": text} | ({loader.SEAL: loader.BLANK} if sealed else {}))
    if sealed:
        loader.seal(path, write=True)


def test_a_file_without_the_checksum_is_read_on_demand_only(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_packed(path, small(), "int4full/gauge/block=4")
    good = load_packed(path)
    _, arrays, index = parts_of(path)
    index["version"] = 1
    for name, entry in index["tensors"].items():
        entry["crc32"] = loader._crc32({p: arrays[f"{name}::{p}" if p else name] for p in entry["parts"]})
    rewrite(path, arrays, index, sealed=False)
    with pytest.raises(ValueError, match=r"version is 1, whose checksum .*unchecked=True and save it again"):
        load_packed(path)
    assert same_bits(load_packed(path, unchecked=True), good)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="have changed"):
        load_packed(path, unchecked=True)
    # A file of this version does without its checksum on no condition.
    index["version"] = loader.VERSION
    rewrite(path, arrays, index, sealed=False)
    for unchecked in (False, True):
        with pytest.raises(ValueError, match=loader.SEAL):
            load_packed(path, unchecked=unchecked)


@pytest.mark.parametrize(
    "text",
    ["", "[" * 100_000, "[" * 100_000 + "]" * 100_000, '{"version": ' + "9" * 5000 + "}", '{"version": 1e400}', "null",
     '{"version": 2}', '{"version": 2, "tensors": [], "aliases": {}, "tables": {}}'],
)  # fmt: skip
def test_hostile_descriptions_are_refused_in_a_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "w.safetensors"
    rewrite(path, {"a": np.ones(3)}, text)
    with pytest.raises(ValueError, match=r"w\.safetensors is not a complete file"):
        load_packed(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("shape", [1 << 40, 1 << 40]), ("shape", [-2, -8]), ("shape", None), ("shape", [3]), ("shape", [1e400]),
     ("block", 0), ("block", 1), ("block", -4), ("block", 1 << 70), ("block", "4"), ("bits", 0), ("bits", 9),
     ("bits", 1 << 70), ("dtype", "object"), ("dtype", "complex64"), ("dtype", []), ("anchors", []),
     ("anchors", ["e9m9", "x"]), ("table", "none"), ("parts", ["codes"]), ("parts", [["codes"]]), ("parts", 7)],
)  # fmt: skip
def test_descriptions_that_contradict_the_arrays_are_refused(tmp_path: Path, key: str, value: Any) -> None:
    path = tmp_path / "w.safetensors"
    save_packed(path, small(), "int4full/gauge/block=4")
    _, arrays, index = parts_of(path)
    index["tensors"]["w"][key] = value
    rewrite(path, arrays, index)
    with pytest.raises(ValueError, match=r"w\.safetensors is not a complete file"):
        load_packed(path)


def test_hostile_headers_are_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_packed(path, small(), "int2/absmax/block=4")
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + size]), whole[8 + size :]
    text = json.dumps(header, separators=(",", ":"))
    headers = [b"[" * 100_000, b"{" * 100_000, b'{"a":' * 50_000, text.replace('"b":', '"w::top":').encode()]
    for offsets in ([0, 0], [0, 1 << 62], [-1, 4], [5, 2], [0, len(data)], [1, 5]):
        headers.append(json.dumps(header | {"b": header["b"] | {"data_offsets": offsets}}).encode())
    for shape in ([1 << 60], [1 << 32, 1 << 32], [0], [1 << 63] * 5, [10**30]):
        headers.append(json.dumps(header | {"b": header["b"] | {"shape": shape}}).encode())
    made = [len(h).to_bytes(8, "little") + h + data for h in headers]
    made += [
        n.to_bytes(8, "little") + whole[8:] for n in (0, 1, size - 1, size + 1, 99_000_000, 1 << 40, (1 << 64) - 1)
    ]
    for content in made:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"w\.safetensors is not a complete file"):
            load_packed(path)
    with pytest.raises(ValueError, match="is not a file"):
        load_packed(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ValueError, match="is not a file"):
            load_packed(tmp_path / "pipe")


@pytest.mark.parametrize(
    "name", ["a.b.c", "ü.重み", 'quote"lotion_sha256":"', "line\nfeed\0", "", "a[0]*?", "x" * 5000]
)
def test_names_of_every_kind_come_back(tmp_path: Path, name: str) -> None:
    w, path = small()["w"], tmp_path / "w"
    save_packed(path, {name: w, f"{name}1": w[0]}, {name: "int4/absmax/row"})
    loaded = load_packed(path)
    assert list(loaded) == [name, f"{name}1"] and same(loaded[name], Quantizer.parse("int4/absmax/row").cast(w))


def test_types_layouts_and_sizes_come_back(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    rng, path = np.random.default_rng(1), tmp_path / "w"
    w = rng.standard_normal((8, 16))
    plain = {
        "scalar": np.full((), 3.5, np.float32), "empty": np.ones((0, 3)), "bool": np.array([True]), "swapped": w[0].astype(">f4"),
        "conjugate": torch.tensor([1 + 2j]).conj(), "negative": torch.tensor([1 + 2j]).conj().imag,
        "words": torch.tensor([1, 65535], dtype=torch.uint16), "half": torch.ones(3, dtype=torch.bfloat16),
    }  # fmt: skip
    matrices = {
        "turned": w.T, "back": w[::-1, ::-2], "spread": np.broadcast_to(w[0], (3, 16)), "tied": torch.tensor(w),
        "part": torch.tensor(w)[:, ::2], "brain": torch.tensor(w).bfloat16().t(), "other": w.astype(">f8"),
    }  # fmt: skip
    matrices["again"] = matrices["tied"]
    save_packed(path, plain | matrices, "int4/absmax/row", exclude=("empty",))
    loaded = load_packed(path, like="torch")
    assert loaded["again"] is loaded["tied"]
    for name, tensor in plain.items():
        expected = (
            tensor.resolve_conj().resolve_neg()
            if torch.is_tensor(tensor)
            else as_torch(tensor.astype(tensor.dtype.name))
        )
        assert loaded[name].dtype == expected.dtype and torch.equal(loaded[name], expected), name
    for name, tensor in matrices.items():
        own = tensor if torch.is_tensor(tensor) else as_torch(np.array(tensor.astype(tensor.dtype.name)))
        np.testing.assert_array_equal(bits(loaded[name]), bits(Quantizer.parse("int4/absmax/row").cast(own)), name)
    # One number, and a tensor without axes.
    point = np.array(-2.5, np.float32)
    save_packed(path, {"one": encode(point, "int4/absmax/tensor")}, "int4")
    assert load_packed(path)["one"].shape == () and load_packed(path)["one"] == point


def odd_tensors() -> dict[str, Any]:
    torch = pytest.importorskip("torch")
    return {
        "f8": (torch.ones(2, 2).to(torch.float8_e4m3fn), "float8"), "meta": (torch.empty(2, 2, device="meta"), "meta"),
        "sparse": (torch.eye(3).to_sparse(), "sparse"), "text": (np.array(["a"]), "<U1"), "list": ([1.0], "list"),
        "masked": (np.ma.masked_array(np.ones((2, 2)), np.eye(2)), "masked"), "object": (np.array([None]), "object"),
        "wide": (np.ones(3, complex), "complex128"), "none": (None, "NoneType"),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["f8", "meta", "sparse", "text", "list", "masked", "object", "wide", "none"])
def test_tensors_that_no_file_holds_are_named(tmp_path: Path, name: str) -> None:
    library("gguf")
    tensor, word = odd_tensors()[name]
    with pytest.raises(ValueError, match=f"^{name} .*{word}"):
        save_packed(tmp_path / "w", {"w": small()["w"], name: tensor}, "int4")
    good = {"w": np.ones((1, 32), np.float32)}
    for keywords in ({"tensors": {name: tensor}}, {"tensors": good, "plain": {name: tensor}}):
        with pytest.raises(ValueError, match=f"^{name}.*{word}"):
            write_gguf(tmp_path / "w", kind="Q4_0", **keywords)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(), (0,), (1, 1, 1, 1, 1)])
def test_shapes_that_gguf_lacks_are_named(tmp_path: Path, shape: tuple[int, ...]) -> None:
    library("gguf")
    with pytest.raises(ValueError, match=r"^norm has .*1 to 4 axes"):
        write_gguf(tmp_path / "w", {"w": np.ones((1, 32))}, "Q4_0", plain={"norm": np.ones(shape)})


@pytest.mark.parametrize(
    "value",
    [None, [], (), [[1]], {}, {"a": 1}, b"bytes", [1, "a"], [True, 1], [1, 2.5], 1 << 64, -(1 << 63) - 1, 10**5000, 1e300,
     "\ud800", ["\ud800"], {1}, 1j, [None], np.eye(2), [(1 << 64) - 1, -1]],
    ids=lambda value: str(type(value).__name__),
)  # fmt: skip
def test_metadata_that_gguf_cannot_hold_is_named(tmp_path: Path, value: Any) -> None:
    library("gguf")
    with pytest.raises(ValueError, match=r"^metadata 'my\.key' is .*; valid: ") as caught:
        write_gguf(tmp_path / "w", {"w": np.ones((1, 32))}, "Q4_0", {"my.key": value})
    assert len(str(caught.value)) < 300 and list(tmp_path.iterdir()) == []


def test_metadata_at_the_ends_of_what_gguf_holds_comes_back(tmp_path: Path) -> None:
    gguf = library("gguf")
    given = {
        "u64": (1 << 64) - 1, "i64": -(1 << 63), "u32": (1 << 32) - 1, "f": float(np.finfo(np.float32).max),
        "inf": float("inf"), "list": [1 << 40, -1], "longs": [(1 << 64) - 1], "small": [1, -1], "texts": ("ü", ""),
        "np": np.int64(3), "half": np.float16(0.5), "yes": np.bool_(True), "array": np.arange(3), "empty": "", "k" * 65535: 1,
    }  # fmt: skip
    write_gguf(tmp_path / "w", {"w": np.ones((1, 32))}, "Q4_0", given)
    fields = gguf.GGUFReader(tmp_path / "w").fields
    for key, value in given.items():
        expected = list(value) if isinstance(value, tuple | np.ndarray) else value
        assert fields[key].contents() == expected, key
    assert fields["small"].types[-1] == gguf.GGUFValueType.INT32


@pytest.mark.parametrize(
    ("keywords", "message"),
    [({"metadata": {"": 1}}, "key ''"), ({"metadata": {3: 1}}, "key 3"), ({"metadata": {"k" * 65536: 1}}, "key 'kkk"),
     ({"metadata": {"general.alignment": 64}}, "general.alignment"), ({"metadata": {"general.file_type": 1}}, "file_type"),
     ({"metadata": {"general.architecture": None}}, "architecture"), ({"plain": {"": np.ones(1)}}, "''"),
     ({"plain": {"\ud800": np.ones(1)}}, "ud800"), ({"plain": {"ü" * 32: np.ones(1)}}, "63 bytes"),
     ({"plain": {7: np.ones(1)}}, "name 7")],
)  # fmt: skip
def test_keys_and_names_that_gguf_cannot_hold_are_named(tmp_path: Path, keywords: dict, message: str) -> None:
    library("gguf")
    with pytest.raises(ValueError, match=message):
        write_gguf(tmp_path / "w", {"w": np.ones((1, 32))}, "Q4_0", **keywords)
    assert list(tmp_path.iterdir()) == []


def test_names_that_a_packed_file_cannot_hold_are_named(tmp_path: Path) -> None:
    w = small()["w"]
    for name in (3, "\ud800", "__metadata__", "a::top"):
        with pytest.raises(ValueError, match="tensor name"):
            save_packed(tmp_path / "w", {name: w}, "int4")
    for weights in ([("w",)], ["w"], None, 3):
        with pytest.raises(ValueError, match=r"^weights"):
            save_packed(tmp_path / "w", weights, "int4")


@pytest.mark.parametrize(("umask", "rights"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_have_the_rights_that_the_umask_leaves(tmp_path: Path, umask: int, rights: int) -> None:
    library("gguf")
    before = os.umask(umask)
    try:
        save_packed(tmp_path / "m.safetensors", small(), "int4")
        write_gguf(tmp_path / "m.gguf", {"w": np.ones((1, 32))}, "Q4_0")
    finally:
        os.umask(before)
    assert [stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()] == [rights, rights]


def test_an_ending_that_says_otherwise_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="write_gguf writes GGUF"):
        save_packed(tmp_path / "m.GGUF", small(), "int4")
    with pytest.raises(ValueError, match="save_packed writes safetensors"):
        write_gguf(tmp_path / "m.safetensors", {"w": np.ones((1, 32))}, "Q4_0")
    assert list(tmp_path.iterdir()) == []


def test_weights_of_torchao_are_named_and_not_taken_for_tied(tmp_path: Path) -> None:
    library("torchao")
    import torch

    from lotion_theory.export import to_torchao

    model = torch.nn.Sequential(torch.nn.Linear(32, 4), torch.nn.Linear(32, 4))
    tensor = to_torchao(encode(torch.randn(4, 32).bfloat16(), "int4/absmax/block=32"))
    model[0].weight = torch.nn.Parameter(tensor, requires_grad=False)
    with pytest.raises(ValueError, match=r"0\.weight is .*dequantize it first"):
        save_packed(tmp_path / "m", model, "int4")

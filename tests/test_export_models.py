"""Models written like their source: what is given is there bit for bit, everything else keeps its bytes."""

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lotion_theory.export import decode, encode, load_packed, write_like
from lotion_theory.export.compressed import compressed_parts
from lotion_theory.export.loader import unpack
from lotion_theory.sources import open_source
from tests.model_cases import TEXT, cast_model, decoder, folder_model, matrices, stored
from tests.tolerances import within_ulps

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")
safetensors = pytest.importorskip("safetensors.torch")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return folder_in(tmp_path_factory.mktemp("folder") / "model")


@pytest.fixture(scope="module")
def container(tmp_path_factory):
    return container_in(tmp_path_factory.mktemp("container"))


def folder_in(path: Path) -> Path:
    """A llama folder with weights in bfloat16, in two files, and files that are no weights."""
    model = folder_model(path, "llama", "bfloat16")
    model.save_pretrained(path, max_shard_size="60KB")
    (path / "model.safetensors").unlink()
    (path / "README.md").write_text("about")
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text("{}")
    return path


def container_in(path: Path) -> Path:
    """A GGUF file of the llama family whose matrices are Q8_0 and whose embedding is F16."""
    folder_model(path / "model", "llama")
    source = open_source(path / "model")
    given = {name: encode(w, "q8_0") for name, w in matrices(source.model).items()}
    embedding = source.model.get_parameter("model.embed_tokens.weight").detach().half()
    write_like(source, path / "m.gguf", {**given, "model.embed_tokens.weight": embedding})
    return path / "m.gguf"


def run_source(**changes):
    from testbeds.lm.deploy import RunTokenizer, decoder_source
    from testbeds.lm.text.tokenizer import Bytes

    return decoder_source(decoder(**changes), RunTokenizer(Bytes()), Path("run"))


def contents(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F32", "F16", "BF16"])
def test_a_gguf_file_keeps_all_bytes_but_those_replaced(container, tmp_path, kind):
    source = open_source(container)
    first = {name: w for name, w in matrices(source.model).items() if ".layers.0." in name}
    plain = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    if kind in plain:
        given = {name: w.to(plain[kind]) for name, w in first.items()}
    elif kind in ("Q4_0", "Q8_0"):
        given = {name: encode(w, kind.lower()) for name, w in first.items()}
    else:
        given = {name: stored(w, kind) for name, w in first.items()}
    written = write_like(source, tmp_path / "m.gguf", given)
    assert written.types == dict.fromkeys(first, kind) and written.bytes == (tmp_path / "m.gguf").stat().st_size
    before, after = gguf.GGUFReader(container), gguf.GGUFReader(tmp_path / "m.gguf")
    assert [t.name for t in before.tensors] == [
        t.name for t in after.tensors
    ] and before.fields.keys() == after.fields.keys()
    for key, field in before.fields.items():
        same = [bytes(part) for part in field.parts] == [bytes(part) for part in after.fields[key].parts]
        assert same or key == "general.file_type", key
    replaced = {source.names[name].name for name in first}
    for old, new in zip(before.tensors, after.tensors, strict=True):
        if old.name not in replaced:
            assert old.tensor_type == new.tensor_type and bytes(old.data) == bytes(new.data)
    back = open_source(tmp_path / "m.gguf")
    for name, parameter in source.model.named_parameters():
        one = given.get(name, parameter)
        value = (
            one if torch.is_tensor(one) else torch.as_tensor(decode(one) if kind in ("Q4_0", "Q8_0") else one.values())
        )
        assert torch.equal(back.model.get_parameter(name), value.float()), name


def test_in_place_and_with_nothing_given(container, tmp_path):
    """Nothing given: the same bytes. A file may be replaced by what is made of it."""
    shutil.copy(container, tmp_path / "m.gguf")
    source = open_source(tmp_path / "m.gguf")
    write_like(source, tmp_path / "m.gguf", {})
    assert (tmp_path / "m.gguf").read_bytes() == container.read_bytes()
    name = "model.layers.1.mlp.up_proj.weight"
    point = encode(source.model.get_parameter(name).detach(), "q4_0")
    write_like(source, tmp_path / "m.gguf", {name: point})
    assert torch.equal(open_source(tmp_path / "m.gguf").model.get_parameter(name), decode(point))


@pytest.mark.parametrize(("share", "kind"), [(0, "MOSTLY_Q8_0"), (2, "MOSTLY_Q4_0")])
def test_a_file_says_the_type_of_most_of_it(container, tmp_path, share, kind):
    source = open_source(container)
    given = {n: encode(w, "q4_0") for n, w in matrices(source.model).items() if int(n.split(".")[2]) < share}
    write_like(source, tmp_path / "m.gguf", given)
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["general.file_type"].contents() == gguf.LlamaFileType[kind]
    assert fields["general.quantization_version"].contents() == gguf.GGML_QUANT_VERSION


@pytest.mark.parametrize("text", ["int4/absmax/row", "nf4/absmax/block=32", "q4_0"])
def test_dequantized_values_are_the_same_in_every_kind(container, folder, tmp_path, text):
    for source in (open_source(container), open_source(folder), run_source()):
        points = {name: encode(w, text) for name, w in matrices(source.model).items()}
        files = [tmp_path / source.kind / name for name in ("m.gguf", "folder", "m.safetensors")]
        files[0].parent.mkdir()
        if text != "q4_0":
            with pytest.raises(ValueError, match=r"of format .*: no type of GGUF holds its values exactly\. Exact"):
                write_like(source, files[0], points)
            assert not files[0].exists()
        assert set(write_like(source, files[0], points, dequantized=True).types.values()) == {"F32"}
        assert write_like(source, files[1], points).kind == "folder"
        assert write_like(source, files[2], points).kind == "packed"
        read = [open_source(file).model for file in files[:2]]
        packed = load_packed(files[2], like="torch")
        for name, parameter in source.model.named_parameters():
            value = decode(points[name]) if name in points else parameter
            own = source.names[name].name if source.kind == "run" else name
            assert all(torch.equal(model.get_parameter(own), value.float()) for model in read), name
            assert torch.equal(packed[name], value)


def test_a_folder_keeps_its_files_and_types(folder, tmp_path):
    source = open_source(folder)
    name = "model.layers.1.self_attn.k_proj.weight"
    w = source.model.get_parameter(name).detach()
    before = contents(folder)
    written = write_like(source, tmp_path / "out", {name: encode(w, "int4/absmax/row")})
    after = contents(tmp_path / "out")
    assert before.keys() == after.keys() and contents(folder) == before
    assert written.types == {name: "float32"} and written.bytes == sum(map(len, after.values()))
    changed = {file for file in after if after[file] != before[file]}
    index = json.loads(after["model.safetensors.index.json"])
    assert changed == {"config.json", "model.safetensors.index.json", index["weight_map"][name]}
    assert json.loads(after["config.json"])["dtype"] == "float32"
    with safetensors.safe_open(tmp_path / "out" / index["weight_map"][name], framework="pt") as file:
        types = {key: str(file.get_tensor(key).dtype) for key in file.keys()}  # noqa: SIM118
    assert {key for key, value in types.items() if value == "torch.float32"} == {name}
    # Values that the type of the source holds leave the folder what it was.
    write_like(source, tmp_path / "same", {name: w})
    assert json.loads((tmp_path / "same" / "config.json").read_text())["dtype"] == "bfloat16"
    assert torch.equal(open_source(tmp_path / "same").model.get_parameter(name), w)
    with pytest.raises(FileExistsError, match="is there already; name a folder that is not"):
        write_like(source, tmp_path / "out", {name: w})


def test_a_decoder_is_a_model_of_transformers(tmp_path):
    """Logits within what float32 sums of other orders may differ by; ids and special tokens the same."""
    source = run_source()
    points = {name: encode(w, "q4_0") for name, w in matrices(source.model).items()}
    write_like(source, tmp_path / "hf", points)
    read, mine = open_source(tmp_path / "hf"), cast_model(source.model, {n: decode(p) for n, p in points.items()})
    ids = torch.tensor(source.encode(TEXT))[None, :48]
    with torch.no_grad():
        assert float((read.logits(ids) - mine(ids)).abs().max()) <= rounding_of(mine, ids)
    assert read.encode(TEXT).tolist() == ids[0].tolist() + list(TEXT.encode())[48:]
    assert read.tokenizer.end_of_text == 0 and read.config["eos_token_id"] == 0


def rounding_of(model, ids) -> float:
    """How far float32 logits may be from others of the same sums in another order.

    A sum of n products in float32 is the exact one with factors off by some 8 sqrt(n) units of 2**-24, but for a chance
    of 2 exp(-32) (Higham and Mary, SIAM J. Sci. Comput. 41(5), 2019). The answer of the logits to random signs of that,
    at n = 96, is taken.
    """
    size = 8 * 96**0.5 * 2.0**-24
    source = torch.Generator().manual_seed(1)
    signs = {n: 2.0 * torch.randint(2, p.shape, generator=source) - 1 for n, p in model.named_parameters()}
    other = cast_model(model, {n: p * (1 + size * signs[n]) for n, p in model.named_parameters()})
    with torch.no_grad():
        first, second = (getattr(out, "logits", out) for out in (model(ids), other(ids)))
        return float((first - second).abs().max())


@pytest.mark.parametrize("text", ["int4/absmax/block=32", "int8/absmax/row", "int8/absmax/block=16", "int4/absmax/row"])
def test_packed_integers_are_the_cast_up_to_four_roundings(text):
    w = torch.from_numpy(np.random.default_rng(0).standard_normal((6, 96)).astype(np.float32)) * torch.logspace(
        -3, 3, 96
    )
    encoded = encode(w, text)
    parts, bits, group = compressed_parts("w", encoded)
    assert (bits, group) == (int(text[3]), int(text.partition("block=")[2] or 0) or None)
    words = parts["weight_packed"].numpy()
    codes = np.stack([unpack(row.view(np.uint8)[: 96 * bits // 8], bits, 96) for row in words]).astype(int) - (
        1 << (bits - 1)
    )
    scales = np.repeat(parts["weight_scale"].numpy(), 96 // parts["weight_scale"].shape[1], axis=1)
    assert within_ulps((codes.astype(np.float32) * scales), decode(encoded).numpy(), 4, "float32")
    assert parts["weight_shape"].tolist() == [6, 96] and words.dtype == np.int32


def test_compressed_folders_are_what_their_library_loads(folder, tmp_path):
    pytest.importorskip("compressed_tensors", reason="needs compressed-tensors, of the extra runtimes")
    transformers = pytest.importorskip("transformers")
    for source in (open_source(folder), run_source(tied=False)):
        points = {}
        for i, (name, w) in enumerate(matrices(source.model).items()):
            if i:  # one layer stays as it is
                points[name] = encode(w, ("int4/absmax/block=32", "int8/absmax/row")[i % 2])
        out = tmp_path / source.kind
        written = write_like(source, out, points, "compressed-tensors")
        assert set(written.types.values()) == {"int4", "int8"}
        model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
        ids = torch.arange(40)[None]
        with torch.no_grad():
            found = model(ids).logits  # the first call unpacks
            mine = cast_model(source.model, {n: decode(p) for n, p in points.items()})
            expected = getattr(mine(ids), "logits", None)
            expected = mine(ids) if expected is None else expected
            # Weights off by four units of 2**-24 are off by less than sums of 96 products are.
            assert float((found - expected).abs().max()) <= rounding_of(mine, ids)
        for name, parameter in source.model.named_parameters():
            own = source.names[name].name if source.kind == "run" else name
            value = decode(points[name]) if name in points else parameter.detach()
            roundings = 4 if name in points else 0
            assert within_ulps(model.get_parameter(own).detach().numpy(), value.numpy(), roundings, "float32"), name


def test_kinds_refuse_what_they_do_not_hold(container, tmp_path):
    source = open_source(container)
    name, norm = "model.layers.0.mlp.up_proj.weight", "model.layers.0.input_layernorm.weight"
    w = source.model.get_parameter(name).detach()
    for kind, given, match in (
        ("onnx", {}, r"kind = 'onnx'; valid: packed, gguf, folder, compressed-tensors"),
        ("gguf", {"no.such": w}, r"no\.such is no parameter of the model; they are model\.embed"),
        ("gguf", {name: w[:-1]}, r"up_proj\.weight has shape \(95, 64\), that of the model is \(96, 64\)"),
        ("gguf", {name: w.double() + 1e-12}, "has type float64 with values that float32 does not hold"),
        ("gguf", {name: w.to_sparse()}, r"up_proj\.weight has layout torch\.sparse_coo"),
        ("folder", {name: w.to_sparse()}, r"up_proj\.weight has layout torch\.sparse_coo"),
        ("packed", {name: stored(w, "Q4_1")}, "is stored as Q4_1, which packed files do not hold"),
        ("packed", {}, "no tensor is given as codes, which a packed file is for"),
        ("compressed-tensors", {name: stored(w, "Q4_1")}, "is stored as Q4_1, which compressed-tensors does not hold"),
        ("compressed-tensors", {name: w}, "no tensor is given as codes"),
        ("compressed-tensors", {norm: encode(torch.ones(64), "int8/absmax/tensor")}, "is no weight of a linear layer"),
        ("compressed-tensors", {name: encode(w, "nf4/absmax/row")}, "holds symmetric integers of 4 or 8 bits"),
        ("compressed-tensors", {name: encode(w, "q4_0")}, "holds symmetric integers of 4 or 8 bits"),
        ("compressed-tensors", {name: encode(w, "int8/absmax/tensor")}, "holds float32 matrices with blocks that lie"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            write_like(source, tmp_path / "out", given, kind)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="is a folder, and gguf is one file"):
        write_like(source, tmp_path, {}, "gguf")


def test_tied_weights_are_one(tmp_path):
    folder_model(tmp_path / "model", "qwen2", tied=True)
    source = open_source(tmp_path / "model")
    point = encode(source.model.lm_head.weight.detach(), "q8_0")
    for out in (tmp_path / "m.gguf", tmp_path / "out"):
        write_like(source, out, {"lm_head.weight": point})
        back = open_source(out).model
        assert torch.equal(back.lm_head.weight, decode(point)) and back.lm_head.weight is back.model.embed_tokens.weight
    with pytest.raises(ValueError, match=r"lm_head\.weight is tied to model\.embed_tokens\.weight, and both are given"):
        write_like(source, tmp_path / "x.gguf", {"model.embed_tokens.weight": point.codes, "lm_head.weight": point})


def test_a_recurrent_mixer_has_no_runtime(tmp_path):
    source = run_source(mixer="recurrence")
    points = {name: encode(w, "q8_0") for name, w in matrices(source.model).items()}
    for kind in ("gguf", "folder", "compressed-tensors"):
        with pytest.raises(ValueError, match="no runtime has layers like its mixer 'recurrence'"):
            write_like(source, tmp_path / "m", points, kind)
    write_like(source, tmp_path / "m.safetensors", points)
    loaded = load_packed(tmp_path / "m.safetensors", like="torch")
    assert all(torch.equal(loaded[name], decode(point)) for name, point in points.items())


def test_a_full_disk_leaves_nothing(container, folder, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    for source, name in ((open_source(container), "m.gguf"), (open_source(folder), "out")):
        with pytest.raises(OSError, match=rf"cannot write .*{name}: No space left on device"):
            write_like(source, tmp_path / name, {})
    assert not list(tmp_path.iterdir())

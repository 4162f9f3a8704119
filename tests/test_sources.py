"""Models read from folders and GGUF files: weights bit for bit, ids the same, and a sentence for every bad input."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from lotion_theory.export import decode, encode, write_like
from lotion_theory.sources import Place, open_source
from tests.model_cases import TEXT, byte_pairs, decoder, folder_model, matrices

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

FAMILIES = {
    "llama": {}, "llama biased": {"attention_bias": True, "mlp_bias": True, "head_dim": 8}, "qwen2": {"tied": True},
    "qwen3": {},
}  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def made(request, tmp_path_factory):
    return family_in(tmp_path_factory.mktemp("family"), request.param)


def family_in(path: Path, name: str):
    """A folder of a family, with fewer heads of keys than of queries; the GGUF file made of it; its model."""
    folder = path / "model"
    model = folder_model(folder, name.split()[0], **FAMILIES[name])
    write_like(open_source(folder), folder.with_suffix(".gguf"), {})
    return folder, folder.with_suffix(".gguf"), model


def test_a_folder_is_its_model(made):
    folder, _, model = made
    source = open_source(folder)
    assert source.kind == "folder" and source.path == folder and source.context == 64
    for name, parameter in model.named_parameters(remove_duplicate=False):
        assert torch.equal(parameter, source.model.get_parameter(name)) and source.names[name].name in (
            name, "model.embed_tokens.weight")  # fmt: skip
    ids = torch.tensor(source.encode(TEXT))[None, :40]
    assert source.decode(source.encode(TEXT)) == TEXT
    assert source.encode(TEXT).tolist() == byte_pairs(300).encode([TEXT])[0].tolist()
    assert torch.equal(source.logits(ids), model(ids).logits)


def test_gguf_weights_are_what_gguf_and_transformers_read(made):
    _, file, model = made
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    source = open_source(file)
    assert torch.equal(torch.rand(3), expected)  # no random numbers of the caller's were used
    tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(file).tensors}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32,
        config=transformers.AutoConfig.for_model(**source.config),
    )  # fmt: skip
    moved = 0
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, source.model.get_parameter(name)), name
        assert torch.equal(parameter, theirs.get_parameter(name)), name
        place = source.names[name]
        assert np.array_equal(place.to_file(parameter.detach().numpy()), tensors[place.name])
        moved += not np.array_equal(parameter.detach().numpy(), tensors[place.name])
    # Of llama the rows of queries and keys, and their biases, lie in another order, of the others none do.
    biases = source.config["attention_bias"]
    assert moved == (4 * (1 + biases) if source.config["model_type"] == "llama" else 0)
    ids = torch.tensor(source.encode(TEXT))[None, :40]
    assert torch.equal(source.logits(ids), model(ids).logits)
    assert source.encode(TEXT).tolist() == byte_pairs(300).encode([TEXT])[0].tolist()
    assert source.tokenizer.end_of_text == byte_pairs(300).end_of_text and source.tokenizer.first is None
    assert source.config["vocab_size"] == 300 > source.tokenizer.end_of_text + 1  # ids without a text


@pytest.mark.parametrize("rows", [np.arange(24), np.arange(48).reshape(24, 2)])
def test_places_undo_themselves(rows):
    for place in (Place("w"), Place("w", 1), Place("w", 3), Place("w", 12)):
        assert np.array_equal(place.to_model(place.to_file(rows)), rows)
        assert np.array_equal(place.to_file(place.to_model(rows)), rows)
    assert np.arange(8)[Place("w", 1)._order(8, (2, -1))].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


@pytest.mark.parametrize("named", ["BertModel", "BertForMaskedLM"])
def test_an_encoder_is_read_and_written(tmp_path, named):
    config = transformers.BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
                                     vocab_size=99, max_position_embeddings=32)  # fmt: skip
    model = getattr(transformers, named)(config).eval()
    model.save_pretrained(tmp_path / "model")
    source = open_source(tmp_path / "model")
    assert type(source.model).__name__ == named and len(source.names) == len(
        list(source.model.named_parameters(remove_duplicate=False))
    )
    name = next(n for n, _ in model.named_parameters() if n.endswith("layer.0.output.dense.weight"))
    point = encode(model.get_parameter(name).detach(), "nf4/absmax/block=32")
    write_like(source, tmp_path / "out", {name: point})
    back = open_source(tmp_path / "out").model
    for own, parameter in model.named_parameters():
        assert torch.equal(back.get_parameter(own), decode(point) if own == name else parameter)
    with pytest.raises(ValueError, match="is a model of type 'bert'; GGUF is written for llama, qwen2, qwen3"):
        write_like(source, tmp_path / "m.gguf", {})
    with pytest.raises(ValueError, match="has no tokenizer, so texts cannot be made ids; give ids instead"):
        source.encode("a")
    ids = torch.zeros(1, 4, dtype=torch.long)
    if named == "BertModel":
        with pytest.raises(ValueError, match="the model BertModel gives no logits"):
            source.logits(ids)
    else:
        assert torch.equal(source.logits(ids), model(ids).logits)


def test_missing_weights_are_named(tmp_path):
    config = transformers.BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
                                     vocab_size=99, max_position_embeddings=32)  # fmt: skip
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(stored | {"architectures": ["BertModel"]}))
    refused(tmp_path, r"lacks the weights of pooler\.dense\.bias \(2 in all\)")


def refused(path, match):
    with pytest.raises(ValueError, match=match) as caught:
        open_source(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_folders_that_hold_no_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        open_source(tmp_path / "nothing")
    refused(tmp_path, "holds no model")
    config = tmp_path / "config.json"
    for text, match in (
        ("{", "is damaged"),
        ("[]", "names no model_type"),
        ('{"model_type": "no such model"}', "its model cannot be read"),
        ('{"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}', "quantized by gptq already"),
        ('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}', "its model cannot be read"),
    ):
        config.write_text(text)
        refused(tmp_path, match)


def test_damaged_weights_and_tokenizers_of_a_folder(tmp_path):
    folder_model(tmp_path, "qwen3")
    whole = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(whole[:200])
    refused(tmp_path, "its tokenizer cannot be read")
    (tmp_path / "tokenizer.json").write_text(whole)
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:-100])
    refused(tmp_path, "its model cannot be read")


def test_every_truncation_of_a_gguf_file_is_refused(made, tmp_path):
    _, file, _ = made
    data = file.read_bytes()
    starts = [t.field.offset for t in gguf.GGUFReader(file).tensors]
    # Within the magic, the counts, metadata, descriptions of tensors, and the last tensor.
    cut = tmp_path / "cut.gguf"
    for length in (0, 3, 10, 23, 60, 500, starts[0] - 3, starts[1] + 5, starts[-1] + 2, len(data) // 2, len(data) - 40):
        cut.write_bytes(data[:length])
        refused(cut, "is no GGUF file" if length < 4 else "is not a whole GGUF file")
    cut.write_bytes(b"PK" + data[2:])
    refused(cut, "is no GGUF file")


def rewritten(file: Path, out: Path, add=(), drop=(), rename=None, **fields) -> Path:
    """A copy of a GGUF file by gguf's own writer, with fields changed and tensors added, dropped or renamed."""
    reader, rename = gguf.GGUFReader(file), rename or {}
    family = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(out, fields.pop("architecture", family))
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture" and fields.get(key, 0) is not None:
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, fields.pop(key, field.contents()), field.types[0], inner)
    for key, value in fields.items():
        if value is not None:
            writer.add_key_value(key, value, *((gguf.GGUFValueType.UINT32,) if isinstance(value, int) else (gguf.GGUFValueType.STRING,)))  # fmt: skip
    for t in reader.tensors:
        if t.name not in drop:
            writer.add_tensor(rename.get(t.name, t.name), np.array(t.data), raw_dtype=t.tensor_type)
    for name, array in add:
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen3") / "model"
    folder_model(folder, "qwen3")
    write_like(open_source(folder), folder.with_suffix(".gguf"), {})
    return folder.with_suffix(".gguf")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"architecture": "mamba"}, r"has architecture 'mamba'; valid: llama, qwen2, qwen3"),
        ({"qwen3.block_count": None}, "does not say its block_count"),
        ({"drop": ["token_embd.weight"]}, "does not say its token_embd.weight"),
        ({"drop": ["blk.1.ffn_up.weight"]}, r"lacks the tensor of model\.layers\.1\.mlp\.up_proj\.weight"),
        ({"add": [("blk.0.ffn_gate_exps.weight", np.ones((4, 4), np.float32))]}, "has the tensor blk.0.ffn_gate_exps"),
        ({"qwen3.feed_forward_length": 128}, r"gate_proj\.weight has shape \(96, 64\), the metadata say \(128, 64\)"),
        ({"qwen3.rope.scaling.type": "yarn"}, "has rotations of type 'yarn'"),
        ({"qwen3.rope.dimension_count": 8}, "rotates a part of each head only"),
        ({"split.count": 2}, "is one part of a split GGUF model"),
        ({"tokenizer.ggml.model": "no such kind"}, "its tokenizer 'no such kind' cannot be read"),
    ],
)
def test_gguf_files_of_other_models_are_refused(file, tmp_path, changes, match):
    refused(rewritten(file, tmp_path / "other.gguf", **changes), match)


@pytest.mark.parametrize("asked", [True, False, None])
def test_what_a_text_begins_with_is_said_and_not_added(file, tmp_path, asked):
    fields = {"tokenizer.ggml.add_bos_token": asked, "tokenizer.ggml.bos_token_id": 5}
    source = open_source(rewritten(file, tmp_path / "m.gguf", **fields))
    assert source.tokenizer.first == (5 if asked else None)
    assert source.encode(TEXT).tolist() == byte_pairs(300).encode([TEXT])[0].tolist()


def test_factors_of_rotations_divide_them(file, tmp_path):
    """As runtimes do with the tensor that newer models of llama have beside them; no configuration says them."""
    factors = np.linspace(1, 8, 8).astype(np.float32)
    plain = open_source(file)
    source = open_source(rewritten(file, tmp_path / "f.gguf", add=[("rope_freqs.weight", factors)]))
    own, scaled = plain.model.model.rotary_emb.inv_freq, source.model.model.rotary_emb.inv_freq
    assert torch.equal(scaled, own / torch.from_numpy(factors))
    with pytest.raises(ValueError, match="divides its rotations by factors"):
        write_like(source, tmp_path / "hf", {})


def test_factors_of_weights_multiply_them(file, tmp_path):
    add = [("blk.0.ffn_up.scale", np.array([0.5], np.float32))]
    source, plain = open_source(rewritten(file, tmp_path / "f.gguf", add=add)), open_source(file)
    for name, parameter in plain.model.named_parameters():
        factor = 0.5 if name == "model.layers.0.mlp.up_proj.weight" else 1
        assert torch.equal(source.model.get_parameter(name), factor * parameter)


def test_damaged_metadata(file, tmp_path):
    data = file.read_bytes()
    at = data.index(b"general.name") + len(b"general.name") + 4 + 8
    (tmp_path / "m.gguf").write_bytes(data[:at] + b"\xff" + data[at + 1 :])
    refused(tmp_path / "m.gguf", "its tokenizer 'gpt2' cannot be read: 'utf-8' codec")
    # Their counts of bytes may lie: a sentence, and no memory of that size.
    huge = data[: at - 8] + struct.pack("<Q", 1 << 60) + data[at:]
    (tmp_path / "m.gguf").write_bytes(huge)
    refused(tmp_path / "m.gguf", "is not a whole GGUF file")


def test_our_decoder_read_back_from_gguf(tmp_path):
    from testbeds.lm.deploy import RunTokenizer, decoder_source
    from testbeds.lm.text.tokenizer import Bytes

    model = decoder(tied=False)
    own = decoder_source(model, RunTokenizer(Bytes()), Path("run"))
    write_like(own, tmp_path / "m.gguf", {n: encode(w, "q8_0") for n, w in matrices(model).items()})
    source = open_source(tmp_path / "m.gguf")
    assert source.encode(TEXT).tolist() == list(TEXT.encode()) and source.decode(source.encode(TEXT)) == TEXT
    assert source.config["head_dim"] == 16 and not source.config["tie_word_embeddings"]

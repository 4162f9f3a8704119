"""Do the tests of models in files bite? Deliberate errors in sources and writers are noticed."""

import tempfile
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("gguf")

from lotion_theory.export import compressed, folders, gguf_models, gguf_tokens, model_tensors, models
from lotion_theory.sources import container, families, folder, gguf_model, source
from testbeds.lm import deploy
from tests import test_export_models as written
from tests import test_sources as sources
from tests.mutants import Mutant, by_hand, noticed


def of_family(test, name="llama biased"):
    """A test on a folder of a family and the GGUF file made of it."""

    def call():
        with tempfile.TemporaryDirectory() as path:
            test(sources.family_in(Path(path), name))

    return call


def given(test, make, **arguments):
    """A test on a container or a folder made for it."""

    def call():
        with tempfile.TemporaryDirectory() as path, tempfile.TemporaryDirectory() as out:
            test(make(Path(path) / "made"), tmp_path=Path(out), **arguments)

    return call


def fresh(path: Path) -> Path:
    path.mkdir()
    return written.container_in(path)


KEPT = (given(written.test_a_gguf_file_keeps_all_bytes_but_those_replaced, fresh, kind="Q4_0"),)
READ = (of_family(sources.test_gguf_weights_are_what_gguf_and_transformers_read),)
FOLDER = (given(written.test_a_folder_keeps_its_files_and_types, written.folder_in),)
PACKED = (partial(written.test_packed_integers_are_the_cast_up_to_four_roundings, "int4/absmax/block=32"),)
TIED = (by_hand(written.test_tied_weights_are_one),)
DECODER = (by_hand(written.test_a_decoder_is_a_model_of_transformers),)

MUTANTS = {
    "rows of another order": Mutant(source, "(2, -1)", "(-1, 2)", READ),
    "heads of queries for keys": Mutant(
        families, '"num_attention_heads" if kind[1] == "q" else "num_key_value_heads"',
        '"num_attention_heads" if kind[1] == "q" else "num_attention_heads"',
        (of_family(sources.test_gguf_weights_are_what_gguf_and_transformers_read, "llama"),),
    ),
    "biases left out of the configuration": Mutant(
        families, '"attention_bias": "blk.0.attn_output.bias" in tensors', '"attention_bias": False', READ,
    ),
    "base of rotations forgotten": Mutant(
        families, 'base = rotation.get("rope_theta") or config.get("rope_theta") or 10000.0', "base = 500.0", READ,
    ),
    "epsilon of another metadatum": Mutant(
        families, '"rms_norm_eps": float(get(f"{family}.{EPSILON}"))', '"rms_norm_eps": 1e-3', READ,
    ),
    "parts of split files read": Mutant(
        container, 'if int(container.get("split.count", 1)) > 1:', "if False:",
        (lambda: of_file({"split.count": 2}, "is one part of a split GGUF model"),),
    ),
    "tensors that the model has no use for": Mutant(
        gguf_model, "if extra := [name for name in container.tensors if name not in known]:",
        "if extra := [name for name in container.tensors if name is None]:",
        (lambda: of_file({"add": [("blk.0.more.weight", sources.np.ones((4, 4), "f"))]}, "has the tensor blk.0.more"),),
    ),
    "weights that are missing drawn at random": Mutant(
        folder, 'if missing := sorted(map(str, report["missing_keys"])):', "if missing := []:",
        (by_hand(sources.test_missing_weights_are_named),),
    ),
    "tensors that begin anywhere": Mutant(
        container, "-len(head) % alignment", "-len(head) % 2", KEPT,
    ),
    "the type of the file left as it was": Mutant(
        gguf_models, "for key, number in (_file_type(written), _version()):\n        metadata",
        "for key, number in (_version(),):\n        metadata",
        (given(written.test_a_file_says_the_type_of_most_of_it, fresh, share=2, kind="MOSTLY_Q4_0"),),
    ),
    "rows written in the model's order": Mutant(
        model_tensors, "rows = np.ascontiguousarray(place.to_file(data))", "rows = np.ascontiguousarray(data)", KEPT,
    ),
    "a tied weight taken for two": Mutant(
        model_tensors, "own = first[id(parameters[name])]", "own = name", TIED,
    ),
    "other float types for exact": Mutant(
        folders, 'own = "float32"\n    for key', "own = own\n    for key", FOLDER,
    ),
    "other files left behind": Mutant(folders, "            _copy(source.path, part)\n", "            pass\n", FOLDER),
    "the index of another model": Mutant(folders, "if len(files) > 1 or files[0].name != WEIGHTS:", "if False:", FOLDER),
    "packed without the offset": Mutant(
        compressed, "pack((row + (1 << (width - 1))).astype(np.uint8), width)", "pack((row & 15).astype(np.uint8), width)", PACKED,
    ),
    "a scale of the wrong top": Mutant(
        compressed, "top / np.float32(float(book.high))", "top / np.float32(1 - float(book.low) )" , PACKED,
    ),
    "queries for keys": Mutant(deploy, "module, _, end = name.rpartition(\".\")\n    if module in _ENDS:",
        "module, _, end = name.replace('key', 'query').rpartition(\".\")\n    if module in _ENDS:", DECODER),
    "a mixer that no runtime has": Mutant(
        models, "if reason := source.refused.get(kind):", "if reason := source.refused.get(''):",
        (by_hand(written.test_a_recurrent_mixer_has_no_runtime),),
    ),
    "merges of another order": Mutant(
        gguf_tokens, 'for one in model["merges"]]', 'for one in reversed(model["merges"])]',
        (of_family(sources.test_gguf_weights_are_what_gguf_and_transformers_read, "qwen3"),),
    ),
}  # fmt: skip


def of_file(changes, match):
    """A changed copy of a GGUF file is refused."""
    with tempfile.TemporaryDirectory() as path:
        _, file, _ = sources.family_in(Path(path), "qwen3")
        sources.refused(sources.rewritten(file, Path(path) / "other.gguf", **changes), match)


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_noticed(name):
    assert noticed(MUTANTS[name])

"""Ways of splitting texts into words: every name gives the tokenizer that has it, and llama.cpp splits alike."""

import json
from pathlib import Path

import pytest

from lotion_theory.export import write_like
from lotion_theory.sources import open_source
from lotion_theory.sources.splitting import OTHER_NAMES, SPLITTINGS, splitter, splitting
from tests.model_cases import decoder

pytest.importorskip("torch")
tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("gguf")

WORDS = "It's 12345 and 6 of\n\n the  they'LL\tHELLO'S naïve 世界12 \r\n\r\n  x=3;y--;  end  "


def byte_pairs(name: str, vocabulary: int = 420):
    """A tokenizer that splits in the way ``name``, with pairs of what the ways treat differently."""
    from testbeds.lm.deploy import RunTokenizer
    from testbeds.lm.text.tokenizer import BytePairs

    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = splitter(name, "")
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary - 1, initial_alphabet=sorted(alphabet), show_progress=False
    )
    made.train_from_iterator([WORDS * 20], trainer)
    made.add_special_tokens(["<|endoftext|>"])
    return RunTokenizer(BytePairs(name, made))


def written(path: Path, name: str) -> Path:
    from testbeds.lm.deploy import decoder_source

    write_like(decoder_source(decoder(vocabulary=420), byte_pairs(name), Path("run")), path / "m.gguf", {})
    return path / "m.gguf"


@pytest.mark.parametrize("name", SPLITTINGS)
def test_names_come_back(name):
    description = json.loads(byte_pairs(name).description and json.dumps(byte_pairs(name).description))
    assert splitting(description["pre_tokenizer"]) == OTHER_NAMES.get(name, name)


def test_the_ways_differ():
    ids = {name: tuple(byte_pairs(name).encode([WORDS])[0]) for name in SPLITTINGS if name not in OTHER_NAMES}
    assert len(set(ids.values())) == len(ids)


@pytest.mark.parametrize("name", sorted(set(SPLITTINGS) - set(OTHER_NAMES)))
def test_ids_are_the_same_everywhere(tmp_path, name):
    pytest.importorskip("transformers")
    expected = byte_pairs(name).encode([WORDS])[0].tolist()
    file = written(tmp_path, name)
    assert open_source(file).encode(WORDS).tolist() == expected
    write_like(open_source(file), tmp_path / "folder", {})
    assert open_source(tmp_path / "folder").encode(WORDS).tolist() == expected


@pytest.mark.parametrize("name", sorted(set(SPLITTINGS) - set(OTHER_NAMES)))
def test_llama_splits_alike(tmp_path, name):
    from testbeds.lm.measure.llama_cpp import llama_library, llama_tokens

    try:
        llama_library()
    except ImportError as error:
        pytest.skip(str(error))
    (found,) = llama_tokens(written(tmp_path, name), [WORDS])
    assert found.tolist() == byte_pairs(name).encode([WORDS])[0].tolist()


def test_other_ways_are_refused(tmp_path):
    from testbeds.lm.deploy import decoder_source

    with pytest.raises(
        ValueError, match=r"^m: its tokenizer splits words in the way 'tekken', which is not read; valid: gpt-2"
    ):
        splitter("tekken", "m: its tokenizer")
    made = tokenizers.pre_tokenizers
    byte_level = made.ByteLevel(add_prefix_space=False, use_regex=False)
    for steps in (
        [made.Whitespace()],
        [byte_level],
        [made.Digits(individual_digits=True), byte_level],
        [made.Digits(individual_digits=False), made.ByteLevel(add_prefix_space=False)],
        [made.ByteLevel(add_prefix_space=True)],
        [made.Split(tokenizers.Regex(r"\s"), behavior="isolated"), byte_level],
        [made.Digits(), made.Punctuation(), made.ByteLevel(add_prefix_space=False)],
    ):
        texts = byte_pairs("gpt-2")
        texts._own._tokenizer.pre_tokenizer = made.Sequence(steps)
        with pytest.raises(ValueError, match="splits words in a way that no runtime is known to have a name for"):
            write_like(decoder_source(decoder(vocabulary=420), texts, Path("run")), tmp_path / "m.gguf", {})
    assert splitting(None) is None and not list(tmp_path.iterdir())

"""Tokenizers, and preparing corpora: interrupted runs go on, and what is damaged is named."""

import base64
import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbeds.data import load_sotu
from testbeds.lm.text import prepare as module
from testbeds.lm.text.prepare import learned_tokenizer, prepare
from testbeds.lm.text.sources import c4, text_files
from testbeds.lm.text.tokenizer import Bytes, _letters, tokenizer, train_bpe
from testbeds.lm.text.tokens import Tokens, write_tokens

# --- tokenizers ------------------------------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_bytes_are_the_text(text):
    assert bytes(Bytes().encode([text])[0].astype(np.uint8)).decode() == text


def test_bytes_refuse_the_end_of_text():
    with pytest.raises(ValueError, match="a text with a zero byte"):
        Bytes().encode(["a\0b"])


def ranks_file(path, trained):
    """The same tokenizer as a file of ranks: tokens as bytes, in base64."""
    byte_of = {letter: byte for byte, letter in _letters().items()}
    vocabulary = json.loads(trained._tokenizer.to_str())["model"]["vocab"]
    lines = [(rank, bytes(byte_of[c] for c in token)) for token, rank in vocabulary.items()]
    path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in sorted(lines)))


def test_learned_tokenizer_reads_back_from_json_and_from_ranks(tmp_path):
    pytest.importorskip("tokenizers")
    texts = load_sotu().split("\n\n")[:4]
    trained = train_bpe(texts, 400)
    assert trained.vocabulary == 400 and trained.end_of_text == 399
    trained.save(tmp_path / "t.json")
    ranks_file(tmp_path / "t.tiktoken", trained)
    wanted = trained.encode([*texts, "Größe 東京 \n\n  x\t'll 12", ""])
    assert sum(map(len, wanted)) < 0.6 * sum(map(len, Bytes().encode(texts)))
    for name in ("t.json", "t.tiktoken"):
        found = tokenizer(str(tmp_path / name))
        assert (found.vocabulary, found.end_of_text) == (400, 399) and found.name.startswith("bpe-")
        got = found.encode([*texts, "Größe 東京 \n\n  x\t'll 12", ""])
        assert all(np.array_equal(a, b) for a, b in zip(got, wanted, strict=True))
        # A document that spells the end of text does not end there.
        assert len(found.encode(["<|endoftext|>"])[0]) > 1


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("t.tiktoken", b"", "t.tiktoken is no complete file of ranks: 0 tokens"),
        ("t.tiktoken", b"!! 3", "t.tiktoken is no file of ranks"),
        ("t.json", b"{}", "t.json is no tokenizer file"),
        ("t.txt", b"", "valid: bytes, a .tiktoken file"),
    ],
)
def test_wrong_tokenizer_files_are_named(tmp_path, name, content, message):
    pytest.importorskip("tokenizers")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        tokenizer(str(tmp_path / name))
    with pytest.raises(FileNotFoundError, match=r"gone\.json'?: no such file"):
        tokenizer(str(tmp_path / "gone.json"))


# --- preparing -------------------------------------------------------------------------------------------------------

TEXTS = [f"document number {i} " + "x" * (i % 7) for i in range(50)]


def c4_shard(path, texts=TEXTS):
    """Lines of JSON with text, timestamp and url, gzipped: the layout of C4."""
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for number, text in enumerate(texts):
            file.write(
                json.dumps({"text": text, "timestamp": "2019-04-25T12:57:54Z", "url": f"http://{number}"}) + "\n"
            )
    return path


def documents_of(folder, split):
    tokens = Tokens.open(folder, split)
    return bytes(np.concatenate(tokens.arrays).astype(np.uint8)).decode().split("\0")[:-1]


def test_every_so_manieth_document_is_held_out(tmp_path):
    path = c4_shard(tmp_path / "c4-train.00000-of-01024.json.gz")
    counts = prepare(tmp_path / "out", text_files([path]), Bytes(), held_out_every=10, tokens_per_file=200)
    assert documents_of(tmp_path / "out", "validation") == TEXTS[9::10]
    assert documents_of(tmp_path / "out", "train") == [t for i, t in enumerate(TEXTS) if i % 10 != 9]
    assert len(list((tmp_path / "out").glob("train-*"))) > 2
    assert counts == {s: len(Tokens.open(tmp_path / "out", s)) for s in ("train", "validation")}


def test_interrupted_preparation_goes_on_to_the_same_files(tmp_path):
    path = c4_shard(tmp_path / "a.json.gz")

    def run(out, source):
        return prepare(tmp_path / out, source, Bytes(), held_out_every=10, tokens_per_file=150)

    class Killed(Exception):
        pass

    def dying(start):
        for number, text in enumerate(text_files([path])(start), start):
            if number == 33:
                raise Killed
            yield text

    # The batch of documents that is being encoded is lost, so it must not be all of them.
    before, module.ENCODED_AT_ONCE = module.ENCODED_AT_ONCE, 4
    try:
        with pytest.raises(Killed):
            run("a", dying)
        assert list((tmp_path / "a").glob("train-*")) and not list((tmp_path / "a").glob("*partial*"))
        run("a", text_files([path]))
    finally:
        module.ENCODED_AT_ONCE = before
    run("b", text_files([path]))
    names = sorted(p.name for p in (tmp_path / "b").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "a").iterdir())
    assert all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names)
    # Once more changes nothing.
    times = {n: (tmp_path / "b" / n).stat().st_mtime_ns for n in names}
    run("b", text_files([path]))
    assert times == {n: (tmp_path / "b" / n).stat().st_mtime_ns for n in names}


def test_files_of_another_tokenizer_are_not_continued(tmp_path):
    path = c4_shard(tmp_path / "a.json.gz")
    (tmp_path / "out").mkdir()
    write_tokens(tmp_path / "out" / "train-00000.tokens", [(0, np.array([1]))], 10, "other")
    with pytest.raises(
        ValueError, match=r"train-00000\.tokens was made with tokenizer 'other', not 'bytes': remove it"
    ):
        prepare(tmp_path / "out", text_files([path]), Bytes())


def test_limit_stops_an_endless_source(tmp_path):
    def endless(start):
        while True:
            yield "some words"

    counts = prepare(tmp_path / "out", endless, Bytes(), held_out_every=5, tokens_per_file=4000, limit=10_000)
    assert all(10_000 <= count < 10_012 for count in counts.values())


def test_few_long_texts_give_their_ends(tmp_path):
    (tmp_path / "a.txt").write_text("é" * 90 + "y" * 10, encoding="utf-8")
    prepare(tmp_path / "out", text_files([tmp_path / "a.txt"]), Bytes(), held_out_part=0.1)
    assert documents_of(tmp_path / "out", "train") == ["é" * 90]
    assert documents_of(tmp_path / "out", "validation") == ["y" * 10]
    with pytest.raises(ValueError, match=r"no validation tokens.*--held-out-part"):
        prepare(tmp_path / "other", text_files([tmp_path / "a.txt"]), Bytes())


def test_plain_files_are_cut_at_the_separator(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n\n \n\nthree")
    source = text_files([tmp_path / "a.txt"], "\n\n")
    assert list(source(0)) == ["one", "two", "three"] and list(source(2)) == ["three"]
    assert list(text_files([tmp_path / "a.txt"])(0)) == ["one\n\ntwo\n\n \n\nthree"]


@pytest.mark.parametrize("how", ["cut", "flip", "other field", "no JSON", "encoding"])
def test_damaged_sources_are_named(tmp_path, how):
    path = c4_shard(tmp_path / "a.json.gz")
    content = bytearray(path.read_bytes())
    if how == "cut":
        path.write_bytes(content[:-20])
    elif how == "flip":
        content[-6] ^= 1  # in the checksum of the archive
        path.write_bytes(content)
    elif how == "encoding":
        path = tmp_path / "a.txt"
        path.write_bytes(b"\xff\xfe")
    else:
        path = tmp_path / "a.jsonl"
        path.write_text('{"text": "good"}\n' + ('{"body": "x"}\n' if how == "other field" else "oops\n"))
    with pytest.raises(ValueError, match=r"a\.(json\.gz|jsonl) is damaged after line \d+|a\.txt is not UTF-8"):
        list(text_files([path])(0))


def test_missing_source_is_named_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file: .*gone\.txt"):
        text_files([tmp_path / "gone.txt"])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"held_out_part": 1.0}, "held_out_part = 1.0"),
        ({"held_out_every": 1}, "held_out_every = 1"),
        ({"limit": 0}, "limit = 0"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path, lambda start: iter(()), Bytes(), **options)


def test_learned_tokenizer_is_kept(tmp_path):
    pytest.importorskip("tokenizers")

    def source(start):
        return iter(load_sotu().split("\n\n")[start:2])

    first = learned_tokenizer(source, 300, tmp_path / "sub" / "t.json")
    assert first.name == learned_tokenizer(lambda start: iter(()), 300, tmp_path / "sub" / "t.json").name
    with pytest.raises(ValueError, match=r"t\.json has a vocabulary of 300, not 301: remove it"):
        learned_tokenizer(source, 301, tmp_path / "sub" / "t.json")


def test_c4_streams_local_shards_of_its_layout(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    files = [
        str(c4_shard(tmp_path / f"c4-train.0000{i}-of-01024.json.gz", part))
        for i, part in enumerate((TEXTS[:30], TEXTS[30:]))
    ]
    source = c4("train", files)
    assert list(source(0)) == TEXTS
    assert list(source(37)) == TEXTS[37:]
    prepare(tmp_path / "out", source, Bytes(), held_out_every=10)
    assert documents_of(tmp_path / "out", "validation") == TEXTS[9::10]


def test_c4_without_the_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ImportError, match=r"needs the library datasets: pip install"):
        c4()

"""Token files know what they were made from, and texts in odd shapes are read or named."""

import json
import os
import shutil

import numpy as np
import pytest

from testbeds import cli
from testbeds.data import load_sotu
from testbeds.lm.text.ids import prepare_ids
from testbeds.lm.text.prepare import prepare
from testbeds.lm.text.sources import text_files
from testbeds.lm.text.tokenizer import Bytes, tokenizer, train_bpe
from testbeds.lm.text.tokens import Tokens, write_tokens


def lines(path, texts, **options):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), **options)
    return path


def content(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture
def made(tmp_path):
    """Two files, and the tokens of the first one: the function that prepares, and its arguments."""
    a = lines(tmp_path / "a.jsonl", [f"first {k}" for k in range(40)])
    b = lines(tmp_path / "b.jsonl", [f"second {k}" for k in range(40)])

    def run(out, paths=(a,), **options):
        return prepare(tmp_path / out, text_files(paths), options.pop("tokenizer", Bytes()), **options)

    run("out", tokens_per_file=100)
    return run, a, b


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a, b: {"paths": (b,)}, r"sources\.train: \['a\.jsonl, .*now \['b\.jsonl, "),
        (lambda a, b: {"paths": (a, b)}, r"sources\.train"),
        (lambda a, b: {"held_out_every": 5}, "held_out_every: 20, now 5"),
        (lambda a, b: {"held_out_part": 0.5}, "held_out_part: None, now 0.5"),
        (lambda a, b: {"validation": text_files((b,))}, "validation: None, now"),
        (lambda a, b: {"limit": 300}, "limit: None, now 300"),
        (lambda a, b: {"tokens_per_file": 200}, "tokens_per_file: 100, now 200"),
        (lambda a, b: {"tokenizer": 300}, "tokenizer: bytes, now 300 ids, learned"),
    ],
)
def test_a_folder_holds_one_preparation(made, tmp_path, change, message):
    run, a, b = made
    before = content(tmp_path / "out")
    with pytest.raises(ValueError, match=f"out holds tokens that were made otherwise .*{message}.*another folder"):
        run("out", **{"tokens_per_file": 100, **change(a, b)})
    assert content(tmp_path / "out") == before


def test_order_and_content_of_files_count_and_their_folder_does_not(made, tmp_path):
    run, a, b = made
    run("both", (a, b))
    with pytest.raises(ValueError, match="made otherwise"):
        run("both", (b, a))
    (tmp_path / "moved").mkdir()
    moved = [shutil.copy(path, tmp_path / "moved") for path in (a, b)]
    assert run("both", [tmp_path / "moved" / os.path.basename(path) for path in moved]) == run("both", (a, b))
    lines(a, [f"first {k}" for k in range(39)] + ["other 39"])
    with pytest.raises(ValueError, match="made otherwise"):
        run("both", (a, b))
    # Where nothing was made yet, another attempt is free.
    with pytest.raises(ValueError, match="no validation tokens"):
        run("empty", (lines(tmp_path / "few.jsonl", ["one"]),), limit=1)
    for path in (tmp_path / "empty").glob("*.tokens"):
        path.unlink()
    assert run("empty", (b,))["train"] > 0


def test_streams_are_told_apart_by_their_first_documents(tmp_path):
    def counting(word):
        return lambda start: iter([f"{word} {k}" for k in range(start, 30)])

    first = prepare(tmp_path, counting("one"), Bytes())
    assert prepare(tmp_path, counting("one"), Bytes()) == first
    with pytest.raises(ValueError, match="first_documents"):
        prepare(tmp_path, counting("two"), Bytes())


def test_tokens_of_unknown_origin_are_not_continued(made, tmp_path):
    run = made[0]
    (tmp_path / "out" / "prepared.json").unlink()
    with pytest.raises(ValueError, match=r"train-00000\.tokens is there, but no prepared\.json"):
        run("out", tokens_per_file=100)
    (tmp_path / "out" / "prepared.json").write_text("[]")
    with pytest.raises(ValueError, match=r"prepared\.json is damaged"):
        run("out", tokens_per_file=100)


def test_a_learned_tokenizer_belongs_to_its_texts(made, tmp_path):
    pytest.importorskip("tokenizers")
    run, _, b = made
    run("bpe", tokenizer=300)
    assert run("bpe", tokenizer=300) == {s: len(Tokens.open(tmp_path / "bpe", s)) for s in ("train", "validation")}
    for path in (tmp_path / "bpe").glob("*.tokens"):
        path.unlink()
    with pytest.raises(ValueError, match="made otherwise"):
        run("bpe", (b,), tokenizer=300)


def test_ids_do_not_replace_other_tokens(made, tmp_path):
    ids = np.array([1, 2, 9] * 40, "<u2")
    (tmp_path / "ids").write_bytes(ids.tobytes())
    with pytest.raises(ValueError, match="made otherwise"):
        prepare_ids(tmp_path / "out", [tmp_path / "ids"], (), 10, 9)
    first = prepare_ids(tmp_path / "ids out", [tmp_path / "ids"], (), 10, 9)
    assert prepare_ids(tmp_path / "ids out", [tmp_path / "ids"], (), 10, 9, tokens_per_file=30) == first


# --- texts in odd shapes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"text": null}', "in the field 'text', not null"),
        ('{"text": 3}', "not 3"),
        ('{"body": "x"}', 'not {"body": "x"}'),
        ("[1]", r"not \[1\]"),
        ("null", "not null"),
        ("oops", "Expecting value"),
        ("[" * 100_000, "recursion"),
        ('{"text": "half \\ud83d"}', r"half a surrogate pair, '\\ud83d', is no text \(character 6\)"),
    ],
)
def test_wrong_lines_are_named(tmp_path, capsys, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n\n' + line + "\n")
    with pytest.raises(ValueError, match=rf"a\.jsonl is damaged after line 2: .*{message}"):
        list(text_files([path])(0))
    with pytest.raises(SystemExit) as ended:
        cli.main(["prepare", "--files", str(path), "--out", str(tmp_path / "out")])
    assert ended.value.code == 2 and not (tmp_path / "out").exists()
    assert "Traceback" not in capsys.readouterr().err


def test_marks_blank_lines_and_line_ends_are_no_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"text": "two\\n"}\r\n  \n\n')
    assert list(text_files([path])(0)) == ["one", "two\n"]
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo\rthree")
    assert list(text_files([path], "\n\n")(0)) == ["one", "two\nthree"]
    for encoding in ("utf-16", "latin-1"):
        path.write_text("größer", encoding=encoding)
        with pytest.raises(ValueError, match=r"a\.txt is not UTF-8 text"):
            list(text_files([path])(0))


def test_pipes_and_folders_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "train-00000.tokens")
    write_tokens(tmp_path / "validation-00000.tokens", [(0, np.array([1]))], 10, "bytes")
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    for read in (lambda: text_files([pipe]), lambda: prepare_ids(tmp_path / "o", [pipe]), lambda: tokenizer(str(pipe))):
        with pytest.raises(ValueError, match=r"pipe\.json is a pipe, a device or a socket, not a file"):
            read()
    with pytest.raises(ValueError, match=r"train-00000\.tokens is a pipe"):
        Tokens.open(tmp_path, "train")


def test_a_text_that_no_tokenizer_takes_is_numbered(tmp_path):
    path = lines(tmp_path / "a.jsonl", ["good", "bad \0"])
    with pytest.raises(ValueError, match="documents 0 to 1: a text with a zero byte"):
        prepare(tmp_path / "out", text_files([path]), Bytes(), held_out_every=20)


def test_truncation_and_padding_of_a_tokenizer_file_are_switched_off(tmp_path, capsys):
    pytest.importorskip("tokenizers")
    made = train_bpe(load_sotu().split("\n\n")[:1], 300)
    texts = ["a longer text than four tokens", "short"]
    wanted = made.encode(texts)
    made._tokenizer.enable_truncation(4)
    made._tokenizer.enable_padding(length=64)
    made.save(tmp_path / "t.json")
    found = tokenizer(str(tmp_path / "t.json"))
    assert found.ignored == ("truncation", "padding")
    assert all(np.array_equal(a, b) for a, b in zip(found.encode(texts), wanted, strict=True))
    path = lines(tmp_path / "a.jsonl", texts * 20)
    with pytest.raises(SystemExit) as ended:
        cli.main(
            ["prepare", "--files", str(path), "--tokenizer", str(tmp_path / "t.json"), "--out", str(tmp_path / "o")]
        )
    assert ended.value.code == 0
    assert "t.json asks for truncation, which is switched off here" in capsys.readouterr().err.replace("\n", " ")

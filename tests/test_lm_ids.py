"""Ids tokenized elsewhere: every document arrives once, in a drawn order, and what is damaged is named."""

import lzma

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbeds.cli import main
from testbeds.lm.text.ids import documents, prepare_ids, read_ids
from testbeds.lm.text.tokens import Tokens
from tests.strategies import examples

END = 9


def write(path, ids):
    data = np.asarray(ids, "<u2").tobytes()
    path.write_bytes(lzma.compress(data) if path.suffix == ".xz" else data)
    return path


def split_of(folder, name):
    tokens = Tokens.open(folder, name)
    return [tuple(one) for one in documents(np.concatenate(tokens.arrays), END)]


@examples(60)
@given(st.lists(st.integers(0, END), max_size=30))
def test_documents_are_what_lies_between_the_ends(ids):
    found = documents(np.array(ids, np.uint16), END)
    expected, here = [], []
    for one in [*ids, END]:
        if one == END:
            expected += [here] if here else []
            here = []
        else:
            here.append(one)
    assert [list(one) for one in found] == expected


def test_documents_arrive_once_in_a_drawn_order(tmp_path):
    texts = [(k % 8, k // 8 % 8, k // 64) for k in range(100)]
    flat = [i for text in texts for i in (*text, END)]
    first, second = write(tmp_path / "a.u16.xz", flat[:200]), write(tmp_path / "b.u16", flat[200:])
    counts = prepare_ids(tmp_path / "out", [first, second], (), 10, END, held_out_every=10, tokens_per_file=90)
    train, held_out = split_of(tmp_path / "out", "train"), split_of(tmp_path / "out", "validation")
    assert sorted(train + held_out) == sorted(texts) and len(held_out) == 10
    assert train != [text for text in texts if text in train]
    assert counts == {"train": 360, "validation": 40} and len(list((tmp_path / "out").glob("train-*"))) == 4
    # A second time the same, and fewer files where they are larger.
    prepare_ids(tmp_path / "out", [first, second], (), 10, END, held_out_every=10)
    assert split_of(tmp_path / "out", "train") == train


def test_the_command_takes_ids_and_held_out_ids(tmp_path, capsys):
    train, held_out = write(tmp_path / "t.xz", [1, 2, END, 3, END]), write(tmp_path / "v", [4, END])
    with pytest.raises(SystemExit) as ended:
        options = f"--ids {train} --validation-ids {held_out} --end-of-text 9 --vocabulary 10 --out {tmp_path / 'o'}"
        main(["prepare", *options.split()])
    assert ended.value.code == 0 and "train: 5 tokens, vocabulary 10" in capsys.readouterr().out
    assert sorted(split_of(tmp_path / "o", "train")) == [(1, 2), (3,)] and split_of(tmp_path / "o", "validation") == [
        (4,)
    ]


@pytest.mark.parametrize(
    "content, name, message",
    [
        (b"abc", "t.u16", "t.u16 holds 3 bytes: no whole number of 16-bit ids"),
        (b"abcd", "t.xz", "t.xz is damaged"),
        (np.array([3, 12], "<u2").tobytes(), "t.u16", "ids 3 to 12 in a vocabulary of 10"),
    ],
)
def test_damaged_files_are_named(tmp_path, content, name, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        prepare_ids(tmp_path / "o", [tmp_path / name], [tmp_path / name], 10, END)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_ids(tmp_path / "gone")

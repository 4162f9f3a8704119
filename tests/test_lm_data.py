"""Order of the training sequences, and token files: what is damaged is named."""

import errno
import io
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbeds.data import load_sotu
from testbeds.lm.text.config import DataConfig
from testbeds.lm.text.sequences import Order, fixed_batch, fixed_sequences, load_tokens, permuted
from testbeds.lm.text.tokens import HEADER_BYTES, Tokens, read_header, read_tokens, write_tokens

KEYS = np.random.default_rng(0).integers(2**64, size=6, dtype=np.uint64)


def ids(*values):
    return np.array(values, dtype=np.int64)


def counting(*lengths):
    """Arrays that count on through one another."""
    ends = np.cumsum((0, *lengths))
    return Tokens([np.arange(a, b, dtype=np.uint16) for a, b in pairwise(ends)], 2**16, "test")


# --- order -----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 3000), st.integers(0, 2**32))
def test_permutation_hits_everything_once(size, seed):
    keys = np.random.default_rng(seed).integers(2**64, size=6, dtype=np.uint64)
    assert np.array_equal(np.sort(permuted(np.arange(size), size, keys)), np.arange(size))


@given(st.integers(1, 2**40), st.integers(0, 2**32))
def test_permutation_is_computed_one_by_one(size, seed):
    index = np.random.default_rng(seed).integers(size, size=20)
    images = permuted(index, size, KEYS)
    assert ((images >= 0) & (images < size)).all()
    assert [int(permuted(index[i : i + 1], size, KEYS)[0]) for i in range(20)] == images.tolist()
    assert len(set(images.tolist())) == len(set(index.tolist()))


def test_permutations_of_different_keys_look_independent():
    # Of 4000 numbers, a random permutation leaves Poisson(1) in place: more than 9 has probability 1e-7.
    other = np.random.default_rng(1).integers(2**64, size=6, dtype=np.uint64)
    a, b = (permuted(np.arange(4000), 4000, keys) for keys in (KEYS, other))
    assert (a == b).sum() <= 9 and (a == np.arange(4000)).sum() <= 9
    # Neighbours are scattered: the mean distance of random pairs is n / 3, with standard error n / sqrt(18 n) = 15;
    # five of them.
    assert abs(np.abs(np.diff(a)).mean() - 4000 / 3) < 75


@pytest.mark.parametrize("lengths", [(50,), (17, 4, 30, 5)])
def test_an_epoch_holds_every_sequence_once(lengths):
    tokens = counting(*lengths)
    order = Order(tokens, 4, seed=3)
    assert order.size == sum(max(0, (n - 4) // 4) for n in lengths)
    for epoch in range(4):
        x, y = order.batch(epoch * order.size, order.size)
        shift = order.places(epoch * order.size, 1)[0][1]
        expected = [tokens.sequence(n, 4, shift) for n in range(order.size)]
        rows = np.concatenate((x, y[:, -1:]), axis=1)
        assert sorted(map(tuple, rows)) == sorted(map(tuple, expected))
        # Consecutive ids within every row: none crosses from one array into the next unnoticed.
        assert (np.diff(rows, axis=1) == 1).all() and (x[:, 1:] == y[:, :-1]).all()


def test_epochs_differ_in_order_and_in_cut():
    order = Order(counting(4000), 8, seed=0)
    places = [order.places(epoch * order.size, order.size) for epoch in range(6)]
    assert len({tuple(number for number, _ in one) for one in places}) == 6
    assert len({one[0][1] for one in places}) > 1


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("parts", [1, 3])
def test_processes_and_micro_batches_share_the_same_batch(processes, parts):
    order = Order(counting(300), 7, seed=1)
    whole = order.batch(60, 24)
    share = 24 // processes
    pieces = [
        order.batch(60 + rank * share + part * share // parts, share // parts)
        for rank in range(processes)
        for part in range(parts)
    ]
    for k in (0, 1):
        assert np.array_equal(np.concatenate([piece[k] for piece in pieces]), whole[k])


def test_order_depends_on_the_seed_only():
    tokens = counting(3000)
    a, b, c = (Order(tokens, 5, seed) for seed in (0, 0, 1))
    b.batch(777, 3)
    assert np.array_equal(a.batch(10, 20)[0], b.batch(10, 20)[0])
    assert not np.array_equal(a.batch(10, 20)[0], c.batch(10, 20)[0])


def test_too_few_tokens_are_refused():
    with pytest.raises(ValueError, match="7 tokens are too few for one sequence of context = 4"):
        Order(counting(7), 4, 0)
    with pytest.raises(ValueError, match="11 held-out tokens make 1 sequences of context = 4: two are needed"):
        fixed_sequences(counting(11), 4, 8, 0)


def test_evaluation_sequences_are_different_and_fixed():
    tokens = counting(400)
    numbers = fixed_sequences(tokens, 4, 20, 0)
    assert len(set(numbers.tolist())) == 20 and np.array_equal(numbers, fixed_sequences(tokens, 4, 20, 0))
    assert not np.array_equal(numbers, fixed_sequences(tokens, 4, 20, 1))
    assert np.array_equal(fixed_sequences(tokens, 4, 10**6, 0), np.arange(99))
    x, y = fixed_batch(tokens, 4, [2, 0])
    assert x.tolist() == [[8, 9, 10, 11], [0, 1, 2, 3]] and y[0].tolist() == [9, 10, 11, 12]


def test_embedded_corpus_is_split_by_address():
    train, held_out = load_tokens(DataConfig())
    text = [bytes(t.arrays[0].astype(np.uint8)).decode().split("\0")[:-1] for t in (train, held_out)]
    assert [len(part) for part in text] == [53, 5]
    assert sorted(text[0] + text[1]) == sorted(load_sotu().split("\n\n"))


# --- token files -----------------------------------------------------------------------------------------------------


def written(path, documents=None):
    documents = documents or [(0, ids(1, 2, 3)), (1, ids(4))]
    return write_tokens(path, documents, vocabulary=10, tokenizer="test", end_of_text=9)


def test_token_file_holds_documents_and_their_ends(tmp_path):
    header = written(tmp_path / "a.tokens")
    found, values = read_tokens(tmp_path / "a.tokens")
    assert found == header == read_header(tmp_path / "a.tokens")
    assert values.tolist() == [1, 2, 3, 9, 4, 9] and values.dtype == np.uint16 and isinstance(values, np.memmap)
    assert (header.tokens, header.largest, header.first_document, header.next_document) == (6, 9, 0, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tokens"]


@pytest.mark.parametrize("value", [-1, 10])
def test_ids_outside_the_vocabulary_are_refused_and_nothing_stays(tmp_path, value):
    with pytest.raises(ValueError, match=r"a\.tokens: ids 1 to 10|a\.tokens: ids -1 to 1"):
        written(tmp_path / "a.tokens", [(0, ids(1, value))])
    assert list(tmp_path.iterdir()) == []


def test_vocabulary_must_fit_in_16_bits(tmp_path):
    with pytest.raises(ValueError, match="vocabulary = 65537; valid: 1 to 65536"):
        write_tokens(tmp_path / "a.tokens", [], 65537, "test")
    with pytest.raises(ValueError, match="end_of_text = 10 in a vocabulary of 10"):
        write_tokens(tmp_path / "a.tokens", [], 10, "test", end_of_text=10)


@given(st.data())
def test_any_damage_to_a_token_file_is_named(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("tokens") / "a.tokens"
    written(path, [(0, ids(*range(9)) % 9)] * 20)
    content = path.read_bytes()
    how = data.draw(st.sampled_from(["cut", "append", "flip"]))
    if how == "cut":
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    elif how == "append":
        path.write_bytes(content + b"\0")
    else:
        place = data.draw(st.integers(HEADER_BYTES, len(content) - 1))
        path.write_bytes(
            content[:place] + bytes([content[place] ^ 1 << data.draw(st.integers(0, 7))]) + content[place + 1 :]
        )
    with pytest.raises(ValueError, match=r"a\.tokens .*lotion prepare"):
        read_tokens(path)
    if how != "flip":
        with pytest.raises(ValueError, match=r"a\.tokens .*lotion prepare"):
            read_tokens(path, verify=False)


def test_full_disk_is_named_and_the_partial_file_removed(tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, data):
            if self.tell() > HEADER_BYTES:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    def opened(self, *args, **kwargs):
        self.touch()
        return Full()

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(OSError, match=r"cannot write .*a\.tokens: No space left") as caught:
        written(tmp_path / "a.tokens")
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_folder_must_hold_files_of_one_vocabulary(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no token files train-\*\.tokens in .*lotion prepare"):
        Tokens.open(tmp_path, "train")
    written(tmp_path / "train-00000.tokens")
    write_tokens(tmp_path / "train-00001.tokens", [(0, ids(1))], 11, "test", 9)
    with pytest.raises(ValueError, match=r"train-00001\.tokens has vocabulary = 11, but train-00000\.tokens has 10"):
        Tokens.open(tmp_path, "train")


def test_configured_folder_must_exist_and_agree(tmp_path):
    with pytest.raises(ValueError, match=r"data\.tokens is empty: give a folder"):
        load_tokens(DataConfig(tokens=""))
    with pytest.raises(FileNotFoundError, match=r"data\.tokens = '.*gone': no such folder"):
        load_tokens(DataConfig(tokens=str(tmp_path / "gone")))
    written(tmp_path / "train-00000.tokens")
    write_tokens(tmp_path / "validation-00000.tokens", [(0, ids(1))], 10, "other", 9)
    with pytest.raises(ValueError, match="training files are in 'test', held-out ones 'other'"):
        load_tokens(DataConfig(tokens=str(tmp_path)))


def test_shifts_stay_inside_every_array():
    tokens = counting(9, 12)
    with pytest.raises(IndexError, match="sequence 3 of 3"):
        tokens.sequence(3, 4)
    for number, start in enumerate((0, 9, 13)):
        for shift in range(4):
            assert tokens.sequence(number, 4, shift).tolist() == list(range(start + shift, start + shift + 5))

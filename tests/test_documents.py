"""Files that users hand in: YAML, JSON and text that is damaged, ambiguous, or no file at all."""

import os

import pytest

from testbeds.documents import read_json, read_text, read_yaml, regular_file, yaml_value
from testbeds.lm.loop.folder import finished

yaml = pytest.importorskip("yaml", reason="needs PyYAML")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: 'a' is given twice"),
        ("a: {b: 1, b: 2}", "line 1: 'b' is given twice"),
        ("a: 1\nnull: 2", "line 2: a name must be text"),
        ("yes: 2", "a name must be text"),
        ("[a]: 2", "a name must be text"),
        ("? {a: 1}\n: 2", "a name must be text"),
        ("", "expected settings such as 'steps: 100', not nothing"),
        ("[1, 2]", r"expected settings .*, not \[1, 2\]"),
        ("word " * 100, "expected settings"),
        ("a: &x {b: *x}", "an alias that contains itself"),
        ("a: *gone", "undefined alias"),
        ("a: 1\n---\nb: 2", "another document"),
        ("a: [1, 2", "line"),
        ("a: 2020-99-99", "month must be in"),
        ("a: !!bool x", "not valid YAML"),
        ("a: !!int ''", "not valid YAML"),
        ("a: !!timestamp x", "not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: \0", "not valid YAML"),
        ("[" * 5000 + "]" * 5000, "nested too deeply"),
        ("a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
            f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
        ), "more than 1,000,000 values"),
    ],
)  # fmt: skip
def test_bad_yaml_is_one_sentence(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_yaml(text, "mine.yaml")
    assert str(caught.value).startswith("mine.yaml: ") and "\n" not in str(caught.value)


def test_good_yaml_is_what_yaml_reads():
    text = "base: &base {a: 1, b: [x, 2.5]}\nmore: {<<: *base, a: 2}\nnumbers: [1e-3, .inf, null, true]\n"
    assert read_yaml(text) == yaml.safe_load(text)
    assert yaml_value("1.5", "here") == 1.5 and yaml_value("", "here") is None


def test_files_may_have_a_byte_order_mark_but_no_other_encoding(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: \xc3\xbc\r\nsteps: 3\r\n")
    assert read_yaml(path) == {"name": "ü", "steps": 3}
    path.write_bytes("name: ü".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.yaml is not UTF-8 text: .* at byte 6"):
        read_yaml(path)
    path.write_bytes("name: ü".encode("utf-16"))
    with pytest.raises(ValueError, match=r"a\.yaml is not UTF-8 text"):
        read_text(path)
    for text in ("{", "[" * 100_000, ""):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"a\.yaml is not valid JSON"):
            read_json(path)


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path, message in (
        (tmp_path / "fifo", "is a pipe, a device or a socket"), (tmp_path, "is a folder"),
        ("/dev/zero", "is a pipe, a device"), ("a\0b", "cannot be the name of a file"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            regular_file(path)
    for path in (tmp_path / "none", tmp_path / "a.txt" / "b"):
        (tmp_path / "a.txt").touch()
        with pytest.raises(FileNotFoundError, match="no such file"):
            regular_file(path)


@pytest.mark.parametrize(
    ("text", "message"), [("{}", "no 'config' in it"), ("[]", "a value of another type in it"), ("{", "not valid JSON")]
)
def test_faults_of_a_document_are_words(text, message, tmp_path):
    """As a person would say them, not as Python does."""
    path = tmp_path / "result.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"result\.json is damaged \(.*{message}.*\): remove it"):
        finished(tmp_path, {})

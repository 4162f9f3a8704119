"""Files appear whole or not at all, with ordinary rights, and names made from text stay in their folder."""

import errno
import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lotion_theory.files import file_name, lock, read_by_others, whole_file, whole_folder, write_text


def _rights(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "before")
    with pytest.raises(RuntimeError, match="half way"), whole_file(path) as part:
        part.write_text("half")
        raise RuntimeError("half way")
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    for _ in range(2):
        with pytest.raises(RuntimeError, match="half way"), whole_folder(tmp_path / "new") as part:
            (part / "a.txt").write_text("half")
            raise RuntimeError("half way")
        assert not os.listdir(tmp_path)
    seen, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (seen.append(os.fstat(number).st_size), sync(number)))
    monkeypatch.setattr(os, "replace", lambda *paths: (seen.append("renamed"), replace(*paths)))
    with whole_folder(tmp_path / "new") as part:
        (part / "inner").mkdir()
        (part / "inner" / "a.txt").write_text("twelve bytes")
    assert seen == [12, "renamed"] and (tmp_path / "new" / "inner" / "a.txt").read_text() == "twelve bytes"
    for taken in (tmp_path / "new", tmp_path / "new" / "inner" / "a.txt"):
        with pytest.raises(FileExistsError, match="is there already; name a folder that is not"), whole_folder(taken):
            raise AssertionError("nothing is done for it")
    (tmp_path / "empty").mkdir()
    with whole_folder(tmp_path / "empty") as part:
        (part / "a.txt").write_text("a")
    assert os.listdir(tmp_path / "empty") == ["a.txt"]
    with (
        pytest.raises(FileNotFoundError, match=r"cannot write .*no/such: No such file"),
        whole_folder(tmp_path / "no" / "such"),
    ):
        raise AssertionError("nothing is done for it")


def test_errors_of_readers_become_one_sentence():
    class PanicException(BaseException):
        """As those of Rust."""

    for error in (KeyError("a\nb"), RuntimeError("x"), PanicException("y")):
        with pytest.raises(ValueError, match=r"^m cannot be read: .") as caught, read_by_others("m cannot be read"):
            raise error
        assert "\n" not in str(caught.value)
    with pytest.raises(KeyboardInterrupt), read_by_others("m"):
        raise KeyboardInterrupt


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    seen, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (seen.append(os.fstat(number).st_size), sync(number)))
    monkeypatch.setattr(os, "replace", lambda *paths: (seen.append("renamed"), replace(*paths)))
    write_text(tmp_path / "a.txt", "twelve bytes")
    assert seen == [12, "renamed"]


def test_rights_are_those_of_plain_writing_even_where_a_library_makes_its_file_private(tmp_path):
    plain, whole = tmp_path / "plain", tmp_path / "whole"
    plain.write_text("")
    with whole_file(whole) as part:
        part.unlink()
        os.close(os.open(part, os.O_CREAT | os.O_WRONLY, 0o600))
    assert _rights(whole) == _rights(plain)
    whole.chmod(0o640)
    write_text(whole, "again")
    assert _rights(whole) == 0o640


def test_a_symbolic_link_keeps_pointing_to_the_file(tmp_path):
    (tmp_path / "real").write_text("old")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real")
    write_text(link, "new")
    assert link.is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_long_names_and_line_ends_are_kept(tmp_path):
    path = tmp_path / ("n" * 255)
    write_text(path, "a\r\nb\n")
    assert path.read_bytes() == b"a\r\nb\n"


def test_writers_in_one_process_do_not_share_a_path(tmp_path):
    path, meeting = tmp_path / "shared", threading.Barrier(2)
    failures: list[OSError] = []

    def write(text: str) -> None:
        try:
            with whole_file(path) as part:
                meeting.wait()
                part.write_text(text)
                meeting.wait()
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in ("a" * 100, "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert path.read_text() in ("a" * 100, "b")
    assert os.listdir(tmp_path) == ["shared"]


def test_errors_name_the_target_and_others_pass_through(tmp_path):
    with pytest.raises(OSError, match=r"cannot write .*missing") as caught, whole_file(tmp_path / "missing" / "a"):
        pass
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(FileNotFoundError, match="elsewhere"), whole_file(tmp_path / "a"):
        (tmp_path / "elsewhere").read_text()


@given(st.text(max_size=300))
def test_names_stay_in_their_folder(text):
    name = file_name(text)
    assert Path("folder", name).parent == Path("folder")
    assert name.isascii()
    assert not name.startswith(".")
    assert 1 <= len(name) <= 120
    assert not set(name) & set('/\\:*?"<>|%')
    assert file_name(name) == name


@given(st.lists(st.text(max_size=40), min_size=2, max_size=2, unique=True))
def test_different_texts_get_different_names(texts):
    assert len({file_name(text) for text in texts}) == 2


@pytest.mark.parametrize("text", ["lm-int4", "a.b_c=1+2", "x" * 100])
def test_plain_names_stay(text):
    assert file_name(text) == text


@pytest.mark.parametrize(
    "text", ["../up", "/etc/passwd", "..", ".", "", "a/../../b", "\\\\host\\c", "\udc80", "x" * 101]
)
def test_paths_become_names(text):
    assert Path(file_name(text)).parts == (file_name(text),)


# --- locks -----------------------------------------------------------------------------------------------------------


def test_a_lock_names_its_holder_and_ends_with_its_block(tmp_path):
    path = tmp_path / "lock"
    with lock(path, "the store is being written"):
        with (
            pytest.raises(BlockingIOError, match=rf"^the store is being written \(process {os.getpid()} on .+\)$"),
            lock(path, "the store is being written"),
        ):
            pytest.fail("held twice")
        # The one that was refused left the note of the holder alone.
        assert path.read_text(encoding="utf-8").startswith(f"{os.getpid()} on ")
    assert path.read_text(encoding="utf-8") == ""
    with lock(path, "held"):
        pass


def test_a_lock_is_let_go_when_its_block_fails(tmp_path):
    with pytest.raises(KeyError), lock(tmp_path / "lock", "held"):
        raise KeyError
    with lock(tmp_path / "lock", "held"):
        pass

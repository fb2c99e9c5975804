"""Files are whole or not there; what a killed writer left goes, what another one is writing stays, a full disk is told."""

import errno
import json
import os
import resource
import signal
import subprocess
from pathlib import Path

import pytest

from apical import files
from processes import Forked


def limited(write):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        write(Path("one"), "x" * 2000)
    except OSError as error:
        print(error)


def killed():
    os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
    files.write_text(Path("one.txt"), "new")


@pytest.fixture
def dead():
    """The number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_what_a_killed_writer_left_goes_with_the_next_file(tmp_path, dead):
    left = tmp_path / f".last.ckpt.{dead}-0123abcd.writing"
    left.write_bytes(b"half")
    others = [
        tmp_path / f".last.ckpt.{os.getppid()}-0123abcd.writing",  # of a process that may still write
        tmp_path / f".last.ckpt.{dead}.swp",
        tmp_path / f"notes.{dead}-0123abcd.writing",
    ]
    for other in others:
        other.write_text("somebody's")
    files.write_text(tmp_path / "one.txt", "text")
    assert not left.exists()
    assert all(other.exists() for other in others)


def test_a_writer_killed_amid_writing_leaves_the_old_file_and_then_nothing(tmp_path, monkeypatch):
    files.write_text(tmp_path / "one.txt", "old")
    monkeypatch.chdir(tmp_path)
    writer = Forked(killed)
    writer.communicate(timeout=60)
    assert writer.returncode == -signal.SIGKILL
    assert (tmp_path / "one.txt").read_text() == "old"
    assert len(files.remains(tmp_path)) == 1
    files.write_text(tmp_path / "one.txt", "newer")
    assert [one.name for one in tmp_path.iterdir()] == ["one.txt"]


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 127, "x" * 251 + ".svg"])
def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path, name):
    files.write_text(tmp_path / name, "text")
    assert [one.name for one in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_with_the_file_and_what_it_needs(tmp_path, monkeypatch, kind):
    files.write_text(tmp_path / "one.txt", "old")

    def fail(descriptor):
        raise OSError(kind, os.strerror(kind))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"one\.txt: .*1,234 bytes are needed, [\d,]+ are free\); make room") as caught:
        files.write_bytes(tmp_path / "one.txt", bytes(1234))
    assert caught.value.errno == kind
    assert files.full(caught.value) is not None
    assert (tmp_path / "one.txt").read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["one.txt"]


@pytest.mark.parametrize("write", [files.write_text, files.append_text])
def test_a_limit_of_the_system_is_told_with_the_file(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    told, _ = Forked(limited, write).communicate(timeout=60)
    assert "can't write one: File too large (2,000 bytes, more than" in told


@pytest.mark.parametrize("write", [files.write_text, files.append_text])
def test_another_error_of_the_system_names_the_file_too(tmp_path, write):
    (tmp_path / "one").mkdir()
    with pytest.raises(IsADirectoryError, match=r"can't write .*one: Is a directory$"):
        write(tmp_path / "one", "text")
    assert [one.name for one in tmp_path.iterdir()] == ["one"]


def test_a_cause_that_is_a_full_disk_is_found_however_deep():
    cause, error = OSError(errno.ENOSPC, "full"), ValueError("can't unpack")
    error.__cause__ = RuntimeError("no more")
    error.__cause__.__context__ = cause
    cause.__context__ = error  # Even where it goes in a circle.
    assert files.full(error) is cause
    assert files.full(ValueError("other")) is None
    assert files.full(None) is None


def test_json_holds_what_utf_8_can_not(tmp_path):
    files.write_json(tmp_path / "one.json", {"folder": "caf\udce9", "name": "ü"})
    assert json.loads((tmp_path / "one.json").read_text()) == {"folder": "caf\udce9", "name": "ü"}


def test_only_what_was_named_is_deleted(tmp_path, dead):
    for name in ("a/one.txt", "a/b/two.txt", "a/b/other.txt", "c/three.txt", "four.txt"):
        files.write_text(tmp_path / name, name)
    (tmp_path / "c" / f".three.txt.{dead}-01234567.writing").write_text("half")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    files.delete(tmp_path, ["a/one.txt", "a/b/two.txt", "c/three.txt", "nowhere/at/all", "folder", "link"])
    left = sorted(str(one.relative_to(tmp_path)) for one in tmp_path.rglob("*"))
    assert left == ["a", "a/b", "a/b/other.txt", "folder", "four.txt"]

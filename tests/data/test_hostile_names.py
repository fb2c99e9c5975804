"""Data folders with names, links, pipes and splits that would be passed over, misread or waited for."""

import errno
import os
import socket
import warnings

import datasets
import pyarrow.parquet
import pytest

from apical import data
from data.pictures import assert_holds, pictures, png, refused, write

NAMES = [
    "a[1]",
    "*",
    "wh?t",
    "[a-z]*",
    "a::b",
    "hf://x",
    "line\nbreak",
    "x" * 254,
    "ü" * 127,
    "caf\udce9",
    "{a,b}",
    "50%#~!",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_any_name_is_read(tmp_path, cache, name):
    home = tmp_path / name
    write(tmp_path / "set", "train", pictures(2), [0, 1])
    write(tmp_path / "set", "test", pictures(1, seed=1), [2])
    home.parent.mkdir(exist_ok=True)
    (tmp_path / "set").rename(home)
    # Beside it lies what its name, taken for a pattern, means too.
    write(tmp_path / "a1", "train", pictures(9), [0] * 9)
    for _ in range(2):  # Decoded, then from the cache.
        loaded = data.load(str(home), cache=cache)
        assert_holds(loaded.train, pictures(2), [0, 1])
        assert_holds(loaded.test, pictures(1, seed=1), [2])


def test_a_folder_below_one_of_such_a_name_is_read(tmp_path, cache):
    home = tmp_path / "sets [new]" / "mine"
    for split in ("train", "test"):
        for label in ("cat", "dog [big]"):
            (home / split / label).mkdir(parents=True)
            (home / split / label / "0.png").write_bytes(png(pictures(1)[0]))
    assert data.load(str(home), cache=cache).class_names == ("cat", "dog [big]")


def test_where_the_cache_has_such_a_name_too_it_is_said(tmp_path):
    write(tmp_path / "a[1]", "train", pictures(2), [0, 1])
    refused("a[1]", "c[1]", "another cache folder", name=tmp_path / "a[1]", cache=tmp_path / "c[1]")
    write(tmp_path / "plain", "train", pictures(2), [0, 1])
    write(tmp_path / "plain", "test", pictures(2), [0, 1])
    assert len(data.load(str(tmp_path / "plain"), cache=tmp_path / "c[1]").train) == 2


@pytest.mark.parametrize("name", ["train-a::b.parquet", "train\n.parquet", "more::/train.parquet"])
def test_a_file_that_would_be_passed_over_is_said(folder, cache, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / "train-00000-of-00001.parquet").rename(folder / name)
    refused(repr(name), "rename it", name=folder, cache=cache)


def test_a_class_that_would_be_passed_over_is_said(tmp_path, cache):
    for split in ("train", "test"):
        for label in ("cat", "do::g"):
            (tmp_path / "set" / split / label).mkdir(parents=True)
            (tmp_path / "set" / split / label / "0.png").write_bytes(png(pictures(1)[0]))
    refused("do::g", "rename it", name=tmp_path / "set", cache=cache)


@pytest.mark.parametrize("name", ["train-00001-of-00002.parquet", "notes.txt", "more/train-1.parquet"])
def test_a_link_to_nowhere_is_said(folder, cache, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to("../blobs/gone")
    refused(repr(name), "../blobs/gone", "not there", name=folder, cache=cache)


def test_a_link_to_a_file_is_that_file(tmp_path, folder, cache):
    (folder / "train-00000-of-00001.parquet").rename(tmp_path / "blob")
    (folder / "train-00000-of-00001.parquet").symlink_to("../blob")
    (folder / ".#train").symlink_to("an editor's lock")
    assert len(data.load(str(folder), cache=cache).train) == 6


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_what_has_no_end_is_said(folder, cache, kind, monkeypatch):
    name = "train-00001-of-00002.parquet"
    if kind == "pipe":
        os.mkfifo(folder / name)
    elif kind == "device":
        (folder / name).symlink_to("/dev/zero")
    else:
        monkeypatch.chdir(folder)  # The path of a socket has to be short.
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(name)
    refused(name, "no file but a pipe", name=folder, cache=cache)


@pytest.mark.parametrize("metadata", [b"[1, 2]", b'{"info": [1]}', b"\xa0", b"{", b'{"info": {"features": []}}'])
def test_metadata_of_another_form_are_said_with_the_file(folder, cache, metadata):
    path = folder / "test-00000-of-00001.parquet"
    table = pyarrow.parquet.read_table(path)
    pyarrow.parquet.write_table(table.replace_schema_metadata({b"huggingface": metadata}), path)
    refused(str(folder), "fetch or write", name=folder, cache=cache)


def test_a_cache_that_is_full_is_not_the_data_folders_fault(folder, cache, monkeypatch):
    def full(*_, **__):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("an error occurred while generating the data set") from error

    monkeypatch.setattr(datasets, "load_dataset", full)
    assert "can't be read" not in refused(
        f"cache folder {cache}", "No space left", "make room", name=folder, cache=cache
    )


def test_a_split_that_is_not_used_is_told(folder, cache):
    write(folder, "validation", pictures(2, seed=9), [1, 1])
    (folder / "validation-00000-of-00001.parquet").rename(folder / "validation.parquet")
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"split 'validation' not used; .*test_split="):
            data.load(str(folder), cache=cache)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.load(str(folder), cache=cache, test_split="validation")


def test_a_file_in_no_split_is_told(folder, cache):
    write(folder, "more", pictures(2, seed=9), [1, 1])
    (folder / "README.md").write_text("no data")
    with pytest.warns(UserWarning, match=r"file 'more-00000-of-00001\.parquet' \(in no split\) not used") as told:
        data.load(str(folder), cache=cache)
    assert "README" not in str(told[0].message)
    assert told[0].filename == __file__


def test_where_validation_is_the_test_split_nothing_is_told(tmp_path, cache):
    write(tmp_path / "set", "train", pictures(2), [0, 1])
    write(tmp_path / "set", "validation", pictures(2), [0, 1])
    assert len(data.load(str(tmp_path / "set"), cache=cache).test) == 2

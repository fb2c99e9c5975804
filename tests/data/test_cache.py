"""Nothing stale or damaged is served."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apical import data
from apical.data import DataError
from apical.data.cache import Cache, DamagedError
from data.pictures import assert_holds, entries, leftovers, pictures, relabel, write


def no_decoding(monkeypatch):
    monkeypatch.setattr("apical.data.loading.decode", lambda *_, **__: pytest.fail("decoded again"))


def test_what_was_decoded_is_not_decoded_again(folder, cache, monkeypatch):
    data.load(str(folder), cache=cache)
    no_decoding(monkeypatch)
    assert_holds(data.load(str(folder), cache=cache).train, pictures(6), [0, 1, 2, 0, 1, 2])
    monkeypatch.chdir(folder.parent)  # by whatever path
    for name in ("set", "./set", f"../{folder.parent.name}/set"):
        assert data.load(name, cache=cache).name == name


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"APICAL_CACHE": "own", "XDG_CACHE_HOME": "xdg"}, "own"),
        ({"XDG_CACHE_HOME": "xdg"}, "xdg/apical"),
        ({"HOME": "home"}, "home/.cache/apical"),
    ],
)
def test_the_cache_lies_where_the_platform_says(folder, tmp_path, monkeypatch, environment, expected):
    for name in ("APICAL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    data.load(str(folder))
    assert len(entries(tmp_path / expected)) == 1


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_mapped_images_stay_on_disk_and_the_cache_safe_from_changes(folder, cache):
    mapped = data.load(str(folder), cache=cache, in_memory=False)
    with Path("/proc/self/maps").open() as maps:
        assert sum(f"{cache}/" in line for line in maps) == 2
    mapped.train.images.zero_()
    assert mapped.train.batch(torch.tensor([0]))[0].sum() == 0
    assert_holds(data.load(str(folder), cache=cache).train, pictures(6), [0, 1, 2, 0, 1, 2])


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
@pytest.mark.parametrize(("memory", "mapped"), [(4 * 35 * 9, False), (4 * 35 * 9 - 4, True)])
def test_images_beyond_a_quarter_of_memory_are_mapped(folder, cache, monkeypatch, memory, mapped):
    monkeypatch.setattr(os, "sysconf", lambda key: {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": memory}[key])
    loaded = data.load(str(folder), cache=cache)
    with Path("/proc/self/maps").open() as maps:
        assert any(str(cache) in line for line in maps) == mapped
    assert_holds(loaded.train, pictures(6), [0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize("same_size", [True, False])
def test_changed_files_are_not_served_stale(folder, cache, same_size):
    data.load(str(folder), cache=cache)
    path = folder / "train-00000-of-00001.parquet"
    before = path.stat()
    if same_size:
        relabel(path, [1, 1, 1, 0, 0, 0])
        size = path.stat().st_size
        data.load(str(folder), cache=cache)
        relabel(path, [0, 0, 0, 1, 1, 1])
        assert path.stat().st_size == size
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 5))
    else:
        write(folder, "train", pictures(2, seed=5), [0, 0])
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    found = data.load(str(folder), cache=cache).train.labels.tolist()
    assert found == ([0, 0, 0, 1, 1, 1] if same_size else [0, 0])
    assert len(entries(cache)) == 1  # the old one is gone


def test_an_added_file_is_noticed(folder, cache):
    data.load(str(folder), cache=cache)
    (folder / "train-00000-of-00001.parquet").rename(folder / "train-00000-of-00002.parquet")
    write(folder / "more", "train", pictures(2, seed=5), [2, 2])
    (folder / "more" / "train-00000-of-00001.parquet").rename(folder / "train-00001-of-00002.parquet")
    assert len(data.load(str(folder), cache=cache).train) == 8


def test_a_change_behind_a_link_is_noticed(folder, cache):
    linked = folder.with_name("linked")
    linked.mkdir()
    (linked / "data").symlink_to(folder, target_is_directory=True)
    assert len(data.load(str(linked), cache=cache).test) == 3
    write(folder, "test", pictures(2, seed=5), [2, 2])
    assert_holds(data.load(str(linked), cache=cache).test, pictures(2, seed=5), [2, 2])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A small data set's cache, its entry, and the files' bytes."""
    home = tmp_path_factory.mktemp("written")
    write(home / "set", "train", pictures(2), [0, 1])
    write(home / "set", "test", pictures(1, seed=1), [2])
    data.load(str(home / "set"), cache=home / "cache")
    (entry,) = entries(home / "cache")
    return Cache(home / "cache", "x", None), entry, {path.name: path.read_bytes() for path in entry.iterdir()}


FILES = ["manifest.json", "train-images.u8", "train-labels.i64", "test-images.u8", "test-labels.i64"]


@settings(max_examples=200, deadline=None)
@given(
    file=st.sampled_from(FILES[1:]),
    where=st.floats(0, 1, exclude_max=True),
    change=st.integers(1, 255),
    memory=st.booleans(),
)
def test_a_changed_byte_is_noticed(written, file, where, change, memory):
    cache, entry, content = written
    damaged = bytearray(content[file])
    damaged[int(where * len(damaged))] ^= change
    (entry / file).write_bytes(damaged)
    try:
        with pytest.raises(DamagedError, match=file):
            cache.read(entry, "x", memory)
    finally:
        (entry / file).write_bytes(content[file])
    assert cache.read(entry, "x", memory) is not None


def test_a_changed_byte_of_the_manifest_is_noticed(written):
    cache, entry, content = written
    whole = content["manifest.json"]
    try:
        for position in range(len(whole) - 1):  # the last one ends the line
            for change in (1, 128):
                damaged = bytearray(whole)
                damaged[position] ^= change
                (entry / "manifest.json").write_bytes(damaged)
                with pytest.raises(DamagedError):
                    cache.read(entry, "x", True)
    finally:
        (entry / "manifest.json").write_bytes(whole)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["cut", "longer", "empty", "gone"])
def test_damage_is_reported_and_mended(written, file, damage):
    cache, entry, content = written
    source = cache.root.parent / "set"
    changed = {"cut": content[file][:-2], "longer": content[file] + b"\0", "empty": b"", "gone": None}[damage]
    if changed is None:
        (entry / file).unlink()
    else:
        (entry / file).write_bytes(changed)
    if (file, damage) == ("manifest.json", "gone"):  # as after an unfinished deletion: there is no entry
        found = data.load(str(source), cache=cache.root)
    else:
        with pytest.warns(UserWarning, match=f"damaged.*{file}.*again"):
            found = data.load(str(source), cache=cache.root)
    assert_holds(found.train, pictures(2), [0, 1])
    assert {path.name: path.read_bytes() for path in entry.iterdir()} == content
    assert leftovers(cache.root) == []


def test_damage_is_not_served_where_the_source_is_gone(folder, cache):
    data.load(str(folder), cache=cache)
    (entry,) = entries(cache)
    (entry / "train-images.u8").write_bytes(b"x" * 210)
    folder.rename(folder.with_name("away"))
    with pytest.raises(DataError, match="does not exist"):
        data.load(str(folder), cache=cache)

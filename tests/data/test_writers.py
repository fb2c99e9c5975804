"""Writers that die, race, or have no room."""

import errno
import os
import signal
import threading
import time
import warnings

import numpy as np
import pytest

from apical import data
from apical.data import DataError, loading
from apical.data import cache as cache_module
from apical.data import decode as decode_module
from apical.data.cache import Cache, DamagedError
from data.pictures import (
    assert_holds,
    entries,
    leftovers,
    pictures,
    refused,
)
from processes import FORKS, Forked


def killed(folder, cache, when):
    module, name, calls = {"decoding": (decode_module, "_pixels", 4), "moving": (cache_module, "_move", 1)}[when]
    original, given = getattr(module, name), []

    def dying(*arguments):
        given.append(arguments)
        if len(given) == calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)

    setattr(module, name, dying)
    data.load(str(folder), cache=cache)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("when", ["decoding", "moving"])
def test_a_killed_writer_leaves_nothing_that_is_served(folder, cache, when):
    writer = Forked(killed, folder, cache, when)
    writer.communicate(timeout=60)
    assert writer.returncode == -signal.SIGKILL
    assert entries(cache) == []
    assert len(leftovers(cache)) == 1
    assert_holds(data.load(str(folder), cache=cache).train, pictures(6), [0, 1, 2, 0, 1, 2])
    assert len(entries(cache)) == 1
    assert leftovers(cache) == []


def race(folder, cache, start):
    original, decoded = loading.decode, []

    def counting(*given):
        decoded.append(1)
        return original(*given)

    loading.decode = counting
    warnings.simplefilter("error")
    start.wait(60)
    found = data.load(str(folder), cache=cache)
    print(len(decoded), found.train.images.numpy().tobytes().hex(), found.train.labels.tolist())


def test_processes_that_load_at_once_decode_once(folder, cache):
    start = FORKS.Barrier(2)
    racers = [Forked(race, folder, cache, start) for _ in range(2)]
    answers = [racer.communicate(timeout=60)[0].split(" ", 1) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert sorted(int(decoded) for decoded, _ in answers) == [0, 1]
    assert len({rest for _, rest in answers}) == 1
    assert len(entries(cache)) == 1
    assert leftovers(cache) == []


def test_readers_see_all_or_nothing_while_a_writer_replaces_an_entry(folder, cache):
    """A reader that never stops, against a writer that damages and mends; what is served is always whole."""
    data.load(str(folder), cache=cache)
    (entry,) = entries(cache)
    kept = Cache(cache, "x", None)
    served, wrong, stop = [], [], threading.Event()

    def read():
        while not stop.is_set():
            try:
                found = kept.read(entry, "x", True)
            except DamagedError:
                continue
            if found is not None:
                served.append(1)
                if found.train.images.numpy().tobytes() != np.stack(pictures(6)).tobytes():
                    wrong.append(1)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(6):
        (entry / "train-images.u8").write_bytes(b"x" * 210)
        with pytest.warns(UserWarning, match="damaged"):
            data.load(str(folder), cache=cache)
        time.sleep(0.002)
    stop.set()
    reader.join()
    assert served
    assert wrong == []


def test_a_full_disk_is_said_and_leaves_nothing(folder, cache, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(decode_module, "_pixels", full)
    refused("No space left", str(cache), "APICAL_CACHE", name=folder, cache=cache)


def test_a_cache_that_cannot_be_a_folder_is_said(folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/cache can't be written.*APICAL_CACHE"):
        data.load(str(folder), cache=tmp_path / "file" / "cache")


def test_a_disk_that_does_not_keep_what_is_written_is_said(folder, cache, monkeypatch):
    original = cache_module._move

    def forgetful(new, entry, old):
        original(new, entry, old)
        (entry / "test-images.u8").write_bytes(b"\0" * 105)

    monkeypatch.setattr(cache_module, "_move", forgetful)
    with pytest.raises(DataError, match="differ from what was just written"):
        data.load(str(folder), cache=cache)


def test_a_read_only_cache_can_be_read(folder, cache, monkeypatch):
    data.load(str(folder), cache=cache)
    monkeypatch.setattr(Cache, "lock", lambda _: pytest.fail("locked"))
    monkeypatch.setattr(Cache, "write", lambda *_: pytest.fail("wrote"))
    assert len(data.load(str(folder), cache=cache).train) == 6


def test_a_cache_inside_the_data_is_refused(folder):
    refused("lies in the data folder", "cache=", name=folder, cache=folder / "cache")

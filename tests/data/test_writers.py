"""Writers that die, race, or have no room."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from apical import data
from apical.data import DataError
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

KILLED = """
import os, signal, sys
from pathlib import Path
from apical import data
from apical.data import cache, decode
module, name, calls = {"decoding": (decode, "_pixels", 4), "moving": (cache, "_move", 1)}[sys.argv[3]]
original = getattr(module, name)
def dying(*given):
    global calls
    calls -= 1
    if calls == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*given)
setattr(module, name, dying)
data.load(sys.argv[1], cache=Path(sys.argv[2]))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("when", ["decoding", "moving"])
def test_a_killed_writer_leaves_nothing_that_is_served(folder, cache, when):
    command = [sys.executable, "-c", KILLED, str(folder), str(cache), when]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert entries(cache) == []
    assert len(leftovers(cache)) == 1
    assert_holds(data.load(str(folder), cache=cache).train, pictures(6), [0, 1, 2, 0, 1, 2])
    assert len(entries(cache)) == 1
    assert leftovers(cache) == []


RACER = """
import sys
from pathlib import Path
from apical import data
from apical.data import loading
original, decoded = loading.decode, []
def counting(*given):
    decoded.append(1)
    return original(*given)
loading.decode = counting
print("ready", flush=True)
sys.stdin.readline()
found = data.load(sys.argv[1], cache=Path(sys.argv[2]))
print(len(decoded), hash(found.train.images.numpy().tobytes()), found.train.labels.tolist())
"""


def test_processes_that_load_at_once_decode_once(folder, cache):
    command = [sys.executable, "-W", "error", "-c", RACER, str(folder), str(cache)]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    racers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    answers = [[] for _ in racers]
    threads = [
        threading.Thread(
            target=lambda racer=racer, answer=answer: answer.extend(racer.communicate("go\n")[0].split(" ", 1))
        )
        for racer, answer in zip(racers, answers, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
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
    for _ in range(20):
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

"""Disks that are full, and caches that are killed, raced for and damaged: told with the file, and right once there is room."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from apical.files import remains
from data.pictures import leftovers, pictures, write
from faults.campaign.children import apical_in, fork, together
from faults.campaign.folders import differences, held

pytestmark = pytest.mark.faults

WORDS = ("train", "--rule", "kp", "--network", "64-30-10", "--epochs", 4, "--checkpoint-every", 20)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    home = tmp_path_factory.mktemp("whole")
    assert apical_in(home, *WORDS, "--folder", "run", out=home / "o").wait().code == 0
    return held(home / "run")


def test_a_limit_on_files(tmp_path, whole, figure):
    sizes, wrong = (300, 700, 1500, 5000, 20_000, 40_000), []
    for size in sizes:
        home = tmp_path / str(size)
        home.mkdir()
        child = apical_in(home, *WORDS, "--folder", "run", out=home / "o", file_size=size).wait()
        told = child.errors
        wrong += (
            [] if child.code == 0 or ("can't write" in told and "bytes" in told and not child.traceback) else [told]
        )
        started = (home / "run" / "config.json").exists()
        words = ["train", "--resume", "run"] if started else [*WORDS, "--folder", "run"]
        again = apical_in(home, *words, out=home / "o").wait()
        wrong += [again.errors] if again.code else differences(whole, held(home / "run"))
    figure("limits on the size of files, then none", f"{len(sizes)} tries, {len(wrong)} wrong")
    assert not wrong


def mounted(folder, size):
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "apical", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("no file system of a size can be mounted here")


def test_a_full_disk(tmp_path, whole, figure):
    sizes, wrong, filled = ("4k", "8k", "16k", "24k", "32k", "48k", "64k", "96k"), [], 0
    for size in sizes:
        disk = tmp_path / size
        mounted(disk, size)
        try:
            child = apical_in(tmp_path, *WORDS, "--folder", disk / "run", out=tmp_path / "o").wait()
            filled += child.code != 0
            told = "can't write" in child.errors and "bytes are needed" in child.errors and not child.traceback
            wrong += [] if child.code == 0 or told else [child.errors]
            subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
            started = (disk / "run" / "config.json").exists()
            words = ["train", "--resume", disk / "run"] if started else [*WORDS, "--folder", disk / "run"]
            again = apical_in(tmp_path, *words, out=tmp_path / "o").wait()
            wrong += [again.errors] if again.code else differences(whole, held(disk / "run"))
            wrong += [one for folder in (disk / "run", disk / "run" / "checkpoint") for one in remains(folder)]
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=False)
    figure("full disks, then room", f"{len(sizes)} tries, {filled} filled, {len(wrong)} wrong")
    assert not wrong


@pytest.fixture
def images(tmp_path):
    """A data folder that takes a moment to decode."""
    shades = pictures(600, (12, 12))
    write(tmp_path / "set", "train", shades, [number % 3 for number in range(600)])
    write(tmp_path / "set", "test", shades[:50], [number % 3 for number in range(50)])
    return tmp_path / "set"


def loading(images, cache, out, cwd):
    def call():
        from apical import data

        found = data.load(str(images), cache=cache)
        sys.stdout.write(str(int(found.train.images.sum()) + 7 * int(found.train.labels.sum())))

    return fork(call, out, cwd=cwd)


def test_decoding_killed_and_raced_for(tmp_path, images, figure):
    first = loading(images, tmp_path / "first", tmp_path / "o", tmp_path).wait()
    assert first.code == 0, first.errors
    chance, wrong, tries = np.random.default_rng(0), [], 15
    for number in range(tries):
        cache = tmp_path / f"cache{number}"
        both = [loading(images, cache, tmp_path / f"o{one}", tmp_path) for one in range(2)]
        both[0].wait(chance.uniform(0.0, 0.5))
        outputs = [both[1].wait(), loading(images, cache, tmp_path / "o3", tmp_path).wait()]
        wrong += [one.errors or one.output for one in outputs if one.code or one.output != first.output]
        wrong += leftovers(cache)
    figure("decoding killed, another process beside it", f"{tries - len(wrong)} of {tries}")
    assert not wrong


def test_a_full_cache(tmp_path, images, figure):
    sizes, wrong = ("16k", "64k", "128k", "256k"), []
    for size in sizes:
        disk = tmp_path / size
        mounted(disk, size)
        try:
            child = loading(images, disk / "cache", tmp_path / "o", tmp_path).wait()
            wrong += (
                []
                if child.code == 0 or ("cache folder" in child.errors and "make room" in child.errors)
                else [child.errors]
            )
            wrong += leftovers(disk / "cache")
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=False)
    figure("full caches", f"{len(sizes) - len(wrong)} of {len(sizes)}")
    assert not wrong


def test_hostile_data_folders(tmp_path, images, figure, monkeypatch):
    """Names, links and pipes by the command line: trained on, or one line and status 2, within seconds."""
    monkeypatch.setenv("APICAL_CACHE", str(tmp_path / "cache"))
    made = []
    for number, name in enumerate(("a[1]", "*", "a::b", "x" * 254, "line\nbreak", "caf\udce9")):
        shutil.copytree(images, tmp_path / f"good{number}" / name)
        made.append((tmp_path / f"good{number}" / name, 0))
    for number, make in enumerate(
        (os.mkfifo, lambda path: path.symlink_to("gone"), lambda path: path.symlink_to("/dev/zero"))
    ):
        home = tmp_path / f"bad{number}"
        home.mkdir()
        for file in images.iterdir():
            (home / file.name).symlink_to(file)
        make(home / "train-00001-of-00002.parquet")
        made.append((home, 2))
    words = ("train", "--network", "144-10-3", "--epochs", 1)
    starts = [
        lambda path=path, code=code, number=number: apical_in(
            tmp_path, *words, "--data", path, "--folder", f"run{number}", out=tmp_path / f"o{number}", name=code
        )
        for number, (path, code) in enumerate(made)
    ]
    wrong = [(child.code, child.errors) for child in together(starts) if child.code != child.name or child.traceback]
    figure("hostile data folders", f"{len(made) - len(wrong)} of {len(made)}")
    assert not wrong

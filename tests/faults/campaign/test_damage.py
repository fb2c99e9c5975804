"""Data, caches, comparisons and experiments with one bit changed: read right, mended or refused, without a traceback."""

import shutil

import numpy as np
import pytest

from data.pictures import entries, pictures, png, write
from faults.campaign.children import apical_in, fork, together
from faults.campaign.folders import flipped

pytestmark = pytest.mark.faults

FLIPS = 100


@pytest.fixture
def images(tmp_path):
    shades = [png(picture) for picture in pictures(20, (8, 8))]
    write(tmp_path / "set", "train", shades, [number % 3 for number in range(20)])
    write(tmp_path / "set", "test", shades[:5], [0, 1, 2, 0, 1])
    return tmp_path / "set"


def loading(images, cache, out, name=None):
    def call():
        from apical import data

        found = data.load(str(images), cache=cache)
        for split in (found.train, found.test):
            print(split.images.flatten().tolist(), split.labels.tolist())

    return fork(call, out, cwd=out.parent, name=name)


def test_a_cache(tmp_path, images, figure):
    whole = loading(images, tmp_path / "cache", tmp_path / "o").wait()
    (entry,) = entries(tmp_path / "cache")
    wrong, tries = [], 0
    for file in sorted(entry.iterdir()):

        def start(number, file=file):
            cache = tmp_path / f"cache{number}"
            shutil.copytree(tmp_path / "cache", cache)
            flipped(cache / entry.name / file.name, np.random.default_rng(number))
            return loading(images, cache, tmp_path / f"o{number}", (file.name, cache))

        for child in together(lambda number=number: start(number) for number in range(FLIPS)):
            tries += 1
            wrong += [] if child.code == 0 and child.output == whole.output else [(child.name[0], child.errors)]
            shutil.rmtree(child.name[1])
    figure("files of a decoded data set, one bit changed", f"{tries - len(wrong)} of {tries} decoded again, or right")
    assert not wrong


def test_a_parquet_file(tmp_path, images, figure):
    """What no checksum covers (labels; a page without one) can change unseen; all else is said with the folder's name."""
    whole = loading(images, tmp_path / "cache", tmp_path / "o").wait()
    told = {"right": 0, "refused": 0, "other values": 0}
    wrong = []

    def start(number):
        folder = tmp_path / f"set{number}"
        shutil.copytree(images, folder)
        flipped(folder / "train-00000-of-00001.parquet", np.random.default_rng(number))
        return loading(folder, tmp_path / f"cache{number}", tmp_path / f"o{number}", folder)

    for child in together(lambda number=number: start(number) for number in range(FLIPS)):
        told["right"] += child.code == 0 and child.output == whole.output
        told["other values"] += child.code == 0 and child.output != whole.output
        named = "DataError" in child.errors and child.name.name in child.errors
        told["refused"] += child.code != 0 and named
        wrong += [child.errors] if child.code and not named else []
    figure("parquet file, one bit changed", ", ".join(f"{count} {what}" for what, count in told.items()))
    assert not wrong


@pytest.mark.parametrize("what", ["comparison", "outcome"])
def test_what_a_report_is_made_of(tmp_path, figure, what):
    words = {
        "comparison": (
            "compare",
            "--rules",
            "bp",
            "fa",
            "--seeds",
            1,
            "--epochs",
            1,
            "--network",
            "64-8-10",
            "--no-time-steps",
        ),
        "outcome": ("reproduce", "lillicrap2016/fig2a", "--scale", 0.02, "--seeds", 1),
    }[what]
    assert apical_in(tmp_path, *words, "--folder", "run", out=tmp_path / "o").wait().code == 0

    def start(number):
        folder = tmp_path / f"run{number}"
        shutil.copytree(tmp_path / "run", folder, ignore=shutil.ignore_patterns("*.html"))
        flipped(folder / f"{what}.json", np.random.default_rng(number))
        again = ("report", folder) if what == "comparison" else ("reproduce", "--resume", folder)
        return apical_in(tmp_path, *again, out=tmp_path / f"o{number}", name=folder)

    wrong = []
    for child in together(lambda number=number: start(number) for number in range(FLIPS)):
        wrong += [child.traceback] if child.traceback else []
        shutil.rmtree(child.name)
    figure(f"{what}.json, one bit changed", f"{FLIPS} tries, {len(wrong)} tracebacks")
    assert not wrong

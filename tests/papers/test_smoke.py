"""Every experiment by its command's own function, at a hundredth of its length, on images of the right shape."""

import io
import math
from functools import cache

import datasets
import numpy as np
import pytest
from PIL import Image

from apical.papers import experiments
from apical.papers.reproduce import reproduce
from apical.report.papers import paper, results

SHAPES = {"ylecun/mnist": ((28, 28), 10), "uoft-cs/cifar10": ((32, 32, 3), 10), "uoft-cs/cifar100": ((32, 32, 3), 100)}
TRAIN, TEST = 1280, 100
# A quick experiment of each paper (that of lansdell2020 runs in its test_theorems.py); all others with `smoke_all`.
SAMPLE = (
    "lillicrap2016/fig2b",
    "nokland2016/theorem1",
    "akrout2019/theory",
    "amit2019/circuits",
)


def encoded(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return {"bytes": stream.getvalue(), "path": None}


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """A function: data set -> a folder in the hub's layout, with blurred prototypes of each class."""

    @cache
    def folder_of(name):
        shape, classes = SHAPES[name]
        random = np.random.default_rng(0)
        prototypes = random.integers(0, 256, (classes, *shape))
        folder = tmp_path_factory.mktemp(name.partition("/")[2])
        for split, n in (("train", TRAIN), ("test", TEST)):
            labels = np.arange(n) % classes
            pixels = prototypes[labels] // 2 + random.integers(0, 128, (n, *shape))
            features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=classes)})
            table = datasets.Dataset.from_dict(
                {"image": [encoded(one.astype(np.uint8)) for one in pixels], "label": labels.tolist()},
                features=features,
            )
            table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
        return str(folder)

    return folder_of


def marked(name):
    """The name, which only the complete set of smoke runs has unless it is in the sample."""
    return pytest.param(name, marks=() if name in SAMPLE else pytest.mark.smoke_all)


# ImageNet's runs, made for a hundred times as many images, are tried on small networks in akrout2019/test_residual.py.
RUN = [name for name, one in experiments().items() if one.data is None or one.data in SHAPES]


@pytest.mark.parametrize("name", [marked(name) for name in RUN])
def test_an_experiment_runs_at_a_hundredth_of_its_length(name, tmp_path, stand_in):
    one = experiments()[name]
    data = None if one.data is None else stand_in(one.data)
    # Convolutional networks take a thousandth, and of fifty draws two do.
    scale, only = (0.001 if len(one.precisions) > 1 else 0.01), one.conditions[:2] if len(one.conditions) == 50 else ()
    outcome = reproduce(one, tmp_path / "run", seeds=1, scale=scale, data=data, only=only, precision=one.precisions[-1])
    assert outcome["scale"] == scale
    assert outcome["command"].startswith(f"apical reproduce {name}")
    shows = outcome["shows"]
    assert shows["rows"] or shows["claims"]
    for row in shows["rows"]:
        assert row["published"] is None or math.isfinite(row["published"]["value"])
    page = paper.write(tmp_path / "run").read_text()
    assert f"{scale} of the full length" in page
    kept = results.publish(tmp_path / "run", tmp_path / "results").read_text()
    assert f"## {name}" in kept
    assert str(tmp_path) not in kept
    if shows["panels"]:
        svg = (tmp_path / "results" / f"{name}.svg").read_text()
        assert f"{scale} of the full length" in svg

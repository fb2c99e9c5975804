"""The released runs against the release's equations in NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import apical
from apical.data import ImageData
from apical.data.images import Split
from apical.papers import find
from apical.papers.akrout2019.released import Printed, Released
from apical.papers.akrout2019.settings import settings
from apical.papers.experiment import Task
from apical.papers.record import Curve, Record

BATCH = 32


def images(train: int = 75, size: int = 4) -> ImageData:
    draw = torch.Generator().manual_seed(0)

    def split(n: int) -> Split:
        pixels = torch.randint(0, 256, (n, 1, size, size), generator=draw, dtype=torch.uint8)
        return Split(pixels, torch.randint(0, 3, (n,), generator=draw))

    return ImageData("drawn", split(train), split(20), 3, ("a", "b", "c"))


def small(**changes) -> Released:
    fields = {
        "name": "akrout2019/code-small",
        "title": "",
        "source": "",
        "length": "3 epochs",
        "seeds": 1,
        "minutes": 0.1,
        "data": "drawn",
        "together": False,
        "hidden": 6,
        "printed": {"fa": Printed(2.0, 30.0, 40.0)},
        "within": 0.3,
        "epochs": 3,
        "batch": BATCH,
    }
    return Released(**{**fields, **changes})


def sigmoid(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-a))


@pytest.mark.parametrize(("condition", "rate"), [("bp", 0.2), ("fa", 0.2), ("kp", 0.3)])
def test_released_run_follows_the_release(condition, rate, tmp_path):
    one, data = small(), images()
    steps = one.steps(data)["steps"]
    assert steps == 3 * 2  # The last batch of 11 is dropped.
    task = Task(condition, (5,), 1.0, {"steps": steps}, tmp_path, data)
    record = one.run(task)
    ours = {k: v.double().numpy() for k, v in task.restore("course")["parts"]["model"].items()}  # type: ignore[index]

    net = one.network(data, 5)
    learner = apical.attach(
        net,
        settings(BATCH)[condition].rule,
        example_input=torch.zeros(1, 16),
        generator=torch.Generator().manual_seed(5 + 10**6),
    )
    W1, b1, W2, b2 = (net.state_dict()[k].double().numpy() for k in ("1.weight", "1.bias", "3.weight", "3.bias"))
    B = W2 if condition == "bp" else learner.synapses["3"].feedback.detach().double().numpy()  # type: ignore[union-attr]
    for step in range(steps):
        rows = slice(step % 2 * BATCH, (step % 2 + 1) * BATCH)
        x = data.train.images[rows].reshape(BATCH, -1).double().numpy() / 255
        h = sigmoid(x @ W1.T + b1)
        delta2 = sigmoid(h @ W2.T + b2) - np.eye(3)[data.train.labels[rows].numpy()]
        delta1 = delta2 @ (W2 if condition == "bp" else B) * h * (1 - h)
        if condition == "kp":
            B = B - rate / BATCH * delta2.T @ h
        W1, W2 = W1 - rate / BATCH * delta1.T @ x, W2 - rate / BATCH * delta2.T @ h
        b1, b2 = b1 - rate / BATCH * delta1.mean(0), b2 - rate / BATCH * delta2.mean(0)
    for key, theirs in {"1.weight": W1, "1.bias": b1, "3.weight": W2, "3.bias": b2}.items():
        np.testing.assert_allclose(ours[key], theirs, rtol=0, atol=2e-6)

    if condition != "bp":
        x = data.train.images[:1].reshape(1, -1).double().numpy() / 255
        h = sigmoid(x @ W1.T + b1)
        e = sigmoid(h @ W2.T + b2) - np.eye(3)[data.train.labels[:1].numpy()]
        ours_first, bp = (e @ B * h * (1 - h)).ravel(), (e @ W2 * h * (1 - h)).ravel()
        cosine = ours_first @ bp / np.linalg.norm(ours_first) / np.linalg.norm(bp)
        assert record.curves["delta angle, first image"].last[0] == pytest.approx(
            np.degrees(np.arccos(cosine)), abs=1e-3
        )
        cosine = (W2 * B).sum() / np.linalg.norm(W2) / np.linalg.norm(B)
        assert record.curves["matrix angle"].last[0] == pytest.approx(np.degrees(np.arccos(cosine)), abs=1e-3)


def test_released_wm_mirrors_an_epoch_first_and_then_after_every_batch(tmp_path):
    one, data = small(), images()
    task = Task("wm", (0,), 1.0, {"steps": 6}, tmp_path, data)
    one.run(task)
    assert task.restore("course")["parts"]["learner"]["adapted"] == 2 + 6  # type: ignore[index]


@pytest.mark.parametrize(("name", "n", "steps"), [("code-mnist", 60000, 400 * 468), ("code-cifar10", 50000, 400 * 390)])
def test_lengths_of_the_released_runs(name, n, steps):
    assert find(f"akrout2019/{name}").steps(images(n, 1)) == {"steps": steps}


def record(error: float, angle: float | None) -> Record:
    x = list(range(11))
    curves = {"test error": Curve(x, [[error] * 11]), "loss": Curve(x, [[1.0] * 11])}
    if angle is not None:
        for name in ("delta angle", "delta angle, first image", "matrix angle"):
            curves[name] = Curve(x, [[angle] * 11])
    return Record(curves=curves, seeds=[0])


def test_claims_of_the_released_runs_can_fail():
    good = small().outcome({"bp": record(1.5, None), "fa": record(2.1, 35), "kp": record(1.6, 4)})
    assert all(claim.holds for claim in good.claims)
    bad = small().outcome({"bp": record(1.5, None), "fa": record(1.6, 5), "kp": record(2.2, 35)})
    assert not any(claim.holds for claim in bad.claims)
    assert [row.agrees for row in good.rows if row.published is not None] == [True, False, False]
    alone = small().outcome({"kp": record(1.6, 4)})
    assert len(alone.claims) == 1
    assert small().outcome({}).panels == []
    undefined = small().outcome({"kp": record(1.6, math.nan), "fa": record(2.1, math.nan)})
    assert not any(claim.holds for claim in undefined.claims)


def test_the_papers_mirror_mirrors_two_epochs_first(tmp_path):
    task = Task("wm, paper", (0,), 1.0, {"steps": 6}, tmp_path, images())
    small().run(task)
    assert task.restore("course")["parts"]["learner"]["adapted"] == 2 * 2 + 6  # type: ignore[index]

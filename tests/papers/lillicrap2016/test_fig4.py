"""How the spiking network is shown images and answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from apical.data import ImageData, Split
from apical.papers import Curve, Published, Record, Task, find
from apical.papers.lillicrap2016.fig4 import FIG4, SpikingDigits
from apical.papers.lillicrap2016.spiking import Dynamics
from papers.digits import images

SMALL = replace(FIG4, hidden=(6, 5), group=4, streams=3, tested=4)


def test_an_image_is_five_steps_in_which_pixels_are_probabilities_and_targets_groups():
    data = images(7)
    assert SMALL.steps(data) == {"steps": 200 * 5 * 2, "steps of alternatives": 100}
    x, target = SMALL.shown(data.train, torch.tensor([5, 2]), 3)
    shown = data.train.images[[5, 2]].flatten(1).double().numpy() / 255
    np.testing.assert_allclose(x, np.minimum(shown, 0.95), rtol=1e-6)
    for row, label in zip(target.tolist(), data.train.labels[[5, 2]].tolist(), strict=True):
        assert row == [float(unit // 4 == label) for unit in range(12)]


def test_the_answer_is_the_group_that_spikes_most():
    """A network whose class groups hear one pixel each, on ten images in streams of four: every image counts once."""
    labels = torch.tensor([0, 1, 2, 1, 0, 2, 2, 1, 0, 0])
    pixels = torch.zeros(10, 1, 3, 3, dtype=torch.uint8)
    pixels.view(10, 9)[torch.arange(10), labels] = 255
    one = replace(SMALL, hidden=(), group=40)
    network = one.network("fa", 0, ImageData("", Split(pixels, labels), Split(pixels, labels), 3, ("a", "b", "c")))
    network.weights[0].fill_(-4.0)
    for label in range(3):
        network.weights[0][40 * label : 40 * label + 40, label] = 4.0
    found = one.errors(network, Split(pixels, labels), 3, 0)
    assert list(found.values()) == [0, 0]
    wrong = labels.clone()
    wrong[[3, 8, 9]] = (labels[[3, 8, 9]] + 1) % 3
    assert list(one.errors(network, Split(pixels, wrong), 3, 0).values()) == [30, 30]


def test_a_spiking_run_that_was_stopped_ends_as_one_that_was_not(tmp_path):
    data = images(9)

    def task(name: str) -> Task:
        return Task("fa", (0,), 1.0, {"steps": 133, "steps of alternatives": 1}, tmp_path / name, data)

    def stop(done: int, steps: int, note: str) -> None:
        if done == 64:
            again._saved = -1e9
        if done == 128:
            raise KeyboardInterrupt

    whole = SMALL.run(task("whole"))
    again = task("again")
    again.watcher = stop
    with pytest.raises(KeyboardInterrupt):
        SMALL.run(again)
    assert SMALL.run(task("again")) == whole


def test_readings_of_the_spiking_network_are_compared_at_equal_length():
    short = Record(curves={"test error": Curve([75.0], [[40.0]])})
    one = SpikingDigits(**{**vars(FIG4), "dynamics": {"fa": Dynamics(), "leak": Dynamics(integration="leak")}})
    rows = one.outcome({"leak": short}).rows
    assert [(row.label, list(row.ours)) for row in rows] == [("after 75 images: leak", [40.0])]


def test_the_description_has_the_papers_numbers():
    network = (FIG4.hidden, FIG4.group, FIG4.weights, FIG4.feedback)
    assert network == ((1500, 1500, 1500), 100, 0.05, 0.1)
    assert (FIG4.presented, FIG4.rate, FIG4.decay, FIG4.brightest) == (5, 1e-3, 1e-8, 0.95)
    assert FIG4.published == Published(1.8)
    assert all(one.tau == 0.9 for one in FIG4.dynamics.values())
    assert find(FIG4.name) is FIG4

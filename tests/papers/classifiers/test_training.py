"""Image classifiers by a recipe: its rates, a plain loop, workers, seeds side by side, mirroring alone, and resuming."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import apical
from apical.networks import build
from apical.papers.classifiers.experiment import Entry, ImageExperiment
from apical.papers.classifiers.training import ImageTraining, Recipe
from apical.papers.experiment import Task
from apical.papers.outcome import Outcome
from papers.classifiers.pictures import pictures

NETWORK = "papers.classifiers.pictures:tiny"
SMALL = Recipe(epochs=4, batch=32, rate=0.05, bfloat16=False)


class Small(ImageExperiment):
    def outcome(self, records):
        return Outcome()


def small(rule="kp", recipe=SMALL, **changes):
    fields = {
        "name": "akrout2019/small",
        "title": "",
        "source": "",
        "length": "4 epochs",
        "seeds": 1,
        "minutes": 0.1,
        "data": "drawn",
        "entries": {rule: Entry(network=NETWORK, rule=apical.rule(rule), recipe=recipe)},
        "angles": True,
    }
    return Small(**{**fields, **changes})


def training(rule="kp", recipe=SMALL, seeds=(0,), data=None, steps=8, angles=False):
    return ImageTraining(NETWORK, apical.rule(rule), data or pictures(), seeds, recipe, steps, angles=angles)


def test_rates_follow_the_epochs():
    recipe = Recipe(epochs=90, batch=2048, rate=0.8, mirrored=2, warmup=6, drops=(32, 62, 82))
    found = [recipe.rate_at(epoch) for epoch in (0.5, 2.0, 3.5, 8.0, 20.0, 32.0, 62.0, 90.0)]
    assert found == pytest.approx([0, 0, 0.2, 0.8, 0.8, 0.08, 0.008, 0.0008])
    flat = replace(recipe, mirrored=0, warmup=0, drops=())
    assert flat.rate_at(0.0) == flat.rate_at(90.0) == 0.8


def test_a_run_is_the_plain_loop():
    recipe = replace(SMALL, rate=0.1, nesterov=True, decay=0.01, warmup=2, drops=(3,))
    ours, data = training("bp", recipe, steps=6), pictures()
    torch.manual_seed(0)
    net = build(NETWORK, shape=data.shape, classes=3)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0, momentum=0.9, nesterov=True, weight_decay=0.01)
    step = 0
    for epoch in range(2):
        for x, y in data.train.batches(32, 0, epoch):
            at = (step + 1) / 6 * 4
            optimizer.param_groups[0]["lr"] = 0.1 * min(1, at / 2) * (0.1 if at >= 3 else 1)
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            ours.learn(step)
            step += 1
    assert step == 6
    for one, other in zip(ours.model.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_workers_average_gradients_of_their_own_batch_statistics():
    recipe = replace(SMALL, batch=70, workers=3, decay=0.0, momentum=0.0)
    ours, data = training("kp", recipe), pictures()
    torch.manual_seed(0)
    net = build(NETWORK, shape=data.shape, classes=3)
    learner = apical.attach(
        net,
        "kp",
        example_input=torch.zeros(2, *data.shape),
        generator=torch.Generator().manual_seed(10**6),
    )
    (batch,) = data.train.batches(70, 0, 0)
    gradients = []
    for x, y in zip(*(one.tensor_split(3) for one in batch), strict=True):
        net.zero_grad()
        F.cross_entropy(net(x), y, reduction="sum").backward()
        gradients.append([p.grad / 70 for p in net.parameters()])
    ours.learn(0)
    pairs = zip(ours.learner.model.parameters(), net.parameters(), *gradients, strict=True)
    for one, before, *parts in pairs:
        torch.testing.assert_close(one, before - 0.05 * sum(parts), rtol=1e-4, atol=1e-6)
    assert len(learner.feedback_parameters()) == 3


def test_mirroring_alone_moves_no_weight_and_turns_feedback_to_it():
    ours = training("wm", replace(SMALL, mirrored=2), steps=80, angles=True)
    before = [one.clone() for one in ours.learner.forward_parameters()]
    first = ours.measure()
    for step in range(40):
        ours.learn(step)
    assert all(torch.equal(one, other) for one, other in zip(ours.learner.forward_parameters(), before, strict=True))
    after = ours.measure()
    names = [name for name in after if name.startswith("matrix angle") and not math.isnan(after[name][0])]
    assert len(names) == 3  # All layers but the first.
    assert min(first[name][0] for name in names) > 60
    assert max(after[name][0] for name in names) < 30
    assert ours.learner.adapted == 40
    ours.learn(40)
    assert ours.learner.adapted == 41
    assert not all(
        torch.equal(one, other) for one, other in zip(ours.learner.forward_parameters(), before, strict=True)
    )


def test_seeds_side_by_side_learn_what_each_does_alone():
    together = training(seeds=(0, 1), angles=True)
    alone = [training(seeds=(seed,), angles=True) for seed in (0, 1)]
    for step in range(3):
        for one in (together, *alone):
            one.learn(step)
    found, theirs = together.measure(), [one.measure() for one in alone]
    for name, values in found.items():
        for ours, other in zip(values, (one[name][0] for one in theirs), strict=True):
            assert ours == pytest.approx(other, abs=1e-6 if "error" in name else 0.5, nan_ok=True), name


@pytest.mark.parametrize("seeds", [(3,), (3, 4)])
def test_a_stopped_run_ends_as_one_that_was_not(seeds, tmp_path, monkeypatch):
    monkeypatch.setattr("apical.papers.experiment.CHECKPOINT_SECONDS", -1.0)
    one = small("wm", replace(SMALL, epochs=8, batch=8, mirrored=2, bfloat16=True), validation=0.5)
    data = pictures()
    assert one.steps(data) == {"steps": 40}

    def task(folder, watcher=lambda *_: None):
        return Task("wm", seeds, 1.0, {"steps": 70}, tmp_path / folder, data, watcher)

    def killed(done, steps, note):
        if done >= 64:
            raise KeyboardInterrupt

    whole = one.run(task("whole"))
    with pytest.raises(KeyboardInterrupt):
        one.run(task("parts", killed))
    resumed = one.run(task("parts"))
    assert resumed.asdict() == whole.asdict()
    assert set(whole.numbers) == {"test error"}
    assert len(whole.curves["validation error"].y) == len(seeds)


def test_held_out_images_are_a_tenth_and_always_the_same():
    one = small(validation=0.1)
    parts = [one.prepared(pictures()) for _ in range(2)]
    assert [len(parts[0].train), len(parts[0].validation)] == [63, 7]
    assert torch.equal(parts[0].validation.images, parts[1].validation.images)


def test_weights_start_as_the_recipe_says():
    ours = training("bp", replace(SMALL, init=lambda weight: nn.init.constant_(weight, 0.5)))
    layers = [one for one in ours.model.modules() if isinstance(one, nn.Conv2d | nn.Linear)]
    assert all(bool((one.weight == 0.5).all()) for one in layers)

"""Training of convolutional networks for the papers."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

import apical
from apical.data import Split
from apical.losses import cross_entropy
from apical.papers import vision
from apical.papers.experiment import Task
from apical.papers.reproduce import reproduce
from papers.walk import walk


def split(n: int, seed: int = 0) -> Split:
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, 1, 6, 6), generator=draw).to(torch.uint8)
    return Split(images, torch.randint(3, (n,), generator=draw))


def network(seed: int, dropout: float) -> nn.Sequential:
    return vision.seeded(
        seed,
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(64, 3)),
    )


def fresh(seeds=(0,), precision="32-true", dropout=0.0, **options) -> vision.Training:
    example = split(2).batch(torch.arange(2))[0]
    nets = [network(seed, dropout) for seed in seeds]
    learners = [
        apical.attach(net, "urfb", example_input=example, generator=vision.feedback_stream(seed))
        for net, seed in zip(nets, seeds, strict=True)
    ]
    model = vision.side_by_side(learners, example)
    recipe = vision.Recipe(loss=cross_entropy, batch=4, **options)
    optimizer = apical.LocalSGD(apical.learner_of(model), lr=0.1)
    return vision.Training(model, optimizer, recipe, split(18), seeds, precision)


def weights(training: vision.Training) -> list[torch.Tensor]:
    return [one.detach().clone() for one in training.model.parameters()]


def test_seeds_side_by_side_learn_what_each_learns_alone():
    together = fresh((0, 1))
    alone = [fresh((seed,)) for seed in (0, 1)]
    for step in range(7):  # Beyond one epoch.
        for one in (together, *alone):
            one.learn(step)
    assert isinstance(together.model, apical.Replicas)
    for state, single in zip(together.model.states(), alone, strict=True):
        for name, theirs in single.model.state_dict().items():
            torch.testing.assert_close(state[name], theirs, rtol=1e-4, atol=1e-5)
    test = split(9, 1)
    assert together.errors(test) == [one.errors(test)[0] for one in alone]
    assert together.training_errors() == [one.training_errors()[0] for one in alone]


@pytest.mark.parametrize("precision", vision.PRECISIONS)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path, precision):
    def course(folder, stop=None):
        training = fresh(precision=precision, dropout=0.5)
        task = Task("urfb", (0,), 1.0, {"steps": 12}, folder)
        if stop is not None:

            def learn(step, own=training.learn):
                if step == stop:
                    raise KeyboardInterrupt
                own(step)
                # A checkpoint after each step, where there would be one a minute.
                state = {"step": step + 1, "lines": [], "finished": False, "parts": {"training": training.state_dict()}}
                task.save("course", {**state, "random": torch.get_rng_state()})

            training.learn = learn
            with pytest.raises(KeyboardInterrupt):
                vision.run(task, training, 12, {"test": split(9, 1)})
            return None
        curves = vision.run(task, training, 12, {"test": split(9, 1)})
        return weights(training), curves["test error"].last

    with vision.repeatable(3):
        whole = course(tmp_path / "whole")
    with vision.repeatable(3):
        course(tmp_path / "stopped", stop=7)
    again = course(tmp_path / "stopped")
    assert whole is not None
    assert again is not None
    assert all(torch.equal(a, b) for a, b in zip(whole[0], again[0], strict=True))
    assert whole[1] == again[1]


def test_precision_is_that_of_the_passes():
    single, mixed = fresh(), fresh(precision="bf16-mixed")
    for one in (single, mixed):
        for step in range(3):
            one.learn(step)
    assert all(one.dtype == torch.float32 for one in mixed.model.parameters())
    assert not torch.equal(weights(single)[0], weights(mixed)[0])
    torch.testing.assert_close(weights(single)[0], weights(mixed)[0], rtol=0.05, atol=0.01)


def test_a_loss_may_be_summed_over_the_minibatch():
    mean, summed = fresh(), fresh(summed=True)
    start = weights(mean)[0]
    for one in (mean, summed):
        one.learn(0)
    torch.testing.assert_close(weights(summed)[0] - start, 4 * (weights(mean)[0] - start), rtol=1e-4, atol=1e-6)


def test_images_are_prepared_for_learning_and_for_measuring():
    seen = []
    training = fresh(prepared=lambda x: seen.append(tuple(x.shape)) or 255 * x)
    training.learn(0)
    training.errors(split(3))
    assert seen == [(4, 1, 6, 6), (3, 1, 6, 6)]


def test_learning_stops_where_the_running_mean_of_training_errors_is_low_enough(tmp_path):
    training = fresh(stop=1.0)
    curves = vision.run(Task("urfb", (0,), 1.0, {}, tmp_path), training, 30, {"test": split(9, 1)})
    assert training.done
    assert curves["test error"].x == [0, 1]
    assert math.isnan(curves["training error"].y[0][0])


def test_the_last_images_are_held_out():
    train, rest = vision.held_out(split(50))
    assert (len(train), len(rest)) == (45, 5)
    assert torch.equal(rest.labels, split(50).labels[45:])


def test_an_order_within_two_standard_errors_is_undecided():
    assert vision.below([30.0], [32.0]) is True
    assert vision.below([32.0], [30.0]) is False
    assert vision.below([30.0], [30.5]) is None  # 10 000 images tell no less.
    assert vision.below([30.0, 34.0], [31.0, 35.0]) is None
    assert vision.below([30.0, 30.1], [33.0, 33.1]) is True


def test_a_precision_reaches_the_task_and_the_command(tmp_path):
    told = []

    class Told(type(walk())):
        def run(self, task):
            told.append(task.precision)
            return super().run(task)

    one = Told(
        **{
            **{f: getattr(walk(), f) for f in ("name", "title", "source", "length", "seeds", "minutes")},
            "precisions": vision.PRECISIONS,
        }
    )
    reproduce(one, tmp_path / "single", seeds=1)
    mixed = reproduce(one, tmp_path / "mixed", seeds=1, precision="bf16-mixed")
    assert set(told) == set(vision.PRECISIONS)
    assert mixed["command"].endswith("--precision bf16-mixed")
    assert "precision" not in json.loads((tmp_path / "single" / "config.json").read_text())
    assert json.loads((tmp_path / "mixed" / "config.json").read_text())["precision"] == "bf16-mixed"


def test_an_experiment_without_a_choice_refuses_another_precision(tmp_path):
    with pytest.raises(ValueError, match="precision of lillicrap2016/walk is 32-true, got 'bf16-mixed'"):
        reproduce(walk(), tmp_path / "run", seeds=1, precision="bf16-mixed")
    assert not (tmp_path / "run").exists()

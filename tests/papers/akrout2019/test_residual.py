"""What the paper says of residual networks, judged from made-up records; ImageNet's runs on a made-up set."""

from dataclasses import replace

import numpy as np
import pytest

from apical.papers import find
from apical.papers.akrout2019.imagenet import ImageNet, entries
from apical.papers.akrout2019.residual import angle_statements, angles_of, error_statements
from apical.papers.claims import judge
from apical.papers.classifiers.experiment import errors_of
from apical.papers.classifiers.training import DELTA, MATRIX
from apical.papers.record import Curve, Record
from apical.papers.reproduce import reproduce
from data.streaming.made_up import imagenet

EPOCHS = 90


def record(error, matrix=None, delta=None):
    """Angles: layer -> angle at an epoch, for three layers of which the first has no feedback."""
    x = list(range(0, EPOCHS + 1, 2))
    curves = {name: Curve(x, [[error] * len(x)]) for name in ("test error", "train error")}
    for what, angle in ((MATRIX, matrix), (DELTA, delta)):
        if angle is not None:
            for layer in range(3):
                none = what == MATRIX and layer == 0
                curves[f"{what}{layer}"] = Curve(x, [[np.nan if none else angle(layer, at) for at in x]])
    return Record(curves=curves, numbers={"test error": [error]}, seeds=[0])


def mirrored(layer, at):
    rough = 3.0 + 2 * (at >= 9) - 1.5 * (at > 32)
    return rough + 4 * (layer == 2)


GOOD = {
    "bp": record(8.0),
    "wm": record(8.2, mirrored, lambda layer, at: 20 - 8 * layer),
    "kp": record(7.9, lambda layer, at: 90 * 0.8**at, lambda layer, at: 90 * 0.8**at),
    "usf": record(12.0, lambda layer, at: 45, lambda layer, at: 50),
    "fa": record(60.0, lambda layer, at: 88, lambda layer, at: 86),
}
BAD = {
    "bp": record(8.0),
    "wm": record(11.0, lambda layer, at: 30 - 0.8 * at * (at < 32), lambda layer, at: 20 + 8 * layer),
    "kp": record(12.5, lambda layer, at: 40, lambda layer, at: 40),
    "usf": record(10.0, lambda layer, at: 15, lambda layer, at: 10),
    "fa": record(11.0, lambda layer, at: 60, lambda layer, at: 50),
}


def judged(records):
    named = {f"net, {rule}": one for rule, one in records.items()}
    values = {**errors_of(named), **angles_of(named, dict.fromkeys(named, EPOCHS))}
    return judge([*error_statements("net", 0.5, "ours"), *angle_statements("net", "ours")], values)


def test_claims_hold_for_what_the_paper_shows_and_fail_for_the_opposite():
    good, bad = judged(GOOD), judged(BAD)
    assert len(good) == len(bad) == 5 + 13
    assert [one.text for one in good if not one.holds] == []
    assert [one.text for one in bad if one.holds] == []


def test_conditions_that_were_left_out_are_not_judged():
    stand_in = find("akrout2019/fig4-cifar10")
    alone = stand_in.outcome({"kp": GOOD["kp"]})
    assert [one.text.partition(":")[0] for one in alone.claims] == ["resnet20-norm-after, KP"] * 2
    assert stand_in.outcome({}).panels == []
    whole = stand_in.outcome(GOOD)
    assert {one.kind for one in whole.claims} == {"ours"}
    assert [panel.title for panel in whole.panels][:3] == ["test error", "train error", "wm: matrix angles"]


def test_imagenets_recipe_is_the_printed_one():
    wm, ss = (entries(["resnet50"])[f"resnet50, {rule}"] for rule in ("wm", "usf"))
    assert [wm.recipe.rate_at(epoch) for epoch in (1, 2, 5, 8, 32)] == pytest.approx([0, 0, 0.4, 0.8, 0.08])
    assert (wm.recipe.batch, wm.recipe.workers, wm.recipe.nesterov, wm.recipe.decay) == (2048, 32, True, 1e-4)
    assert [vars(wm.rule.plasticity)[name] for name in ("batch", "rate", "decay")] == [2048, 0.1, 0.5]
    assert (ss.recipe.rate, ss.recipe.epochs) == (0.5, 140)


def test_imagenets_run_learns_from_class_folders_of_mixed_sizes(tmp_path):
    place = imagenet(tmp_path / "imagenet", 24, 3, 6, [(40, 60), (36, 36), (50, 34)])
    one = find("akrout2019/fig3a")
    assert isinstance(one, ImageNet)
    small = {
        name: replace(
            own,
            network="papers.classifiers.pictures:tiny",
            rule=replace(own.rule),
            recipe=replace(own.recipe, batch=12, workers=2, epochs=3),
        )
        for name, own in one.entries.items()
        if name.endswith((", bp", ", wm"))
    }
    short = replace(one, entries=small, pixels=32)
    outcome = reproduce(short, tmp_path / "run", data=str(place))
    assert outcome["lengths"]["steps"] == 6
    assert outcome["data"] == "imagenet (24 + 6 images)"
    rows = outcome["shows"]["rows"]
    assert [row["published"]["value"] for row in rows] == [30.1, 30.2]
    assert all(0 <= row["mean"] <= 100 for row in rows)

"""Configs are checked when they are made."""

import dataclasses

import pytest

from training.runs import PAIR, SHORT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "fq"}, "did you mean 'fa'"),
        ({"rule": "urfb:epsilon=-1"}, "epsilon must be"),
        ({"rule": "urfb:epsilom=1"}, "no hyperparameter 'epsilom'; it has .*epsilon"),
        ({"rule": "urfb:0.5"}, "write them as name:key=value"),
        ({"optimizer": "Adan"}, "did you mean 'Adam'"),
        ({"optimizer": "SGD:momentun=0.9"}, "SGD has no option 'momentun'; it has .*momentum"),
        ({"scheduler": "StepLr2"}, "StepLR"),
        ({"scheduler": "StepLR"}, "StepLR needs step_size; write StepLR:step_size=..."),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch": -3}, "batch must be at least 1, got -3"),
        ({"learning_rate": 0.0}, "learning_rate must be a positive number, got 0"),
        ({"weight_decay": -1e-3}, "weight_decay must be at least 0"),
        ({"connectivity": 0.0}, "connectivity must be the fraction of connections that exist, above 0 .*got 0"),
        ({"connectivity": 50.0}, "connectivity must be .*at most 1, got 50"),
        ({"align_every": -1}, "align_every must be at least 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"loss": "margin"}, "loss must be 'cross-entropy', .* or 'hinge', got 'margin'"),
        ({"precision": "half"}, "precision must be '32-true', .* or '16-mixed', got 'half'"),
        ({"seed": [0, 1], "epochs": "3"}, r"epochs must be a whole number, got '3'; seed must be .*got \[0, 1\]"),
    ],
)
def test_configs_are_checked_when_they_are_made(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SHORT, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first_seed": -1}, "first_seed must be at least 0, got -1"),
        ({"rules": ()}, "rules is empty"),
        ({"rules": "fa"}, "rules must be a list, each of it a name, got 'fa'"),
        ({"rules": ("fa", "fa")}, "fa more than once"),
        ({"seeds": 0}, "seeds must be"),
    ],
)
def test_comparisons_are_checked_when_they_are_made(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PAIR, **change)

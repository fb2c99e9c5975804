"""Workers that share minibatches: the printed recipe in 32 processes, and in fewer, learns what it learns in one."""

from dataclasses import replace

import pytest
import torch

from apical.papers import find
from apical.papers.classifiers.training import ImageTraining
from papers.classifiers.pictures import pictures
from processes import on_ranks

RULES = ("bp", "kp", "fa", "usf")
STEPS = 4
"""Two epochs of 70 images in minibatches of 64: two images for each of 32 workers, then one for each of six."""


def training(rule: str) -> ImageTraining:
    """The recipe of ResNet-50 with a tiny network, in double precision."""
    one = find("akrout2019/fig3b").entries[f"resnet50-norm-after, {rule}"]
    mirrored = 1 if one.recipe.mirrored else 0
    recipe = replace(one.recipe, epochs=2, warmup=1, drops=(1,), mirrored=mirrored, batch=64, bfloat16=False)
    network = "papers.classifiers.pictures:tiny"
    return ImageTraining(network, one.rule, pictures(), [0], recipe, STEPS, angles=True)


def learned(rank: int, rules: tuple[str, ...]) -> dict[str, dict[str, torch.Tensor]]:
    """Rule -> model, optimizer's momentum and measurements after all steps."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        found = {}
        for rule in rules:
            ours = training(rule)
            for step in range(STEPS):
                ours.learn(step)
            moments = {str(i): one["momentum_buffer"] for i, one in enumerate(ours.optimizer.state.values())}
            measured = {name: torch.tensor(values) for name, values in ours.measure().items()}
            found[rule] = {**ours.model.state_dict(), **moments, **measured}
        return found
    finally:
        torch.set_default_dtype(default)


@pytest.mark.parametrize("count", [2, pytest.param(32, marks=pytest.mark.slow)])
def test_processes_learn_what_the_workers_of_one_learn(count, tmp_path):
    first, *others = on_ranks(count, learned, tmp_path, (*RULES, "wm"))
    alone = learned(0, RULES)
    for rule, expected in alone.items():
        assert first[rule].keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(
                first[rule][name], value, rtol=1e-10, atol=1e-10, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
            )
    assert {"0.weight", "2.running_var", "2.num_batches_tracked", "test error"} <= alone["kp"].keys()
    assert alone["kp"]["2.num_batches_tracked"] == STEPS
    # Mirrors draw noise of their own at each process, so that only those that learn together are equal.
    for other in others:
        for rule, expected in first.items():
            assert all(torch.equal(other[rule][name].nan_to_num(), one.nan_to_num()) for name, one in expected.items())

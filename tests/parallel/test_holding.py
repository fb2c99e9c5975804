"""Which process holds what."""

from __future__ import annotations

import torch
from torch import nn

import apical
from apical.parallel.holding import Holdings
from apical.parallel.splitting import parts_of


def held(common: bool) -> list[set[str]]:
    """What each of three stages holds."""
    found = []
    for stage in range(3):
        net = nn.Sequential(*(one for _ in range(4) for one in (nn.Linear(5, 5), nn.Tanh())), nn.Linear(5, 3))
        learner = apical.attach(net, "dfa", example_input=torch.randn(2, 5))
        if common:
            for name in ("4", "6", "8"):
                net.get_submodule(name)._buffers["feedback"] = net[2].feedback
        holdings = Holdings(net, parts_of(learner, torch.randn(2, 5), 3, ["4", "8"]), stage, None)
        holdings.let_go()
        found.append({name for name, tensor in net.state_dict().items() if not tensor.is_meta})
        assert found[-1] >= {name for name, _ in holdings.own()}
    return found


def weights(*names: str) -> set[str]:
    return {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}


def test_feedback_is_held_where_its_signal_enters():
    assert held(False) == [
        {*weights("0", "2"), "2.feedback", "4.feedback"},
        {*weights("4", "6"), "6.feedback", "8.feedback"},
        weights("8"),
    ]


def test_one_matrix_of_all_taps_is_held_by_all_that_have_a_tap():
    first, second, third = held(True)
    feedback = {f"{name}.feedback" for name in ("2", "4", "6", "8")}
    assert first == {*weights("0", "2"), *feedback}
    assert second == {*weights("4", "6"), *feedback}
    assert third == weights("8")

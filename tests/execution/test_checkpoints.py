"""Activation checkpoints change nothing, or are refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from execution.common import IMAGES, attach, same
from learning import RULES, WIRED, gradients, spread
from networks import ConvolutionParts, LinearParts, X

LISTENING = ("np", "sg", "reinforce")


def by_checkpoint(reentrant: bool):
    def run(part: nn.Module, x: Tensor) -> Tensor:
        # Reentrant checkpoints pass nothing back where no input wants a gradient; that is PyTorch's, not ours.
        if reentrant and not x.requires_grad:
            return part(x)
        return checkpoint(part, x, use_reentrant=reentrant)

    return run


@pytest.mark.parametrize(("rule", "make", "shown"), spread(RULES, [LinearParts, ConvolutionParts], [True, False]))
def test_checkpoints_without_reentrance_change_nothing(rule, make, shown):
    if rule == "ifa" and make is ConvolutionParts:
        pytest.skip("needs a chain that keeps shape")
    x = X if make is LinearParts else IMAGES
    plain, model = make().eval(), make(by_checkpoint(False)).eval()
    attach(plain, rule, x, shown=shown), attach(model, rule, x, shown=shown)
    for _ in range(2):  # The first pass decides where no feedback is needed, in the middle of it all.
        same(gradients(model, x), gradients(plain, x), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_a_checkpoint_around_the_whole_model_changes_nothing(rule, shown):
    plain, model = LinearParts().eval(), LinearParts().eval()
    mine, theirs = attach(plain, rule, shown=shown), attach(model, rule, shown=shown)
    for _ in range(2):
        expected = gradients(plain)
        got = gradients(model, call=lambda x: checkpoint(model, x, use_reentrant=False))
        same(got, expected, rtol=1e-6, atol=1e-8)
    assert torch.equal(mine.generator.get_state(), theirs.generator.get_state())
    assert not any(one.open for one in theirs.passes)


@pytest.mark.parametrize("rule", [r for r in RULES if r not in (*WIRED, *LISTENING, "shallow")])
def test_reentrant_checkpoints_change_nothing_layer_by_layer(rule):
    plain, model = LinearParts().eval(), LinearParts(by_checkpoint(True)).eval()
    attach(plain, rule), attach(model, rule)
    for _ in range(2):
        same(gradients(model), gradients(plain), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("rule", [*WIRED, *LISTENING])
def test_reentrant_checkpoints_are_refused_where_taps_or_what_a_phase_hears_would_be_lost(rule):
    model = LinearParts(by_checkpoint(True)).eval()
    attach(model, rule)
    with pytest.raises(RuntimeError, match=r"second\.0.*use_reentrant=False"):
        gradients(model)
    model.run = by_checkpoint(False)
    plain = LinearParts().eval()
    attach(plain, rule)
    same(gradients(model), gradients(plain), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("rule", ["fa", "kp", "usf", "wm"])
def test_reentrant_checkpoints_around_several_layers_drop_no_feedback(rule):
    def deep(run) -> LinearParts:
        model = LinearParts(run).eval()
        model.second, model.third = nn.Sequential(*model.second, *model.third), nn.Tanh()
        attach(model, rule, shown=True)
        return model

    same(gradients(deep(by_checkpoint(True))), gradients(deep(None)), rtol=1e-6, atol=1e-8)

"""What the tests of phases share: rules with a phase, a batch, and loops with `adapt`."""

from __future__ import annotations

import torch
from torch import nn

import apical
from apical.losses import cross_entropy

RULES = ("wm", "np", "np-direct", "sg", "sg-direct", "reinforce", "mirror-direct", "np-ridge", "mixed")
X = torch.randn(12, 2, 6, 6, generator=torch.Generator().manual_seed(5))
Y = torch.randint(3, (12,), generator=torch.Generator().manual_seed(6))


def rule_of(name: str):
    if name == "mirror-direct":
        return apical.Rule("direct", "mirror")
    if name == "np-ridge":
        return {"": "np", "head": apical.rule("np", solver="ridge")}
    if name == "mixed":
        return {"": "wm", "block.conv2": "dfa", "head": "np"}
    return name


def attach(model: nn.Module, rule: str, x=X, seed: int = 1, **options) -> apical.Learner:
    return apical.attach(
        model, rule_of(rule), example_input=x[:2], generator=torch.Generator().manual_seed(seed), **options
    )


def learn(model, learner, steps: int = 1, x=X, y=Y, optimizer=None, call=None) -> None:
    for _ in range(steps):
        cross_entropy((model if call is None else call)(x), y).mean().backward()
        learner.adapt(x, y, cross_entropy)
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()


def feedback(learner) -> dict[str, torch.Tensor]:
    found = {name: synapse.feedback for name, synapse in learner.synapses.items()}
    found |= {name: block.feedback for name, block in learner.blocks.items()}
    return {name: tensor.detach().clone() for name, tensor in found.items() if tensor is not None}


def everything(model, learner) -> dict[str, torch.Tensor]:
    grads = {f"{name}.grad": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {**{k: v.clone() for k, v in model.state_dict().items()}, **grads}


def weights(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}

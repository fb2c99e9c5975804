"""What is asked of every network of the zoo."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import apical
from apical.nested import over_tensors, pick, run
from zoo.networks import Network


def built(network: Network) -> nn.Module:
    """In training, with random values where a network starts from zeros, or next to it: the last scale of a residual branch."""
    torch.manual_seed(0)
    model = network.build().train()
    for parameter in model.parameters():
        if parameter.detach().abs().max() <= 1e-4:
            nn.init.normal_(parameter, std=0.1)
    return model


def squares(y: Tensor, targets: Tensor) -> Tensor:
    return (y - targets).square().flatten(1).mean(1)


def targets_of(model: nn.Module, network: Network, example: Any) -> Tensor:
    """Random targets of the output's shape; all else stays as it was."""
    with torch.no_grad():
        y = pick(run(copy.deepcopy(model), example), network.output)
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(y)


def gradients(model: nn.Module, network: Network, example: Any, targets: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(4)
    model.zero_grad()
    squares(pick(run(model, example), network.output), targets).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def attached(model: nn.Module, network: Network, rule: str, example: Any) -> apical.Learner:
    rules = {"": rule, **network.apart} if network.apart else rule
    return apical.attach(
        model, rules, example_input=example, output=network.output, generator=torch.Generator().manual_seed(5)
    )


def with_weights_for_feedback(learner: apical.Learner) -> None:
    """B = W; of weights that a pass computes, those of the newest pass."""
    for synapse in learner.synapses.values():
        if synapse.feedback is not None and synapse.plasticity.name != "transport":
            synapse.feedback = vars(synapse).get("current_weight", synapse.weight)


def worst(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> tuple[float, str]:
    """The largest relative difference of a parameter's gradient, and whose."""
    assert mine.keys() == theirs.keys(), f"not in both: {sorted(mine.keys() ^ theirs.keys())}"
    largest = max(float(g.abs().max()) for g in theirs.values())
    found = [
        (float((mine[name] - g).abs().max()) / max(float(g.abs().max()), 1e-6 * largest), name)
        for name, g in theirs.items()
    ]
    return max(found)


def difference(
    network: Network, rule: str, prepare: Callable[[apical.Learner], None] | None = None
) -> tuple[float, str]:
    """Of the gradients by a rule from those of an untouched copy."""
    model = built(network).to(network.dtype)
    example = over_tensors(network.example(), lambda x: x.to(network.dtype) if x.is_floating_point() else x)
    plain = copy.deepcopy(model)
    targets = targets_of(plain, network, example)
    learner = attached(model, network, rule, example)
    if prepare is not None:
        gradients(model, network, example, targets)  # Weights may be computed in a pass.
        prepare(learner)
    return worst(gradients(model, network, example, targets), gradients(plain, network, example, targets))


def trained_and_audited(network: Network, rule: str) -> apical.AuditReport:
    """The audit's report after one step by the rule."""
    model, example = built(network), network.example()
    targets = targets_of(model, network, example)
    moving = gradients(copy.deepcopy(model), network, example, targets)
    learner = attached(model, network, rule, example)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    gradients(model, network, example, targets)
    learning = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    idle = [name for name, gradient in moving.items() if gradient.any() and name not in learning]
    assert not idle, f"parameters that learn nothing: {idle}"
    optimizer.step()
    assert all(bool(p.isfinite().all()) for p in model.parameters()), "parameters that are not finite"
    return apical.audit(learner, example, targets, squares)


def synapses(network: Network) -> int:
    """How many layers of it learn by a rule."""
    return len(attached(built(network), network, "fa", network.example()).synapses)

"""Parameters in groups: weights with their feedback, and biases with normalization, which may decay less and move faster."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from apical.learner import Learner

NORMALIZATIONS = (nn.LayerNorm, nn.RMSNorm)
"""Those whose scale may have more than one dimension."""


def in_groups(learner: Learner, **others: float | Tensor) -> list[dict[str, Any]]:
    """Two groups for an optimizer: weights with their feedback, and biases and normalization, which have options of their own.

    Weight and feedback of a synapse, and feedback of blocks, are always in the first: Kolen and Pollack's law holds only where
    both move and decay alike (akrout2019, eqs 13-18).

    Args:
        learner: whose parameters. others: the second group's own options, such as weight_decay=0 or lr=1.

    >>> import apical, torch
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    >>> learner = apical.attach(net, "kp", example_input=torch.zeros(2, 4))
    >>> [[list(one.shape) for one in group["params"]] for group in in_groups(learner, lr=1.0)]
    [[[3, 4], [2, 3], [2, 3]], [[3], [3], [3], [2]]]
    """
    spared: dict[int, nn.Parameter] = {}
    for module in learner.model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias" or parameter.dim() <= 1 or isinstance(module, NORMALIZATIONS):
                spared[id(parameter)] = parameter
    for owner in learner.owners.values():
        for name in ("weight", "feedback"):
            spared.pop(id(owner._parameters.get(name)), None)
    decayed = [one for one in learner.model.parameters() if id(one) not in spared]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": list(spared.values()), **others}]
    return [group for group in groups if group["params"]]

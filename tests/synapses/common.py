"""Thinned networks that learn, and what their masks hold; networks that learn with the node in C++, or without."""

from __future__ import annotations

import math
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import apical
from apical.losses import cross_entropy
from apical.synapses.native import building
from networks import CLASSES as Y
from networks import DOUBLES as X
from networks import seed


def attach(net, rule="kp", connectivity=0.5, n=3, **options) -> apical.Learner:
    return apical.attach(net, rule, example_input=X, generator=seed(n), connectivity=connectivity, **options)


def learn(learner, optimizer, steps=1, x=X) -> None:
    for _ in range(steps):
        cross_entropy(learner.model(x), Y).mean().backward()
        learner.adapt(x, Y, cross_entropy)
        optimizer.step()
        optimizer.zero_grad()


def sgd(learner, **options):
    return torch.optim.SGD(learner.model.parameters(), 0.05, **{"momentum": 0.9, "weight_decay": 0.01, **options})


def thin(learner) -> int:
    """How many masks there are; all of them hold."""
    found = 0
    for owner in (*learner.synapses.values(), *learner.blocks.values()):
        for name in ("weight", "feedback"):
            mask = owner._buffers.get(f"{name}_mask")
            if mask is not None:
                assert set(mask.unique().tolist()) == {0.0, 1.0}
                assert not getattr(owner, name)[mask == 0].any(), name
                found += 1
    return found


def state(learner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}


def near(mask: torch.Tensor, share: float) -> None:
    """Within five standard deviations."""
    assert abs(float(mask.mean()) - share) < 5 * math.sqrt(share * (1 - share) / mask.numel())


@contextmanager
def native(mode):
    """With the node in C++ "on" or "off", and its library, where it is built."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("APICAL_NATIVE", mode)
        building.library.cache_clear()
        yield building.library()
    building.library.cache_clear()


def built():
    """The library, in use for a test."""
    with native("on") as found:
        if found is None:
            pytest.skip("the node in C++ is not built here; `make native` builds it")
        yield found


def dense():
    return nn.Sequential(nn.Linear(70, 50), nn.Tanh(), nn.Linear(50, 20, bias=False), nn.Tanh(), nn.Linear(20, 10))


def convolutional():
    return nn.Sequential(
        *(
            nn.Conv2d(2, 4, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 4, 3, groups=2, padding="same", bias=False),
        ),
        *(nn.Tanh(), nn.ConvTranspose2d(4, 3, 2), nn.Flatten(), nn.Linear(75, 3)),
    )


def steps(network, x, rule, mode, n=3, *, local=False, half=None, momentum=0.9, **options):
    """Outputs and parameters after n steps, with the node in C++ or without; half: what autocast turns values into."""
    with native(mode):
        torch.manual_seed(1)
        model = network().to(x.dtype)
        learner = apical.attach(model, rule, example_input=x, generator=torch.Generator().manual_seed(2))
        options["momentum"] = momentum
        optimizer = (
            apical.LocalSGD(learner, 0.1, **options) if local else torch.optim.SGD(model.parameters(), 0.1, **options)
        )
        outputs = []
        for _ in range(n):
            optimizer.zero_grad()
            with torch.autocast("cpu", half, enabled=half is not None):
                outputs.append(model(x))
            outputs[-1].square().mean().backward()
            optimizer.step()
    return [*outputs, *model.state_dict().values()]

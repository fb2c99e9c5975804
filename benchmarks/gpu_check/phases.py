"""Phases on the device: feedback and gradients that are learned from noise, against the same on the CPU.

A GPU draws other numbers than a CPU does (and here a second run on the CPU does, too), so what is compared is how far both
have come.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from benchmarks.gpu_check import common
from benchmarks.gpu_check.common import Check, Where, batch, chain, criterion
from torch import nn

import apical

APART = 6.0
"""Degrees by which the device may end from where the CPU does."""


def checks(where: Where) -> Iterator[Check]:
    for rule in common.PHASED:
        make = reinforced if rule == "reinforce" else aligned
        yield Check(f"phases/{rule}", lambda rule=rule, make=make: make(where, rule))


def aligned(where: Where, rule: str) -> dict[str, float]:
    """Mean angle, in degrees, of signals to backpropagation's, before any phase and after many, on the device and the CPU."""
    found = {}
    for label, device in (("on the CPU", "cpu"), ("on the device", where.device)):
        x, y = (one.to(device) for one in batch(where))
        model = chain(where).to(device)
        learner = _attached(model, rule, x, label)
        found.setdefault("at first", _angle(learner, x, y))
        for _ in range(where.choose(60, 120)):
            criterion(model(x), y).mean().backward()
            learner.adapt(x, y, criterion)
            model.zero_grad()
        found[label] = _angle(learner, x, y)
    _compare(found)
    return found


def _attached(model: nn.Module, rule: str, x: torch.Tensor, label: str) -> apical.Learner:
    learner = common.attach(model, rule, x)
    if label == "on the device":
        learner.generator.manual_seed(7)
    return learner


def _angle(learner: apical.Learner, x: torch.Tensor, y: torch.Tensor) -> float:
    found = apical.alignment(learner, x, y, criterion)
    angles = [one.delta_angle for name, one in found.items() if one.delta_angle is not None]
    return sum(angles[:-1]) / len(angles[:-1])  # At the last synapse every rule is exact.


def reinforced(where: Where, rule: str) -> dict[str, float]:
    """Mean angle, in degrees, of gradients summed over many phases to backpropagation's."""
    found = {"at first": 90.0}
    for label, device in (("on the CPU", "cpu"), ("on the device", where.device)):
        x, y = (one.to(device) for one in batch(where))
        model, exact = chain(where).to(device), chain(where).to(device)
        learner = _attached(model, rule, x, label)
        expected = common.gradients(exact, x, y)
        sums = {name: torch.zeros_like(g) for name, g in expected.items()}
        for _ in range(where.choose(60, 120)):
            criterion(model(x), y).mean().backward()
            learner.adapt(x, y, criterion)
            for name, p in model.named_parameters():
                if p.grad is not None:
                    sums[name] += p.grad
            model.zero_grad()
        hidden = [name for name in expected if name.endswith("weight")][:-1]
        cosines = [float(torch.cosine_similarity(sums[n].flatten(), expected[n].flatten(), dim=0)) for n in hidden]
        angles = torch.tensor(cosines).clamp(-1, 1).acos().rad2deg()
        found[label] = float(angles.mean())
    _compare(found)
    return found


def _compare(found: dict[str, float]) -> None:
    first, cpu, device = found["at first"], found["on the CPU"], found["on the device"]
    told = f"{first:.1f} degrees at first, {cpu:.1f} on the CPU, {device:.1f} on the device"
    assert device < first - 3, f"the feedback has not learned: {told}"
    assert abs(device - cpu) < APART, f"the device ends elsewhere: {told}"

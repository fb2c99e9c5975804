"""Compiled models and captured steps against eager ones."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from benchmarks.gpu_check import common
from benchmarks.gpu_check.common import Check, SkipError, Where, batch, chain, criterion, distance
from torch import nn

import apical

COMPILED = ("fa", "kp", "usf", "dfa")
DEPTH = 30
UNCAPTURED = ("brsf",)
"""Rules that make something anew at every step."""


def checks(where: Where) -> Iterator[Check]:
    for rule in COMPILED[:2] if where.tiny else COMPILED:
        yield Check(f"compile/{rule}", lambda rule=rule: compiled(where, rule), 90.0, 10.0)
    yield Check("compile/one graph", lambda: one_graph(where), 120.0, 20.0)
    for rule in common.RULES:
        yield Check(f"capture/{rule}", lambda rule=rule: captured(where, rule))
    yield Check("capture/LocalSGD with a schedule", lambda: captured(where, "kp", local=True))


def compiled(where: Where, rule: str) -> float:
    """Relative error of the gradients of three passes of a compiled model against an eager one, in float32."""
    x, y = batch(where)
    eager, model = chain(where).to(where.device), chain(where).to(where.device)
    for one in (eager, model):
        common.attach(one, rule, x)
    call = torch.compile(model)
    found = 0.0
    for _ in range(3):
        expected, got = common.gradients(eager, x, y), common.gradients(model, x, y, call)
        found = max(found, distance(got, expected, 1e-4))
    return found


def one_graph(where: Where) -> float:
    """Thirty synapses as one graph, not made again after the second step; relative error of gradients in float32."""
    torch.manual_seed(0)
    width = where.choose(8, 256)
    layers = [layer for _ in range(DEPTH - 2) for layer in (nn.Linear(width, width), nn.Tanh())]
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, width), *layers, nn.Linear(width, common.CLASSES))
    x, y = batch(where)
    eager, model = copy.deepcopy(model).to(where.device), model.to(where.device)
    for one in (eager, model):
        common.attach(one, "fa", x)
    # What breaks or multiplies graphs comes before inductor, which would take long over as many layers.
    call = torch.compile(model, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        common.gradients(model, x, y, call)
    with torch.compiler.set_stance("fail_on_recompile"):
        got = common.gradients(model, x, y, call)
    return distance(got, common.gradients(eager, x, y), 1e-4)


def captured(where: Where, rule: str, *, local: bool = False) -> dict[str, Any]:
    """Captured steps end where eager ones do, to the bit; on a GPU most are replays, unless the rule can't be captured."""
    capture = getattr(apical, "captured", None)
    if capture is None:
        raise SkipError("this version has no apical.captured")
    n, x, y = where.choose(6, 50), *batch(where)
    ends = []
    for way in (lambda step, *example: step, capture):
        model = chain(where).to(where.device)
        learner = common.attach(model, rule, x)
        optimizer: torch.optim.Optimizer
        if local:
            optimizer = apical.LocalSGD(learner, lr=0.05, momentum=0.9)
        else:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, n // 3, 0.5) if local else None

        def step(x, y, model=model, learner=learner, optimizer=optimizer):
            loss = criterion(model(x), y).mean()
            loss.backward()
            learner.adapt(x, y, criterion)
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

        torch.manual_seed(4)
        run = way(step, x, y)
        for _ in range(n):
            run(x, y)
            if schedule is not None:
                schedule.step()
        ends.append(common.state(model))
    expected, found = ends
    assert found.keys() == expected.keys()
    off = {name: float((found[name] - value).abs().max()) for name, value in expected.items()}
    assert not any(off.values()), f"not the same bits: {off}"
    replays, why = getattr(run, "replays", None), getattr(run, "why", None)
    if where.device == "cuda" and rule not in UNCAPTURED:
        assert why is None, f"not captured: {why}"
        assert replays is None or replays > n // 2, f"only {replays} of {n} steps were replays"
    return {"largest difference": max(off.values()), "replays": replays, "why": why}

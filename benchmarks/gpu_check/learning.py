"""Learning on the device: gradients, audit, LocalSGD, mixed precision, copies side by side."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial

import torch
from benchmarks.gpu_check import common
from benchmarks.gpu_check.common import Check, SkipError, Where, batch, chain, criterion, distance, state
from torch import Tensor, nn

import apical
from apical.synapses.native.building import BuildError, build, library, wanted

COPIES = 3
NATIVE = ("bp", "fa", "kp", "usf", "dfa")
"""Rules whose calls the synapse's node in C++ makes."""


def checks(where: Where) -> Iterator[Check]:
    yield Check("native", built, 120.0)
    for rule in NATIVE:
        yield Check(f"native/{rule}", lambda rule=rule: native(where, rule))
    for rule in common.RULES:
        yield Check(f"gradients/{rule}", lambda rule=rule: gradients(where, rule))
    for rule in common.RULES:
        yield Check(f"audit/{rule}", lambda rule=rule: audit(where, rule))
    for rule in common.RULES:
        yield Check(f"local/{rule}", lambda rule=rule: local(where, rule))
    for rule in common.RULES:
        yield Check(f"autocast/{rule}", lambda rule=rule: autocast(where, rule))
    for rule in common.RULES:
        if rule not in common.ALONE:
            yield Check(f"replicas/{rule}", lambda rule=rule: replicas(where, rule))


def built() -> str:
    """The node in C++ is built, if it was not; all that comes after uses it."""
    if not wanted():
        raise SkipError("$APICAL_NATIVE is off")
    try:
        return build().parent.name
    except BuildError as error:
        raise SkipError(str(error)) from error


def native(where: Where, rule: str) -> dict[str, float]:
    """Relative errors of gradients by the node in C++ against Python's: in float32, and under autocast."""
    if library() is None:
        raise SkipError("it is not built")
    found = {}
    for name, make in common.networks(rule).items():
        x, y = batch(where)
        model = make(where).to(where.device)
        common.attach(model, rule, x)
        other = copy.deepcopy(model)
        for synapse in apical.learner_of(other).synapses.values():
            synapse.native = False
        for half, most in ((False, 1e-4), (True, 2e-2)):

            def run(x: Tensor, model: nn.Module, half: bool = half) -> Tensor:
                with torch.autocast(where.device, torch.bfloat16, enabled=half):
                    return model(x).float()

            pair = [common.gradients(one, x, y, partial(run, model=one)) for one in (model, other)]
            found[f"{name}, {'bfloat16' if half else 'float32'}"] = distance(*pair, most)
    return found


def gradients(where: Where, rule: str) -> dict[str, float]:
    """Relative errors against float64 on the CPU: attached on the device in float64, and moved there as float32."""
    found = {}
    for name, make in common.networks(rule).items():
        x, y = batch(where, torch.float64)
        reference = make(where).double()
        common.attach(reference, rule, x.cpu())
        single = copy.deepcopy(reference)
        expected = common.gradients(reference, x.cpu(), y.cpu())

        double = make(where).double().to(where.device)
        common.attach(double, rule, x)
        found[f"{name}, float64"] = distance(common.gradients(double, x, y), expected, 1e-9)

        if rule in common.REDRAWN:
            expected = common.gradients(copy.deepcopy(single).float(), x.cpu().float(), y.cpu())
        single = single.to(where.device, torch.float32)
        # PyTorch lets a GPU's convolutions round their factors to TF32 by default.
        most = 5e-3 if where.device == "cuda" and name == "convolutions" else 1e-4
        found[f"{name}, float32"] = distance(common.gradients(single, x.float(), y), expected, most)
    return found


def audit(where: Where, rule: str) -> str:
    """What the rule transports; the same, layer by layer, as on the CPU."""
    told = set()
    for make in common.networks(rule).values():
        reports = []
        for device in ("cpu", where.device):
            x, y = batch(where)
            model = make(where).to(device)
            learner = common.attach(model, rule, x.to(device))
            reports.append(apical.audit(learner, x.to(device), y.to(device), criterion))
        expected, found = reports
        assert found.transported == expected.transported, f"{found.transported} instead of {expected.transported}"
        told.add(found.summary)
    return "; ".join(sorted(told))


def local(where: Where, rule: str) -> float:
    """Relative error of four steps of LocalSGD against four of torch.optim.SGD, with momentum and weight decay, in float64."""
    worst = 0.0
    for make in common.networks(rule).values():
        x, y = batch(where, torch.float64)
        ends = []
        for in_place in (False, True):
            model = make(where).double().to(where.device)
            learner = common.attach(model, rule, x)
            optimizer: torch.optim.Optimizer
            if in_place:
                optimizer = apical.LocalSGD(learner, lr=0.05, momentum=0.9, weight_decay=0.01)
            else:
                optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
            common.steps(model, optimizer, x, y, 4)
            ends.append(state(model))
        worst = max(worst, distance(ends[1], ends[0], 1e-9))
    return worst


def autocast(where: Where, rule: str) -> float:
    """Largest 1 - cosine between gradients under bfloat16 autocast and in float32; phases leave everything finite."""
    worst = 0.0
    for make in common.networks(rule).values():
        x, y = batch(where)
        found = []
        for enabled in (False, True):
            model = make(where).to(where.device)
            learner = common.attach(model, rule, x)
            with torch.autocast(where.device, torch.bfloat16, enabled=enabled):
                outputs = model(x)
                losses = criterion(outputs, y)
            assert not enabled or outputs.dtype == torch.bfloat16
            losses.mean().backward()
            found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
            learner.adapt(x, y, criterion)
            bad = [name for name, value in state(model).items() if not bool(value.isfinite().all())]
            assert not bad, f"not finite after adapt: {bad}"
        expected, got = found
        assert got.keys() == expected.keys()
        for name, g in expected.items():
            assert got[name].dtype == torch.float32, f"{name} has a gradient of {got[name].dtype}"
            if float(g.norm()) > 1e-6:
                off = 1 - float(torch.cosine_similarity(got[name].flatten(), g.flatten(), dim=0))
                assert off < 0.05, f"{name}: cosine {1 - off:.3f} to the gradient in float32"
                worst = max(worst, off)
    return worst


def replicas(where: Where, rule: str) -> float:
    """Relative error of three steps of three copies side by side against the networks alone, in float64."""
    singles = []
    x = torch.stack([batch(where, torch.float64, seed)[0] for seed in range(COPIES)])
    y = torch.stack([batch(where, torch.float64, seed)[1] for seed in range(COPIES)])
    for seed in range(COPIES):
        model = chain(where).double()
        torch.manual_seed(seed)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn_like(p))
        common.attach(model.to(where.device), rule, x[0], seed)
        singles.append(model)
    together = apical.replicate(singles, example_input=x[0])
    learner = apical.learner_of(together)
    optimizer = torch.optim.SGD(together.parameters(), 0.05, momentum=0.9)
    for _ in range(3):
        criterion(together(x).flatten(0, 1), y.flatten()).view(COPIES, -1).mean(1).sum().backward()
        learner.adapt(x, y, criterion)
        optimizer.step()
        optimizer.zero_grad()
    for single, own_x, own_y in zip(singles, x, y, strict=True):
        own = torch.optim.SGD(single.parameters(), 0.05, momentum=0.9)
        common.steps(single, own, own_x, own_y, 3)
    pairs = zip(together.split(), singles, strict=True)
    return max(distance(state(mine), state(alone), 1e-9) for mine, alone in pairs)

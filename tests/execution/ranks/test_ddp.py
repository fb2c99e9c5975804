"""DistributedDataParallel: all rules learn as one process does, with its options and with gradients accumulated."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import apical
from apical import noise
from apical.losses import cross_entropy
from comparison import close
from execution.common import attach
from networks import LinearParts, X, Y
from processes import on_two_ranks

UNUSED = {"find_unused_parameters": True}
OPTIONS = {
    "as it is": {},
    "unused": UNUSED,
    "static": {"static_graph": True},
    "view": {"gradient_as_bucket_view": True},
    "accumulated": {},
    "accumulated, unused, view": {**UNUSED, "gradient_as_bucket_view": True},
}
SPARING = ("shallow", "reinforce")
"""Rules whose backward pass itself reaches few parameters."""
COURSES = [
    *((rule, "as it is") for rule in ("frfb", "matched", "urfb", "np", "np-direct", "np-ridge", "wm")),
    *((rule, option) for rule in ("kp", "kp-direct", "np") for option in OPTIONS if option != "as it is"),
    *((rule, option) for rule in SPARING for option in OPTIONS if "unused" in option or option == "static"),
]  # `test_ranks` has the other rules, `phases.test_distributed` those that learn from true gradients.


def made(rule: str) -> tuple[LinearParts, apical.Learner]:
    model = LinearParts(dtype=torch.float64)
    if rule != "np-ridge":
        return model, attach(model, rule, X.double(), shown=True)
    ridge = apical.rule("np", solver="ridge")
    return model, apical.attach(model, ridge, example_input=X.double(), generator=torch.Generator().manual_seed(1))


def batches(option: str, rank: int | None = None) -> list[tuple[Tensor, Tensor]]:
    """What one step learns from, in order: of all samples, or of a rank's half of them."""
    halves = [torch.arange(4), torch.arange(4, 8)]
    pieces = 2 if "accumulated" in option else 1
    parts = zip(*(half.chunk(pieces) for half in halves), strict=True)
    chosen = [torch.cat(part) if rank is None else part[rank] for part in parts]
    return [(X[own].double(), Y[own]) for own in chosen]


def course(model: LinearParts, learner: apical.Learner, parts: Sequence, call=None) -> dict[str, Tensor]:
    """The state after three steps, each of gradients that are accumulated over `parts`."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(3):
        for number, (x, y) in enumerate(parts, 1):
            with contextlib.nullcontext() if call is None or number == len(parts) else call.no_sync():
                (cross_entropy((call or model)(x), y).mean() / len(parts)).backward()
            learner.adapt(x, y, cross_entropy)
        optimizer.step()
        optimizer.zero_grad()
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def by_local_sgd(rank: int, group: str) -> list[str]:
    """What is said where LocalSGD is made in a group of two, and where it is made before the group."""
    said = []
    model, learner = made("kp")
    for late in (False, True):
        if late:
            dist.destroy_process_group()
        try:
            optimizer = apical.LocalSGD(learner, lr=0.1)
            dist.init_process_group("gloo", init_method=f"file://{group}", rank=rank, world_size=2)
            DistributedDataParallel(model)(X.double())
            said.append(f"nothing, by {optimizer}")
        except RuntimeError as error:
            said.append(str(error))
    return said


def attached_late(rank: int) -> dict[str, str]:
    """What is said where a model is attached that is wrapped, or was."""
    said = {}
    for rule, kept in (("kp", True), ("kp", False), ("fa", True)):
        model = LinearParts(dtype=torch.float64)
        wrapper = DistributedDataParallel(model)
        if not kept:
            wrapper = None
        try:
            attach(model if wrapper is None or rank else wrapper, rule)
            said[f"{rule}, {kept}"] = "nothing"
        except ValueError as error:
            said[f"{rule}, {kept}"] = str(error)
    return said


def train_on_half(rank: int, group: str) -> tuple:
    found = {}
    for rule, option in COURSES:
        model, learner = made(rule)
        ranks = DistributedDataParallel(model, **OPTIONS[option])
        found[rule, option] = course(model, learner, batches(option, rank), ranks)
    return found, attached_late(rank), by_local_sgd(rank, group)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return on_two_ranks(train_on_half, folder, str(folder / "group"))


def as_two_draw(monkeypatch) -> None:
    """Noise for the batch's halves comes from streams of their own, as on two ranks."""
    fill, seconds = noise.fill, {}

    def halves(tensor, distribution, generator, sd=1.0):
        start = generator.initial_seed()
        second = seconds.setdefault(start, torch.Generator().manual_seed(start + 1))
        for half, source in zip(tensor.chunk(2), (generator, second), strict=True):
            fill(half, distribution, source, sd)
        return tensor

    monkeypatch.setattr(noise, "fill", halves)


@pytest.mark.parametrize(("rule", "option"), [one for one in COURSES if one[0] != "wm"])
def test_two_ranks_learn_as_one_process(rule, option, ranks, monkeypatch):
    first, second = (found[0][rule, option] for found in ranks)
    close(first, second, 0)
    as_two_draw(monkeypatch)
    close(first, course(*made(rule), batches(option)), 1e-10)


def test_mirrors_of_two_ranks_learn_the_mean_of_both(ranks, monkeypatch):
    """Each subtracts the mean of its own answers, so that one process with all of the noise would learn something else."""
    first, second = (found[0]["wm", "as it is"] for found in ranks)
    close(first, second, 0)
    monkeypatch.setattr("apical.distributed.world", lambda: 2)
    monkeypatch.setattr("apical.distributed.average", lambda tensors: None)
    pair = [made("wm") for _ in range(2)]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01) for m, _ in pair]
    for _ in range(3):
        for rank, (model, learner) in enumerate(pair):
            ((x, y),) = batches("as it is", rank)
            cross_entropy(model(x), y).mean().backward()
            monkeypatch.setattr("apical.distributed.rank", lambda rank=rank: rank)
            learner.adapt(x, y, cross_entropy)
        with torch.no_grad():
            for mine, other in zip(*(m.parameters() for m, _ in pair), strict=True):
                mine.grad = other.grad = (mine.grad + other.grad) / 2
            for mine, other in zip(*(m.buffers() for m, _ in pair), strict=True):
                mine.copy_((mine + other) / 2)
                other.copy_(mine)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    close(first, pair[0][0].state_dict(), 1e-10)


def test_a_model_that_is_wrapped_gets_no_parameters_that_nobody_would_average(ranks):
    for _, said, _ in ranks:
        assert "rule 'kp' adds parameters" in said["kp, True"]
        assert "call apical.attach on the plain model, and wrap it after that" in said["kp, True"]
        assert said["kp, False"] == said["fa, True"] == "nothing"


def test_local_sgd_is_refused_whenever_it_was_made(ranks):
    for _, _, said in ranks:
        assert len(said) == 2
        assert all("LocalSGD applies updates before they could be averaged over processes" in one for one in said)

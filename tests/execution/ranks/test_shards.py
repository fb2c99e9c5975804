"""fully_shard (FSDP2) on two ranks: learns as one process does, or is refused in words of our own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

import apical
from apical.losses import cross_entropy
from comparison import close
from execution.common import attach
from networks import LinearParts, X, Y
from processes import on_two_ranks

LAYERS = ("first", "second", "third", "head")
WHOLE = (
    "bp",
    "fa",
    "kp",
    "usf",
    "brsf",
    "matched",
    "dfa",
    "dfa:rank=2,shared=True",
    "kp-direct:rank=2",
    "kp-direct",
    "ifa",
    "shallow",
    "kp 0.5",
    "usf 0.5",
    "kp:rank=2,every=2",
)
EACH = ("fa", "kp", "usf", "dfa", "dfa 0.5")
"""Rules that learn from parts sharded on their own, too."""
ALIKE = ("fa", "dfa", "dfa:rank=2,shared=True", "ifa")
"""Rules whose feedback is whole on every rank: here each draws its own, and the first one's is used."""
COURSES = [*((rule, False) for rule in WHOLE), *((rule, True) for rule in EACH)]
PHASED = ("wm", "np", "np-direct", "sg", "sg-direct", "reinforce")


def made(rule: str, *, shown: bool = True, n: int = 1) -> tuple[LinearParts, apical.Learner]:
    model = LinearParts(dtype=torch.float64)
    return model, attach(model, rule, X.double(), shown=shown, n=n)


def shard(model: nn.Module, each: bool = False, **options: bool) -> None:
    from torch.distributed.fsdp import fully_shard

    for name in LAYERS if each else ():
        fully_shard(model.get_submodule(name), **options)
    fully_shard(model)


def half(rank: int) -> tuple[Tensor, Tensor]:
    own = slice(4 * rank, 4 * rank + 4)
    return X[own].double(), Y[own]


def course(model: nn.Module, x: Tensor, y: Tensor, steps: int = 3) -> dict[str, Tensor]:
    """The whole state after some steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(steps):
        cross_entropy(model(x), y).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return state(model)


def state(model: nn.Module) -> dict[str, Tensor]:
    entries = model.state_dict().items()
    return {name: (one.full_tensor() if isinstance(one, DTensor) else one).clone() for name, one in entries}


def told(call: Callable[[], object]) -> str:
    """What is said against it."""
    try:
        call()
    except (RuntimeError, ValueError) as error:
        return str(error)
    return "nothing"


def refusals(rank: int) -> dict[str, str]:
    x, y = half(rank)
    said = {}
    for rule in PHASED:
        model, _ = made(rule)
        shard(model, each=rule == "sg")
        said[rule] = told(lambda model=model: model(x))
    for rule in ("ifa", "kp-direct"):
        model, _ = made(rule)
        shard(model, each=True)
        said[f"{rule}, each"] = told(lambda model=model: model(x))
    model = LinearParts(dtype=torch.float64)
    apical.attach(model, "dfa", example_input=X.double(), at=["second"])
    shard(model, each=True)
    said["at, each"] = told(lambda: model(x))
    model = LinearParts(dtype=torch.float64)
    shard(model)
    said["late"] = told(lambda: attach(model, "fa"))
    model, learner = made("fa")
    shard(model)
    said["alignment"] = told(lambda: apical.alignment(learner, x, y, cross_entropy))
    said["audit"] = told(lambda: apical.audit(learner, x, y, cross_entropy))
    said["refresh"], said["detach"] = told(learner.refresh), told(learner.detach)
    with torch.no_grad():
        said["evaluated"] = told(lambda: model(x))
    return said


def set_feedback(rank: int) -> tuple[dict[str, Tensor], str]:
    """The state after a step once shards of feedback are doubled; and what is said to a whole tensor."""
    model, learner = made("kp")
    shard(model)
    synapse = learner.synapses["head"]
    said = told(lambda: setattr(synapse, "feedback", torch.zeros(synapse.feedback.shape)))
    synapse.feedback = synapse.feedback.detach() * 2
    return course(model, *half(rank), steps=1), said


def saved(rank: int, folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state that was saved, and that of a new model which has loaded it; with connections that don't exist."""
    import torch.distributed.checkpoint as dcp

    states = []
    for n in range(2):
        model, learner = made("kp 0.5")
        shard(model)
        entries = {"model": model.state_dict(), "learner": learner.state_dict()}
        if n:
            dcp.load(entries, checkpoint_id=folder / "checkpoint")
            model.load_state_dict(entries["model"])
            learner.load_state_dict(entries["learner"])
        else:
            course(model, *half(rank))
            dcp.save(entries, checkpoint_id=folder / "checkpoint")
        states.append(state(model))
    return states[0], states[1]


def train_on_half(rank: int, folder: Path) -> tuple:
    found = {}
    for rule, each in COURSES:
        model, _ = made(rule, n=1 + rank if rule in ALIKE else 1)
        shard(model, each)
        found[rule, each] = course(model, *half(rank))
    model, _ = made("kp", shown=False)
    shard(model)
    found["kp", None] = course(model, *half(rank))
    model, _ = made("kp-direct")
    shard(model, each=True, reshard_after_forward=False)
    found["kp-direct", True] = course(model, *half(rank))
    return found, refusals(rank), set_feedback(rank), saved(rank, folder)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return on_two_ranks(train_on_half, folder, folder)


@pytest.mark.parametrize(("rule", "each"), [*COURSES, ("kp", None), ("kp-direct", True)])
def test_shards_learn_as_one_process(rule, each, ranks):
    """each: parts are sharded on their own. None: not, and no example was shown, so that all feedback stays."""
    first, second = (found[0][rule, each] for found in ranks)
    close(first, second, 0)
    expected = course(made(rule)[0], X.double(), Y)
    close({name: first[name] for name in expected}, expected, 1e-10)


def test_what_shards_cannot_do_is_refused_with_a_way_out(ranks):
    for _, said, _, _ in ranks:
        for rule in PHASED:
            assert f"learner.adapt, by which rule '{rule}' learns, needs whole weights" in said[rule]
            assert "use DistributedDataParallel, or a rule without a phase" in said[rule]
        for part in ("ifa, each", "at, each"):
            assert (
                "fully_shard was called on 'first', 'second', 'third', 'head', too; call it on the whole" in said[part]
            )
        assert "or on its parts with reshard_after_forward=False" in said["kp-direct, each"]
        assert "call apical.attach first and fully_shard after it" in said["late"]
        for measure in ("alignment", "audit"):
            assert f"apical.{measure} needs whole weights" in said[measure]
        assert "change the model and refresh before fully_shard" in said["refresh"]
        assert "load a full state dict into the plain model" in said["detach"]
        assert said["evaluated"] == "nothing"


def test_feedback_that_is_set_in_shards_is_used(ranks):
    model, learner = made("kp")
    learner.synapses["head"].feedback = learner.synapses["head"].feedback.detach() * 2
    expected = course(model, X.double(), Y, steps=1)
    for _, _, (found, said), _ in ranks:
        close(found, expected, 1e-10)
        assert "feedback of 'head' lies in shards, and a whole tensor was given" in said


def test_a_distributed_checkpoint_brings_back_weights_feedback_and_masks(ranks):
    for _, _, _, (before, after) in ranks:
        close(after, before, 0)

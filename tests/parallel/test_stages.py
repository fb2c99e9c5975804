"""Stages learn what one process learns from the whole batch."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

import apical
from apical.parallel import pipeline
from comparison import equal
from networks import X, flat_chain
from parallel.networks_in_stages import ROWS, alone, in_stages, learn, made, mlp, sgd, staged
from processes import on_ranks, on_two_ranks

COURSES = [
    *(("mlp", rule, dtype) for rule in ("dfa", "kp-direct", "shallow") for dtype in (torch.float32, torch.float64)),
    *(("sparse", rule, torch.float64) for rule in ("dfa", "kp-direct")),
    *(("residual", rule, torch.float64) for rule in ("dfa", "kp-direct")),
    *(("convolutions", rule, torch.float64) for rule in ("dfa", "kp-direct")),
    ("mixed", "dfa", torch.float64),
    ("normalized", "dfa", torch.float64),
]
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}

REFUSED = {
    "np-direct": "rule 'np-direct' learns in a phase of its own",
    "sg-direct": "rule 'sg-direct' learns in a phase of its own",
    "reinforce": "rule 'reinforce' learns in a phase of its own",
    "fa": "rule 'fa' takes a layer's signal from the layer behind it",
    "bp": "rule 'bp' takes a layer's signal from the layer behind it",
    "brsf": "rule 'brsf' takes a layer's signal from the layer behind it",
    "ifa": "rule 'ifa' sends its signal on from layer to layer",
}


def all_courses(rank: int) -> dict:
    found = {course: staged(*course) for course in COURSES}
    return {"courses": list(found.values()), "kept": kept(rank), "resumed": resumed(), "said": refused(rank)}


def kept(rank: int) -> dict:
    """What lies where, and what a stage's tensors are."""
    run = in_stages("mlp", "kp-direct")
    return {
        "here": sorted(name for name, p in run.learner.model.named_parameters() if not p.is_meta),
        "costs": run.costs,
        "told": repr(run),
        "moved": sorted(len(one.shape) for group in run.optimizer.param_groups for one in group["params"]),
    }


def resumed() -> list:
    """Losses of steps that follow two others, by the same stages, and by new ones that took their state."""
    _, batches, _ = made("mlp")
    run, other = in_stages("mlp", "kp-direct"), in_stages("mlp", "kp-direct")
    list(learn(run, batches[:2]))
    state = copy.deepcopy(run.state_dict())
    expected = list(learn(run, batches))
    other.load_state_dict(state)
    return [torch.stack(expected), torch.stack(list(learn(other, batches)))]


def refused(rank: int) -> dict:
    """What is said of what can't be learned in stages; models stay plain."""
    said = {}

    def ask(key: str, model: nn.Module, rule: object, **options: object) -> None:
        try:
            pipeline(model, rule, optimizer=sgd, **{"example_input": X, **options})
        except (ValueError, TypeError) as error:
            said[key] = f"{type(error).__name__}: {error}"
            if any("Synapse" in type(one).__name__ for one in model.modules()):
                said[key] += " (still attached)"

    for rule in REFUSED:
        net = flat_chain() if rule == "ifa" else mlp()
        ask(rule, net, rule, example_input=torch.randn(2, 72).double() if rule == "ifa" else torch.randn(2, 6))
    ask("replicas", apical.replicate(mlp, 2), "dfa", example_input=torch.randn(2, 4, 6))
    tied = mlp()
    tied[2].weight = nn.Parameter(torch.randn(9, 9))
    tied = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), tied[2], nn.Tanh(), nn.Linear(9, 9), nn.Tanh(), nn.Linear(9, 3))
    tied[4].weight, tied[2].bias = tied[2].weight, nn.Parameter(torch.zeros(9))
    ask("tied", tied, "dfa", example_input=torch.randn(2, 6), split=["4"])
    ask("empty", nn.Sequential(nn.Flatten(), mlp()), "dfa", example_input=torch.randn(2, 6), split=["1.0"])

    def under_autocast() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            in_stages("mlp", "dfa", torch.float32).evaluate(torch.randn(8, 6))

    run = in_stages("mlp", "dfa")
    for key, call in {
        "state": lambda: run.load_state_dict({**run.state_dict(), "stage": 5}),
        "rows": lambda: in_stages("mlp", "dfa").evaluate(torch.randn(0, 6).double()),
        "autocast": under_autocast,
        "shape": lambda: in_stages("mlp", "dfa").evaluate(torch.randn(8, 5).double()),
    }.items():
        try:
            call()
        except ValueError as error:
            said[key] = str(error)
        dist.barrier()
    dist.barrier()
    return said


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return on_two_ranks(all_courses, tmp_path_factory.mktemp("stages"))


@pytest.mark.parametrize("number", range(len(COURSES)), ids=[f"{n} {r} {d}" for n, r, d in COURSES])
def test_two_stages_learn_as_one_process_on_the_whole_batch(number, ranks):
    name, rule, dtype = COURSES[number]
    expected = alone(name, rule, dtype, pieces=name == "normalized")
    feedback = set()
    for rank in ranks:
        mine = rank["courses"][number]
        feedback |= {key for key in mine if "feedback" in key}
        known = {key: value for key, value in expected.items() if key in mine}
        equal(mine, known, rtol=TOLERANCE[dtype])
    assert {key for key in expected if key.endswith("feedback")} <= feedback
    assert len(expected["losses"]) == len(ROWS)


def test_a_stage_holds_its_own_layers_alone(ranks):
    first, second = (rank["kept"] for rank in ranks)
    assert not set(first["here"]) & set(second["here"])
    run = {"2.feedback": first, "4.feedback": first, "6.feedback": second}
    assert all(name in rank["here"] for name, rank in run.items())  # 4's signal enters at the end of the first stage.
    assert {"0.weight", "2.weight"} <= set(first["here"])
    assert {"4.weight", "6.bias"} <= set(second["here"])
    assert len(first["moved"]) == len(first["here"])
    assert first["costs"] == second["costs"]
    assert sum(first["costs"]) == pytest.approx(1)
    assert first["told"] == "Pipeline(rule='kp-direct', stage 0 of 2: 0, 1, 2, 3)"


def test_stages_go_on_from_their_states(ranks):
    for rank in ranks:
        assert torch.equal(*rank["resumed"])


@pytest.mark.parametrize("rule", REFUSED)
def test_rules_that_stages_cannot_learn_by_are_refused_by_name(rule, ranks):
    for rank in ranks:
        assert REFUSED[rule] in rank["said"][rule]
        assert "'dfa', 'kp-direct' and 'shallow' learn in stages" in rank["said"][rule]
        assert "still attached" not in rank["said"][rule]


def test_what_cannot_be_learned_in_stages_is_refused(ranks):
    for rank in ranks:
        said = rank["said"]
        assert "Replicas can't be learned in stages" in said["replicas"]
        assert "stages 0 and 1 share" in said["tied"]
        assert "still attached" not in said["tied"]
        assert "not the state of stage" in said["state"]
        assert "the batch is empty" in said["rows"]
        assert "without autocast" in said["autocast"]
        assert "the batch is [N, 5] (torch.float64), and the stages were made for" in said["shape"]
        assert "stage 0 has no parameters" in said["empty"]
        assert "still attached" not in said["empty"]


def three(rank: int) -> dict:
    return {rule: staged("mlp", rule, microbatches=4) for rule in ("dfa", "kp-direct")}


def test_three_stages_learn_as_one_process(tmp_path):
    found = on_ranks(3, three, tmp_path)
    for rule in ("dfa", "kp-direct"):
        expected = alone("mlp", rule)
        for rank in found:
            equal(rank[rule], {key: value for key, value in expected.items() if key in rank[rule]}, rtol=1e-12)


def test_processes_are_needed():
    with pytest.raises(RuntimeError, match="start them with torchrun"):
        pipeline(mlp(), "dfa", example_input=torch.randn(2, 6), optimizer=sgd)

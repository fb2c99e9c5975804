"""Options of a step: what they teach is what a loop teaches that is written out, under every kind of rule."""

import dataclasses
import json

import pytest
import torch
from torch.nn import functional as F

from apical.comparison.choice import obstacle
from apical.training import CompareConfig, RunFolder, TrainConfig, compare, train
from apical.training import checkpoint as checkpoints
from apical.training.networks import OneNetwork
from processes import BoomError, boom_at
from training.runs import DIGITS, TIMELESS, same, small, weights

PLAIN = TrainConfig(
    network="16-6-5-3",
    optimizer="SGD:momentum=0.9,nesterov=True",
    learning_rate=0.2,
    weight_decay=0.01,
    epochs=2,
    batch=10,
    precision="64-true",
    align_every=0,
)
ALL = dataclasses.replace(
    PLAIN,
    accumulate=3,
    clip=0.5,
    decayed="weights",
    warmup_epochs=1.5,
    cooldown_epochs=0.3,
    bias_rate=3.0,
    label_smoothing=0.1,
    ema=0.5,
    mirrored=True,
    scheduler="StepLR:step_size=1",
)
RULES = ("fa", "dfa", "kp", "wm", "np:solver=ridge,warmup=9", "sg", "reinforce")


def rate(step):
    """The share of the learning rate in a step, from 1 to 14, 7 in an epoch: it grows up to step 10.5 and falls after 11.9."""
    return 0.1 ** ((step - 1) // 7) * min(1, step / (1.5 * 7), (15 - step) / (0.3 * 7))


def written_out(config, data):
    """Weights, their average, and its outputs for the test set, by PyTorch's own means."""
    learner = OneNetwork(config, data).learner
    model, feedback = learner.model.double(), learner.feedback_parameters()
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    rest = [p for name, p in model.named_parameters() if not name.endswith("bias")]
    groups = [{"params": rest, "initial": 0.2}, {"params": biases, "initial": 0.6, "weight_decay": 0}]
    optimizer = torch.optim.SGD(groups, lr=0.2, momentum=0.9, nesterov=True, weight_decay=0.01)
    kept = {id(p) for p in feedback}
    forward = [p for p in model.parameters() if id(p) not in kept]
    average, step = [p.detach().clone() for p in forward], 0

    def criterion(outputs, targets):
        return F.cross_entropy(outputs, targets, label_smoothing=0.1, reduction="none")

    for epoch in range(2):
        for x, y in data.train.batches(10, config.seed, epoch):
            step += 1
            for group in optimizer.param_groups:
                group["lr"] = group["initial"] * rate(step)
            for part, (own, its) in enumerate(zip(x.double().tensor_split(3), y.tensor_split(3), strict=True)):
                (criterion(model(own), its).sum() / len(y)).backward()
                if config.rule == "reinforce" or part == 2:
                    learner.adapt(own, its, criterion)
            norm = torch.nn.utils.clip_grad_norm_(forward, 0.5)
            for p in feedback:
                if p.grad is not None:
                    p.grad *= min(1, 0.5 / (norm + 1e-6))
            optimizer.step()
            optimizer.zero_grad()
            share = 1 - min(0.5, (1 + step) / (10 + step))
            for mean, p in zip(average, forward, strict=True):
                mean += share * (p.detach() - mean)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for p, mean in zip(forward, average, strict=True):
            p.copy_(mean)
        x = data.test.first(64)[0].double()
        outputs = (model(x) + model(x.flip(-1))) / 2
    return state, outputs


@pytest.mark.parametrize("rule", RULES)
def test_all_options_at_once_are_the_loop_written_out(tmp_path, rule):
    config, data = dataclasses.replace(ALL, rule=rule), small()
    result = train(config, tmp_path / "run", data=data)
    state, outputs = written_out(config, data)
    found = weights(tmp_path / "run")
    assert found.keys() == state.keys()
    for name, expected in state.items():
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
    loss = F.cross_entropy(outputs.float(), data.test.labels).item()
    assert result["test_loss"] == pytest.approx(loss, abs=1e-6)
    assert result["predictions"] == outputs.argmax(1).tolist()


@pytest.mark.parametrize("rule", ["fa", "kp", "dfa"])
def test_a_batch_in_parts_teaches_what_it_teaches_whole(tmp_path, rule):
    config = dataclasses.replace(PLAIN, rule=rule)
    train(config, tmp_path / "whole", data=small())
    train(dataclasses.replace(config, accumulate=100), tmp_path / "parts", data=small())
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    for name, expected in whole.items():
        torch.testing.assert_close(parts[name], expected, rtol=0, atol=1e-12)


def test_seeds_side_by_side_learn_from_parts_what_each_learns_alone(tmp_path):
    shared = {name: one for name, one in ALL.asdict().items() if name not in ("rule", "seed", *ALONE)}
    config = CompareConfig(**shared, rules=("kp", "reinforce"), seeds=2)
    compare(dataclasses.replace(config, replicas="on"), tmp_path / "together", data=small())
    compare(dataclasses.replace(config, replicas="off"), tmp_path / "alone", data=small())
    for run in sorted((tmp_path / "alone" / "runs").iterdir()):
        together, alone = weights(tmp_path / "together" / "runs" / run.name), weights(run)
        for name, expected in alone.items():
            torch.testing.assert_close(together[name], expected, rtol=0, atol=1e-11)


ALONE = {"clip": 0.5, "ema": 0.5, "decayed": "weights", "best_by": "test", "bias_rate": 3.0, "mirrored": True}


@pytest.mark.parametrize("option", ALONE)
def test_what_looks_at_one_network_is_refused_side_by_side_by_name(option):
    assert option in obstacle(dataclasses.replace(PLAIN, **{option: ALONE[option]}), 2, small())


@pytest.mark.parametrize(
    ("rule", "precision", "tolerance"),
    [("kp", "64-true", 1e-9), ("kp", "bf16-mixed", 1e-6), ("kp-direct", "64-true", 1e-9), ("matched", "64-true", 1e-9)],
)
def test_feedback_comes_near_the_weights_by_kolen_and_pollacks_law_whatever_the_options(
    tmp_path, rule, precision, tolerance
):
    config = dataclasses.replace(ALL, rule=rule, optimizer="SGD", weight_decay=0.3, clip=0.1, precision=precision)
    learner = OneNetwork(config, small()).learner
    before = {name: (s.weight.detach().clone(), s.feedback) for name, s in learner.synapses.items()}
    train(config, tmp_path / "run", data=small())
    after = weights(tmp_path / "run")
    rates = [0.2 * rate(step) for step in range(1, 15)]
    share = torch.tensor([1 - rate * 0.3 for rate in rates], dtype=torch.float64).prod()
    seen = 0
    for name, (weight, feedback) in before.items():
        if feedback is not None and feedback.shape == weight.shape and f"{name}.feedback" in after:
            apart = (weight - feedback.detach()).double()
            found = after[f"{name}.weight"] - after[f"{name}.feedback"]
            torch.testing.assert_close(found.double(), apart * share, rtol=1e-6, atol=tolerance)
            seen += 1
    assert seen


def test_the_learning_rate_grows_and_falls_step_by_step_and_schedules_count_epochs_from_the_first(tmp_path):
    config = dataclasses.replace(
        PLAIN,
        epochs=4,
        warmup_epochs=2,
        cooldown_epochs=1,
        scheduler="CosineAnnealingLR:T_max=4",
        test_every=1,
        learning_rate=1.0,
        optimizer="SGD",
    )
    train(config, tmp_path / "run", data=small())
    lines = RunFolder(tmp_path / "run").metrics.read()
    cosine = [(1 + torch.cos(torch.tensor(torch.pi * epoch / 4)).item()) / 2 for epoch in range(5)]
    triangle = [min(1, step / 14, (29 - step) / 7) for step in range(29)]
    expected = [triangle[line["step"]] * cosine[line["step"] // 7] for line in lines]
    assert [line["learning_rate"] for line in lines] == pytest.approx(expected, abs=1e-6)


def test_a_run_with_all_options_that_stops_and_resumes_ends_bit_identical(tmp_path):
    config = dataclasses.replace(ALL, rule="wm", best_by="test", checkpoint_every=3, test_every=2)
    train(config, tmp_path / "whole", data=small())
    for attempt, limit in enumerate((5, 8, 12)):
        with pytest.raises(BoomError):
            train(config, tmp_path / "cut", data=small(), resume=attempt > 0, watcher=boom_at(limit))
    result = train(config, tmp_path / "cut", data=small(), resume=True)
    lines = [[{**line, **TIMELESS} for line in RunFolder(tmp_path / one).metrics.read()] for one in ("whole", "cut")]
    assert lines[0] == lines[1]
    for name in ("last", "best"):
        whole, cut = (checkpoints.load(tmp_path / one / "checkpoint" / f"{name}.ckpt") for one in ("whole", "cut"))
        assert same(whole["model"], cut["model"])
        assert same(whole["average"]["weights"], cut["average"]["weights"])
        assert whole["step"] == cut["step"]
    errors = {line["step"]: line["test_error"] for line in lines[0] if line["step"]}
    assert result["best"]["test_error"] == min(errors.values()) == errors[result["best"]["step"]]
    assert cut["step"] == result["best"]["step"] == min(errors, key=errors.get)


def test_a_run_is_overwritten_by_one_with_other_options_and_leaves_nothing(tmp_path):
    for options in ({"best_by": "test"}, {"clip": 1.0}, {}):
        train(dataclasses.replace(PLAIN, epochs=1, **options), tmp_path / "run", data=small(), overwrite=True)
        assert (tmp_path / "run" / "checkpoint" / "best.ckpt").exists() == ("best_by" in options)
        assert RunFolder(tmp_path / "run").reopen().keys() & TrainConfig.later().keys() == options.keys()


def test_best_by_validation_needs_a_validation_split(tmp_path):
    with pytest.raises(ValueError, match=r"best_by='validation' needs a validation split.*validation=0.1"):
        train(dataclasses.replace(PLAIN, best_by="validation"), tmp_path / "run", data=small())
    assert not (tmp_path / "run").exists()


def test_the_best_by_validation_is_kept(tmp_path):
    config = dataclasses.replace(PLAIN, epochs=4, learning_rate=1.0, best_by="validation", validation=0.25)
    result = train(config, tmp_path / "run", data=small())
    errors = {
        line["step"]: line["validation_error"] for line in RunFolder(tmp_path / "run").metrics.read() if line["step"]
    }
    assert result["best"]["validation_error"] == min(errors.values())
    assert result["best"]["step"] == checkpoints.load(tmp_path / "run" / "checkpoint" / "best.ckpt")["step"]
    assert errors[result["best"]["step"]] == min(errors.values())


def test_options_at_their_defaults_leave_no_trace(tmp_path):
    result = train(dataclasses.replace(PLAIN, epochs=1), tmp_path / "run", data=small())
    kept = json.loads((tmp_path / "run" / "config.json").read_text())
    assert not kept.keys() & TrainConfig.later().keys()
    assert set(checkpoints.load(tmp_path / "run" / "checkpoint" / "last.ckpt")) == {
        *("step", "seconds", "scheduler", "loss", "model", "optimizer", "learner", "random", "random_cuda")
    }
    assert "best" not in result
    assert not (tmp_path / "run" / "checkpoint" / "best.ckpt").exists()


def test_metrics_say_how_many_images_pass_in_a_second(tmp_path):
    result = train(dataclasses.replace(PLAIN, network="64-20-10", batch=64), tmp_path / "run", data=DIGITS)
    first, *rest = [line["images_per_second"] for line in RunFolder(tmp_path / "run").metrics.read()]
    assert first is None
    # 2 epochs within the run's whole time, and no step quicker than its own work.
    assert all(rate > 2 * len(DIGITS.train) / result["seconds"] / 2 for rate in rest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accumulate": 0}, "accumulate must be at least 1, got 0"),
        ({"clip": 0.0}, "clip must be a positive number, got 0.0"),
        ({"clip": 1.0, "precision": "16-mixed"}, "clip can't be had with precision '16-mixed'.*'bf16-mixed'"),
        ({"warmup_epochs": 3.0}, "warmup_epochs must be from 0 to epochs, 2, got 3.0"),
        ({"cooldown_epochs": -1.0}, "cooldown_epochs must be from 0 to epochs, 2, got -1.0"),
        ({"bias_rate": 0.0}, "bias_rate must be a positive number, got 0.0"),
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and less than 1, got 1.0"),
        (
            {"label_smoothing": 0.1, "loss": "squared-error"},
            "label_smoothing is for loss 'cross-entropy', got it",
        ),
        ({"ema": float("nan")}, "ema must be at least 0 and less than 1, got nan"),
        ({"best_by": "train"}, "best_by must be 'validation', 'test' or None, got 'train'"),
        ({"optimizer": "LocalSGD:momentum=0.9"}, r"LocalSGD moves .*neither clip nor accumulate.*take SGD"),
    ],
)
def test_what_cannot_be_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PLAIN, **change)


def test_an_optimizer_without_decay_spares_nothing(tmp_path):
    config = dataclasses.replace(PLAIN, optimizer="Rprop", weight_decay=None, decayed="weights")
    with pytest.raises(ValueError, match="decayed='weights' needs an optimizer with weight_decay, and Rprop has none"):
        train(config, tmp_path / "run", data=small())

import dataclasses
import io
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from apical import data as images
from apical.cli.compare import table
from apical.comparison import compare
from apical.data import ImageData, Split
from apical.losses import LOSSES, error_rate
from apical.report.comparison import page
from apical.training import (
    CheckpointError,
    CompareConfig,
    Interrupted,
    NonFiniteLossError,
    RunFolder,
    RunFolderError,
    TrainConfig,
    train,
)
from apical.training import checkpoint as checkpoints
from apical.training.one_network import OneNetwork
from processes import BoomError, boom_at, killed_and_resumed, started, wait_for

DIGITS = images.load()
SHORT = TrainConfig(epochs=2, network="64-20-10", rule="kp", checkpoint_every=5)


def small(n=64):
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (n, 1, 4, 4), generator=g, dtype=torch.uint8)
    split = Split(pixels, torch.randint(3, (n,), generator=g))
    return ImageData("small", split, split, 3, ("a", "b", "c"))


def weights(folder):
    return checkpoints.load(Path(folder) / "checkpoint" / "last.ckpt")["model"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# The loop against the equations ---------------------------------------------------------------------------------------


def test_a_run_is_stochastic_gradient_descent_written_out(tmp_path):
    data = small()
    config = TrainConfig(
        network="16-5-3", rule="fa", optimizer="SGD", learning_rate=0.3, epochs=3, batch=10, precision="64-true", seed=4
    )
    seen = []

    def watcher(step, steps, newest):
        seen.append(step)

    train(config, tmp_path / "run", data=data, watcher=watcher)
    assert seen == list(range(1, 22))
    # The same in NumPy, from the run's own initial weights and order of samples.
    learner = OneNetwork(config, data).learner
    model = learner.model
    W1, b1, W2, b2 = (
        p.detach().numpy().copy() for p in (model[1].weight, model[1].bias, model[3].weight, model[3].bias)
    )
    B2 = learner.synapses["3"].feedback.numpy()
    for epoch in range(3):
        generator = torch.Generator().manual_seed((4 + 1) * 1_000_003 + epoch)
        for index in torch.randperm(64, generator=generator).split(10):
            x = data.train.images[index].numpy().reshape(len(index), -1).astype(np.float32).astype(float) / np.float32(
                255
            )
            x = (data.train.images[index].float() / 255).numpy().reshape(len(index), -1).astype(float)
            y = np.eye(3)[data.train.labels[index].numpy()]
            h = np.tanh(x @ W1.T + b1)
            logits = h @ W2.T + b2
            p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
            e = (p - y) / len(index)
            delta = (e @ B2) * (1 - h**2)
            W2, b2 = W2 - 0.3 * e.T @ h, b2 - 0.3 * e.sum(0)
            W1, b1 = W1 - 0.3 * delta.T @ x, b1 - 0.3 * delta.sum(0)
    found = weights(tmp_path / "run")
    # Fabric hands the outputs of a 64-true model back as float32, so errors carry its rounding.
    np.testing.assert_allclose(found["1.weight"].numpy(), W1, atol=1e-7)
    np.testing.assert_allclose(found["3.weight"].numpy(), W2, atol=1e-7)
    np.testing.assert_allclose(found["3.bias"].numpy(), b2, atol=1e-7)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_per_sample_against_numpy(name):
    g = torch.Generator().manual_seed(0)
    outputs = torch.randn(6, 4, generator=g, dtype=torch.float64)
    targets = torch.randint(4, (6,), generator=g)
    z, y = outputs.numpy(), np.eye(4)[targets.numpy()]
    sigma = 1 / (1 + np.exp(-z))
    expected = {
        "cross-entropy": -(y * (z - np.log(np.exp(z).sum(1, keepdims=True)))).sum(1),
        "binary-cross-entropy": -(y * np.log(sigma) + (1 - y) * np.log(1 - sigma)).sum(1),
        "squared-error": 0.5 * ((z - y) ** 2).sum(1),
    }[name]
    np.testing.assert_allclose(LOSSES[name](outputs, targets).numpy(), expected)


def test_error_rate_is_in_percent():
    assert error_rate(torch.eye(4), torch.tensor([0, 1, 2, 0])) == 25


def test_rules_learn_digits(tmp_path):
    errors = {}
    for rule in ("bp", "fa", "dfa", "kp", "usf", "shallow"):
        errors[rule] = train(TrainConfig(rule=rule, align_every=0), tmp_path / rule, data=DIGITS)["test_error"]
    assert all(errors[rule] < 5 for rule in ("bp", "fa", "dfa", "kp", "usf")), errors
    assert errors["shallow"] > max(error for rule, error in errors.items() if rule != "shallow") + 2, errors


def test_noise_while_training_and_none_in_the_test(tmp_path):
    clean = train(SHORT, tmp_path / "clean", data=DIGITS)
    for name in ("input_noise", "activation_noise"):
        noisy = train(dataclasses.replace(SHORT, **{name: 0.5}), tmp_path / name, data=DIGITS)
        assert noisy["test_loss"] != clean["test_loss"]
        first = [RunFolder(tmp_path / run).metrics.read()[0] for run in ("clean", name)]
        assert first[0]["test_loss"] == first[1]["test_loss"]


@pytest.mark.parametrize("rule", ["bp", "kp", "dfa", "wm"])
def test_thinned_networks_learn_and_stay_thin(tmp_path, rule):
    config = TrainConfig(rule=rule, connectivity=0.5, whole_output=True, epochs=10, align_every=0)
    assert train(config, tmp_path / "run", data=DIGITS)["test_error"] < 12
    state = weights(tmp_path / "run")
    masks = {name: mask for name, mask in state.items() if name.endswith("_mask")}
    layers = sorted({name.partition(".")[0] for name in state})
    whole = layers.pop()
    assert {name for name in masks if "weight" in name} == {f"{layer}.weight_mask" for layer in layers}
    assert not any(name.startswith(f"{whole}.") for name in masks)
    for name, mask in masks.items():
        assert 0.4 < float(mask.mean()) < 0.6
        assert not state[name.removesuffix("_mask")][mask == 0].any()


def test_every_rule_of_one_seed_has_the_same_forward_connections(tmp_path):
    config = CompareConfig(rules=("bp", "fa", "dfa"), seeds=1, epochs=1, network="64-20-10", connectivity=0.3)
    compare(config, tmp_path / "all", data=DIGITS)
    states = [weights(tmp_path / "all" / "runs" / f"{rule}-0") for rule in config.rules]
    for name in (name for name in states[0] if name.endswith("weight_mask")):
        assert all(torch.equal(state[name], states[0][name]) for state in states)
        assert float(states[0][name].mean()) == pytest.approx(0.3, abs=0.1)


def test_schedulers_and_their_state(tmp_path):
    config = dataclasses.replace(SHORT, epochs=3, scheduler="MultiStepLR:milestones=[1,2],gamma=0.1")
    train(config, tmp_path / "run", data=DIGITS)
    lines = RunFolder(tmp_path / "run").metrics.read()
    rates = {round(line["epoch"]): line["learning_rate"] for line in lines}
    assert [rates[epoch] for epoch in (0, 1, 2, 3)] == pytest.approx([0.05, 0.005, 0.0005, 0.0005])


@pytest.mark.parametrize("rule", ["dfa", "wm", "np", "sg"])
@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precisions(tmp_path, precision, rule):
    result = train(dataclasses.replace(SHORT, precision=precision, rule=rule), tmp_path / "run", data=DIGITS)
    assert result["test_error"] < 60
    expected = torch.float64 if precision == "64-true" else torch.float32
    assert weights(tmp_path / "run")["1.weight"].dtype == expected


def test_the_run_folder_tells_the_whole_story(tmp_path):
    config = dataclasses.replace(SHORT, test_every=10, align_every=20)
    result = train(config, tmp_path / "run", data=DIGITS)
    run = RunFolder(tmp_path / "run")
    assert TrainConfig(**json.loads((tmp_path / "run" / "config.json").read_text())) == config
    lines = run.metrics.read()
    assert [line["step"] for line in lines] == [0, 10, 20, 30, 40, 46]
    assert ["alignment" in line for line in lines] == [True, False, True, False, True, True]
    assert lines[-1]["test_error"] == result["test_error"] == run.result["test_error"]
    assert lines[0]["train_loss"] is None
    assert lines[-1]["alignment"]["3"]["matrix_angle"] < lines[0]["alignment"]["3"]["matrix_angle"]
    assert len(result["predictions"]) == len(DIGITS.test)


# Interruption ---------------------------------------------------------------------------------------------------------


PHASES = ("wm", "np", "np:solver=ridge,warmup=10", "np-direct", "sg-direct:solver=ridge", "reinforce")


@pytest.mark.parametrize(
    ("rule", "connectivity"),
    [
        *((rule, 1.0) for rule in ("bp", "fa", "dfa", "kp", "brsf", "shallow", *PHASES)),
        *((rule, 0.5) for rule in ("kp", "brsf", "wm")),
    ],
)
def test_a_run_that_stops_and_resumes_ends_bit_identical(tmp_path, rule, connectivity):
    config = dataclasses.replace(
        SHORT,
        rule=rule,
        optimizer="Adam",
        learning_rate=0.003,
        scheduler="StepLR:step_size=1",
        connectivity=connectivity,
    )
    train(config, tmp_path / "whole", data=DIGITS)

    for attempt, limit in enumerate((3, 14, 23, 31, 45)):
        with pytest.raises(BoomError):
            train(config, tmp_path / "cut", data=DIGITS, resume=attempt > 0, watcher=boom_at(limit))
    result = train(config, tmp_path / "cut", data=DIGITS, resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    whole, cut = (RunFolder(tmp_path / name).metrics.read() for name in ("whole", "cut"))
    for a, b in zip(whole, cut, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}
    assert result["test_error"] == RunFolder(tmp_path / "whole").result["test_error"]


def test_a_run_whose_last_measurement_was_lost_measures_again(tmp_path):
    whole = train(SHORT, tmp_path / "run", data=DIGITS)
    metrics = tmp_path / "run" / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(lines[:-1]))
    (tmp_path / "run" / "result.json").unlink()
    again = train(SHORT, tmp_path / "run", data=DIGITS, resume=True)
    assert (again["test_error"], again["test_loss"]) == (whole["test_error"], whole["test_loss"])
    assert len(metrics.read_text().splitlines()) == len(lines)


def start(folder, *more):
    rule = ["--rule", "kp", "--network", "64-30-10", "--epochs", "12", "--checkpoint-every", "7"]
    return started("train", *rule, "--folder", str(folder), *more)


def test_ctrl_c_leaves_a_run_that_can_be_resumed(tmp_path):
    folder = tmp_path / "run"
    process = start(folder, "--epochs", "2000", "--align-every", "0")
    wait_for(lambda: (folder / "checkpoint" / "last.ckpt").exists(), process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "stopped at step" in errors
    assert "can be resumed" in errors
    assert RunFolder(folder).result is None
    assert checkpoints.load(folder / "checkpoint" / "last.ckpt")["step"] > 0


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_ends_bit_identical(tmp_path, kills):
    config = TrainConfig(rule="kp", network="64-30-10", epochs=200, checkpoint_every=7, align_every=500)
    train(config, tmp_path / "whole", data=DIGITS)
    folder = tmp_path / "run"
    killed_and_resumed(kills, folder, lambda: start(folder, "--epochs", "200", "--align-every", "500"), "train")
    assert same(weights(tmp_path / "whole"), weights(folder))


def test_a_finished_run_is_not_run_again(tmp_path):
    first = train(SHORT, tmp_path / "run", data=DIGITS)
    before = (tmp_path / "run" / "result.json").stat().st_mtime_ns
    assert train(SHORT, tmp_path / "run", data=DIGITS, resume=True) == first
    assert (tmp_path / "run" / "result.json").stat().st_mtime_ns == before


# Bad input ------------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_with_a_message(tmp_path):
    config = TrainConfig(network="64-20-10", learning_rate=1e30, optimizer="SGD", rule="bp", activation="relu")
    with pytest.raises(NonFiniteLossError, match=r"loss became (nan|inf) at step \d+ \(epoch 1\) of rule 'bp'.*1e\+30"):
        train(config, tmp_path / "run", data=DIGITS)
    assert RunFolder(tmp_path / "run").result is None


def test_a_folder_with_a_run_is_left_alone(tmp_path):
    train(SHORT, tmp_path / "run", data=DIGITS)
    before = sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "run").rglob("*"))
    with pytest.raises(RunFolderError, match=r"holds a run already; resume it"):
        train(SHORT, tmp_path / "run", data=DIGITS)
    with pytest.raises(RunFolderError, match=r"made with other settings .*epochs: 2 there, 3 asked"):
        train(dataclasses.replace(SHORT, epochs=3), tmp_path / "run", data=DIGITS, resume=True)
    assert before == sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "run").rglob("*"))
    with pytest.raises(RunFolderError, match=r"holds no run to resume"):
        train(SHORT, tmp_path / "other", data=DIGITS, resume=True)
    assert not (tmp_path / "other").exists()


def test_what_can_not_be_built_writes_nothing(tmp_path):
    for change in ({"network": "63-20-10"}, {"network": "64-20-10", "activation": "than"}):
        with pytest.raises(ValueError, match=r"64|tanh"):
            train(dataclasses.replace(SHORT, **change), tmp_path / "run", data=DIGITS)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "fq"}, "did you mean 'fa'"),
        ({"rule": "urfb:epsilon=-1"}, "epsilon must be"),
        ({"rule": "urfb:epsilom=1"}, "no hyperparameter 'epsilom'; it has .*epsilon"),
        ({"rule": "urfb:0.5"}, "write them as name:key=value"),
        ({"optimizer": "Adan"}, "did you mean 'Adam'"),
        ({"optimizer": "SGD:momentun=0.9"}, "SGD has no option 'momentun'; it has .*momentum"),
        ({"scheduler": "StepLr2"}, "StepLR"),
        ({"scheduler": "StepLR"}, "StepLR needs step_size; write StepLR:step_size=..."),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch": -3}, "batch must be at least 1, got -3"),
        ({"learning_rate": 0.0}, "learning_rate must be a positive number, got 0"),
        ({"weight_decay": -1e-3}, "weight_decay must be at least 0"),
        ({"connectivity": 0.0}, "connectivity must be the fraction of connections that exist, above 0 .*got 0"),
        ({"connectivity": 50.0}, "connectivity must be .*at most 1, got 50"),
        ({"align_every": -1}, "align_every must be at least 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"loss": "hinge"}, "loss must be 'cross-entropy', .* or 'squared-error', got 'hinge'"),
        ({"precision": "half"}, "precision must be '32-true', .* or '16-mixed', got 'half'"),
        ({"seed": [0, 1], "epochs": "3"}, r"epochs must be a whole number, got '3'; seed must be .*got \[0, 1\]"),
    ],
)
def test_configs_are_checked_when_they_are_made(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SHORT, **change)


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path):
    path = tmp_path / "last.ckpt"
    checkpoints.save(path, {"step": 3, "model": {"w": torch.ones(2)}})
    good = path.read_bytes()
    assert checkpoints.load(path)["step"] == 3
    for cut in (0, 10, 60, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:cut])
        with pytest.raises(CheckpointError, match=r"last\.ckpt.*(no checkpoint|damaged).*delete it"):
            checkpoints.load(path)
    for position in (25, 100, len(good) // 2, len(good) - 5):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        with pytest.raises(CheckpointError, match=r"last\.ckpt"):
            checkpoints.load(path)
    torch.save({"step": 3}, path)
    with pytest.raises(CheckpointError, match="no checkpoint of apical's"):
        checkpoints.load(path)
    with pytest.raises(CheckpointError, match="can't read"):
        checkpoints.load(tmp_path / "none.ckpt")


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil-was-here"),))


def test_no_code_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "last.ckpt"
    checkpoints.save(path, {"step": Evil()})
    with pytest.raises(CheckpointError, match="other than tensors and numbers"):
        checkpoints.load(path)
    assert not Path("evil-was-here").exists()


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    with pytest.raises(BoomError):
        train(SHORT, tmp_path / "run", data=DIGITS, watcher=boom_at(6))
    other = dataclasses.replace(SHORT, network="64-21-10")
    train(other, tmp_path / "other", data=DIGITS)
    (tmp_path / "run/checkpoint/last.ckpt").write_bytes((tmp_path / "other/checkpoint/last.ckpt").read_bytes())
    with pytest.raises(CheckpointError, match="does not fit this run"):
        train(SHORT, tmp_path / "run", data=DIGITS, resume=True)


def test_a_line_of_metrics_that_a_kill_cut_short_is_dropped(tmp_path):
    run = RunFolder(tmp_path)
    run.metrics.append({"step": 1})
    run.metrics.append({"step": 2})
    with run.metrics.path.open("a") as file:
        file.write('{"step": 3, "te')
    assert run.metrics.read() == [{"step": 1}, {"step": 2}]
    run.metrics.cut(1)
    assert run.metrics.path.read_text() == '{"step": 1}\n'


@pytest.mark.parametrize("damage", ["{", "[]", '{"epoch": 1}'])
def test_a_damaged_line_of_metrics_is_told_with_its_place(tmp_path, damage):
    run = RunFolder(tmp_path)
    run.metrics.append({"step": 1})
    with run.metrics.path.open("a") as file:
        file.write(f"{damage}\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: .*; restore it, or delete .* to start anew"):
        run.metrics.read()


def test_ctrl_c_outside_the_main_thread_is_left_to_the_caller(tmp_path):
    import threading

    results = []
    thread = threading.Thread(target=lambda: results.append(train(SHORT, tmp_path / "run", data=DIGITS)))
    thread.start()
    thread.join()
    assert results[0]["steps"] == 46


# Comparisons ----------------------------------------------------------------------------------------------------------

PAIR = CompareConfig(rules=("bp", "fa", "usf"), seeds=2, epochs=1, network="64-20-10")


def test_a_comparison_and_its_table(tmp_path):
    found = compare(
        PAIR, tmp_path / "all", data=DIGITS, time_steps=lambda config, data: {"bp": 1.0, "fa": 1.1, "usf": 1.2}
    )
    assert json.loads((tmp_path / "all" / "comparison.json").read_text()) == found
    errors = [
        RunFolder(tmp_path / "all" / run["folder"]).result["test_error"] for run in found["runs"] if run["rule"] == "fa"
    ]
    row = next(row for row in found["table"] if row["rule"] == "fa")
    assert row["test_error_mean"] == pytest.approx(np.mean(errors))
    assert row["test_error_sem"] == pytest.approx(np.std(errors, ddof=1) / np.sqrt(2))
    assert (row["transported"], row["step_ratio"]) == ("nothing", 1.1)
    assert [row["transported"] for row in found["table"]] == ["weights", "nothing", "signs"]
    assert found["table"][0]["angles"] == {"1": 0.0, "3": 0.0}
    samples = found["samples"]
    assert len(samples["labels"]) == len(samples["predictions"]["fa"]) == len(samples["images"]) == 24
    assert np.shape(samples["images"]) == (24, 8, 8)


def test_a_network_that_can_not_be_audited_is_compared(tmp_path):
    nets = tmp_path / "nets.py"
    nets.write_text(
        "from torch import nn\n"
        "def dead():\n"
        "    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))\n"
        "    nn.init.constant_(net[1].bias, -1e3)\n"
        "    return net\n"
    )
    config = dataclasses.replace(PAIR, rules=("bp",), seeds=1, network=f"{nets}:dead")
    found = compare(config, tmp_path / "all", data=DIGITS)
    assert (found["table"][0]["transported"], found["table"][0]["runs"]) == ("", 1)
    shown = io.StringIO()
    Console(file=shown, width=120).print(table(found))
    assert "not audited" in shown.getvalue()
    assert "not audited" in page.write(tmp_path / "all").read_text()


def test_rules_of_one_seed_start_from_the_same_weights(tmp_path):
    compare(PAIR, tmp_path / "all", data=DIGITS)
    first = {}
    for rule in PAIR.rules:
        for seed in (0, 1):
            line = RunFolder(tmp_path / "all" / "runs" / f"{rule}-{seed}").metrics.read()[0]
            first[rule, seed] = line["test_loss"]
    assert first["bp", 0] == first["fa", 0] == first["usf", 0] != first["bp", 1]


def test_a_comparison_that_was_stopped_goes_on(tmp_path):
    done = []

    def announce(rule, seeds):
        done.append((rule, seeds))
        if len(done) == 2:
            raise Interrupted("planted")
        return lambda *_: None

    with pytest.raises(Interrupted):
        compare(PAIR, tmp_path / "all", data=DIGITS, announce=announce)
    assert not (tmp_path / "all" / "comparison.json").exists()
    found = compare(PAIR, tmp_path / "all", data=DIGITS, resume=True)
    whole = compare(PAIR, tmp_path / "whole", data=DIGITS)
    assert found["table"] == whole["table"]


def test_a_failed_run_is_told_and_the_others_go_on(tmp_path):
    config = CompareConfig(
        rules=("bp", "shallow"), seeds=1, epochs=1, network="64-20-10", learning_rate=1e25, activation="relu"
    )
    found = compare(config, tmp_path / "all", data=DIGITS)
    assert "loss became" in found["runs"][0]["failed"]
    assert found["table"][0]["test_error_mean"] is None


UNMAKEABLE = [
    ({"optimizer": "SGD:momentum=-1"}, "optimizer 'SGD:momentum=-1'.*Invalid momentum value: -1"),
    ({"optimizer": "Adam:betas=0.9"}, r"optimizer 'Adam:betas=0.9' can't be made: .*; by default betas=\(0.9, 0.999\)"),
    ({"optimizer": "Muon"}, "optimizer 'Muon'.*2D"),
    ({"scheduler": "MultiStepLR:milestones=3"}, "scheduler 'MultiStepLR:milestones=3'"),
    ({"scheduler": "StepLR:step_size=0"}, "scheduler 'StepLR:step_size=0' can't be made"),
    ({"scheduler": "OneCycleLR:max_lr=0.1,total_steps=1", "epochs": 3}, "scheduler 'OneCycleLR.*total steps is 1"),
    ({"accelerator": "cuda"}, "accelerator 'cuda' can't be had here .*give 'auto' or 'cpu'"),
]


@pytest.mark.parametrize(
    ("change", "message"),
    [*UNMAKEABLE, ({"rules": ("bp", "np:solver=ridge"), "connectivity": 0.5}, "use solver='sgd'")],
)
def test_a_comparison_of_which_something_can_not_be_made_writes_nothing(tmp_path, monkeypatch, change, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=message):
        compare(dataclasses.replace(PAIR, **change), tmp_path / "all", data=DIGITS)
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize(("change", "message"), UNMAKEABLE)
def test_a_run_of_which_something_can_not_be_made_writes_nothing(tmp_path, monkeypatch, change, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=message):
        train(dataclasses.replace(SHORT, **change), tmp_path / "run", data=DIGITS)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first_seed": -1}, "first_seed must be at least 0, got -1"),
        ({"rules": ()}, "rules is empty"),
        ({"rules": "fa"}, "rules must be a list, each of it a name, got 'fa'"),
        ({"rules": ("fa", "fa")}, "fa more than once"),
        ({"seeds": 0}, "seeds must be"),
    ],
)
def test_comparisons_are_checked_when_they_are_made(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PAIR, **change)

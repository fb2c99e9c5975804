"""A run: what it learns, measures and leaves."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from apical.data import DataError, ImageData, Split, held_out
from apical.training import CompareConfig, NonFiniteLossError, RunFolder, TrainConfig, compare, train
from apical.training.networks import OneNetwork
from training.runs import DIGITS, SHORT, small, weights


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
    np.testing.assert_allclose(found["1.weight"].numpy(), W1, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found["3.weight"].numpy(), W2, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found["3.bias"].numpy(), b2, rtol=0, atol=1e-12)


def test_rules_learn_digits(tmp_path):
    errors = {}
    for rule in ("bp", "fa", "dfa", "kp", "usf", "shallow"):
        config = TrainConfig(rule=rule, align_every=0, test_every=1000, checkpoint_every=1000)
        errors[rule] = train(config, tmp_path / rule, data=DIGITS)["test_error"]
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


def test_a_loss_that_is_not_finite_stops_with_a_message(tmp_path):
    config = TrainConfig(network="64-20-10", learning_rate=1e30, optimizer="SGD", rule="bp", activation="relu")
    with pytest.raises(NonFiniteLossError, match=r"loss became (nan|inf) at step \d+ \(epoch 1\) of rule 'bp'.*1e\+30"):
        train(config, tmp_path / "run", data=DIGITS)
    assert RunFolder(tmp_path / "run").result is None


def test_ctrl_c_outside_the_main_thread_is_left_to_the_caller(tmp_path):
    import threading

    results = []
    thread = threading.Thread(target=lambda: results.append(train(SHORT, tmp_path / "run", data=DIGITS)))
    thread.start()
    thread.join()
    assert results[0]["steps"] == 46


def test_a_run_says_which_split_each_number_is_of(tmp_path):
    config = dataclasses.replace(SHORT, validation=0.25)
    result = train(config, tmp_path / "run", data=DIGITS)
    lines = RunFolder(tmp_path / "run").metrics.read()
    assert all("validation_error" in line for line in lines)
    assert result["validation_error"] == lines[-1]["validation_error"]
    assert result["splits"]["validation"] == "360 of 1,442 images of split 'train', held out by seed 0"
    assert result["steps"] == 2 * -(-1082 // 64)
    # What is held out beforehand is the same run.
    again = train(SHORT, tmp_path / "given", data=held_out(DIGITS, 0.25))
    assert again["predictions"] == result["predictions"]
    assert train(config, tmp_path / "run", data=DIGITS, resume=True) == result


def test_without_one_a_config_is_what_it_was(tmp_path):
    train(SHORT, tmp_path / "run", data=DIGITS)
    found = json.loads((tmp_path / "run" / "config.json").read_text())
    assert not found.keys() & {"validation", "validation_seed", "test_split"}
    assert "splits" not in RunFolder(tmp_path / "run").result


def test_a_split_that_given_data_lacks_is_asked_for(tmp_path):
    with pytest.raises(DataError, match=r"validation='val'.*small.*validation=0\.1"):
        train(TrainConfig(validation="val"), tmp_path / "run", data=small())


@pytest.mark.parametrize("replicas", ["on", "off"])
def test_comparisons_hold_one_split_out_for_all(tmp_path, replicas):
    config = CompareConfig(
        rules=("bp", "fa"), seeds=2, epochs=1, network="16-5-3", validation=0.25, replicas=replicas, align_every=0
    )
    found = compare(config, tmp_path / "all", data=small())
    assert found["data"]["validation"] == 16
    assert set(found["data"]["splits"]) == {"test", "validation"}
    assert all(0 <= row["validation_error_mean"] <= 100 for row in found["table"])


def test_many_classes_have_top_5_errors(tmp_path):
    g = torch.Generator().manual_seed(0)
    split = Split(torch.randint(256, (200, 1, 4, 4), generator=g, dtype=torch.uint8), torch.arange(200) % 100)
    data = ImageData("hundred", split, split, 100, tuple(map(str, range(100))))
    result = train(TrainConfig(network="16-100", epochs=1, align_every=0), tmp_path / "run", data=data)
    assert result["test_top5_error"] < result["test_error"]

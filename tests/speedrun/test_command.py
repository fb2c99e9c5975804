"""`apical speedrun`: a comparison with a recipe, whose figures come from its runs alone."""

import dataclasses
import json
import shutil
from functools import partial

import pytest
import torch

from apical import benchmark
from apical.cli.command_line import main
from apical.comparison.compare import compare
from apical.comparison.speedrun import SpeedrunConfig, figures, page, seconds_of
from apical.data import ImageData, Split
from apical.rules import rules
from apical.training import RunFolder
from apical.training import checkpoint as checkpoints
from processes import BoomError, boom_at
from training.runs import same


def images(n=48):
    g = torch.Generator().manual_seed(1)
    split = Split(torch.randint(256, (n, 3, 32, 32), generator=g, dtype=torch.uint8), torch.arange(n) % 10)
    return ImageData("some", split, split, 10, tuple(map(str, range(10))))


def tiny(**options):
    return SpeedrunConfig(
        **{"rules": ("bp", "kp"), "seeds": 1, "epochs": 2, "batch": 16, "network": NETWORK, **options}
    ).comparison()


NETWORK = f"{__file__}:narrow"


def narrow():
    from apical.networks import speedrun

    return speedrun(widths=(4, 4, 4))


def test_the_rate_grows_to_its_peak_and_falls_to_nought():
    config = SpeedrunConfig(epochs=10).comparison()
    assert (config.warmup_epochs, config.cooldown_epochs) == pytest.approx((2.3, 7.7))
    assert config.rules[:2] == ("bp", "kp")
    assert ("rank" in rules()["kp"].hyperparameters) == any("rank" in rule for rule in config.rules)


def test_a_run_that_stops_and_resumes_ends_bit_identical(tmp_path):
    config = dataclasses.replace(tiny(rules=("kp",)), checkpoint_every=2)
    compare(config, tmp_path / "whole", data=images())
    with pytest.raises(BoomError):
        compare(config, tmp_path / "cut", data=images(), announce=lambda *_: boom_at(5))
    compare(config, tmp_path / "cut", data=images(), resume=True)
    runs = [RunFolder(tmp_path / one / "runs" / "kp-0") for one in ("whole", "cut")]
    whole, cut = (run.restore() for run in runs)
    assert same(whole["model"], cut["model"])
    assert same(whole["average"]["weights"], cut["average"]["weights"])
    assert runs[0].result["test_loss"] == runs[1].result["test_loss"]


def test_kolen_pollack_moves_and_decays_feedback_as_weights(tmp_path):
    compare(tiny(rules=("kp",), precision="32-true", epochs=1), tmp_path / "one", data=images())
    state = checkpoints.load(tmp_path / "one" / "runs" / "kp-0" / "checkpoint" / "last.ckpt")
    groups = state["optimizer"]["param_groups"]
    assert [(one["lr"], one["weight_decay"]) for one in groups] == [(1.5, 1.3e-3), (96.0, 0.0)]
    assert [len(one["params"]) for one in groups] == [14 + 1, 2 * 6 + 1]  # W and B, and those of the first layer


def test_figures_are_those_of_the_runs(tmp_path):
    comparison = compare(tiny(seeds=2), tmp_path / "one", data=images(), command="apical speedrun")
    found = figures(comparison, tmp_path / "one")
    for row in found["rows"]:
        runs = [RunFolder(tmp_path / "one" / "runs" / f"{row['rule']}-{seed}") for seed in range(2)]
        accuracy = torch.tensor([100 - run.result["test_error"] for run in runs], dtype=torch.float64)
        assert row["accuracy_mean"] == pytest.approx(accuracy.mean().item())
        assert row["accuracy_sem"] == pytest.approx(accuracy.std().item() / 2**0.5)
        speeds = [[48 / line["images_per_second"] for line in run.metrics.read()[1:]] for run in runs]
        assert row["seconds_mean"] == pytest.approx(sum(map(sum, speeds)) / 2)
        assert seconds_of(runs[0], 48) < runs[0].result["seconds"]
        assert row["images_per_second"] == pytest.approx(2 * 48 / row["seconds_mean"])
    bp, kp = found["rows"]
    assert (bp["ratio"], kp["ratio"]) == pytest.approx((1.0, kp["seconds_mean"] / bp["seconds_mean"]))
    assert kp["transported"] == "normalization scale"
    text = page(json.loads(json.dumps(found)))
    assert f"| kp | {kp['accuracy_mean']:.2f} ± {kp['accuracy_sem']:.2f} | 2 |" in text
    assert "which no rule reached" in text
    assert "apical speedrun\n```" in text


def test_the_command_runs_in_seconds_and_goes_on_from_its_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(benchmark, "step_ratios", partial(benchmark.step_ratios, seconds=0.1))
    monkeypatch.setenv("APICAL_CACHE", str(tmp_path / "cache"))
    options = ["--data", _folder(tmp_path / "data"), "--images", "20", "--epochs", "1", "--seeds", "1", "--batch", "10"]
    options += ["--network", NETWORK, "--rules", "bp", "usf"]
    main(["speedrun", *options, "--folder", "one", "--no-time-steps"])
    assert "accuracy" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "one" / "runs" / "usf-0")
    main(["speedrun", "--resume", "one", "--json", "found.json", "--page", "found.md"])
    found = json.loads((tmp_path / "found.json").read_text())
    assert [row["rule"] for row in found["rows"]] == ["bp", "usf"]
    assert all(row["step_ratio"] > 0 for row in found["rows"])
    assert (tmp_path / "found.md").read_text() == page(found)
    with pytest.raises(SystemExit):
        main(["speedrun", "--resume", "one", "--epochs", "3"])
    assert "with --epochs 1;" in " ".join(capsys.readouterr().err.split())


def _folder(home):
    """Images as folders of classes."""
    from PIL import Image

    data = images(40)
    for role in ("train", "test"):
        for number, (pixels, label) in enumerate(zip(data.train.images, data.train.labels.tolist(), strict=True)):
            place = home / role / str(label)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(place / f"{number}.png")
    return str(home)

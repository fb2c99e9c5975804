"""Runs of two processes: shares of odd size, shares of nothing, and noise after a stop."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch

from apical.data import ImageData, Split
from apical.data.text.windows import Windows
from apical.training import RunFolder, TrainConfig, train
from processes import BoomError, as_torchrun_starts, boom_at, on_two_ranks
from training.runs import same, weights

CONFIG = TrainConfig(
    network="16-6-5-3",
    optimizer="SGD:momentum=0.9",
    learning_rate=0.1,
    epochs=2,
    precision="64-true",
    accelerator="cpu",
)
SIZES = {7: 40, 8: 25}
"""Batch -> samples: shares of 4 and 3 with a last batch of 3 and 2; and a last batch of one, of which the other has nothing."""
RULES = ("fa", "kp", "dfa", "sg")
OPTIONS = dataclasses.replace(
    CONFIG,
    batch=8,
    accumulate=3,
    clip=0.3,
    decayed="weights",
    warmup_epochs=0.5,
    label_smoothing=0.1,
    ema=0.5,
    best_by="test",
)
"""Shares of 4 in 3 parts, and a last batch of one, of which the other process has nothing."""
TEXT = dataclasses.replace(CONFIG, rule="kp", network="gpt-8x1", window=6, batch=8)
TAUGHT = ("kp", "reinforce", "dfa")
NOISY = dataclasses.replace(CONFIG, rule="np", input_noise=0.3, activation_noise=0.1, batch=8, checkpoint_every=1)


def samples(n: int) -> ImageData:
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (n, 1, 4, 4), generator=g, dtype=torch.uint8)
    split = Split(pixels, torch.randint(3, (n,), generator=g))
    return ImageData("some", split, split, 3, ("a", "b", "c"))


def text() -> ImageData:
    parts = [torch.randint(256, (n,), generator=torch.Generator().manual_seed(n)).byte() for n in (25 * 6 + 1, 20)]
    train, test = (Windows(part, 6) for part in parts)
    return ImageData("text:some", train, test, 256, tuple(map(str, range(256))))


def named(rule: str, batch: int) -> TrainConfig:
    return dataclasses.replace(CONFIG, rule=rule, batch=batch)


def runs(rank: int, folder: str) -> dict[str, torch.Tensor]:
    as_torchrun_starts(rank, int(os.environ["MASTER_PORT"]))
    torch.set_num_threads(1)
    for batch, n in SIZES.items():
        for rule in RULES:
            train(named(rule, batch), Path(folder, f"{rule}-{batch}"), data=samples(n))
    for rule in TAUGHT:
        train(dataclasses.replace(OPTIONS, rule=rule), Path(folder, f"options-{rule}"), data=samples(25))
    train(TEXT, Path(folder, "text"), data=text())
    train(NOISY, Path(folder, "whole"), data=samples(25))
    for again, limit in enumerate((2, 5)):
        try:
            train(NOISY, Path(folder, "cut"), data=samples(25), resume=bool(again), watcher=boom_at(limit))
        except BoomError:
            torch.distributed.barrier()
    train(NOISY, Path(folder, "cut"), data=samples(25), resume=True)
    return {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("ranks")
    on_two_ranks(runs, found, str(found))
    return found


@pytest.mark.parametrize("batch", SIZES)
@pytest.mark.parametrize("rule", RULES)
def test_two_processes_learn_what_one_does_however_a_batch_is_shared(rule, batch, folder, tmp_path):
    train(named(rule, batch), tmp_path / "one", data=samples(SIZES[batch]))
    mine, its = weights(folder / f"{rule}-{batch}"), weights(tmp_path / "one")
    assert mine.keys() == its.keys()
    for name, expected in its.items():
        torch.testing.assert_close(mine[name], expected, rtol=1e-6, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("rule", [rule for rule in TAUGHT if rule != "reinforce"])
def test_two_processes_learn_by_all_options_what_one_does(rule, folder, tmp_path):
    result = train(dataclasses.replace(OPTIONS, rule=rule), tmp_path / "one", data=samples(25))
    mine, its = weights(folder / f"options-{rule}"), weights(tmp_path / "one")
    for name, expected in its.items():
        torch.testing.assert_close(mine[name], expected, rtol=1e-6, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")
    found = RunFolder(folder / f"options-{rule}").result
    assert found["test_loss"] == pytest.approx(result["test_loss"], rel=1e-5)
    assert found["best"] == result["best"]


def test_two_processes_that_stop_and_resume_draw_the_noise_they_would_have_drawn(folder):
    assert same(weights(folder / "whole"), weights(folder / "cut"))


def test_two_processes_learn_from_windows_of_a_text_what_one_does(folder, tmp_path):
    train(TEXT, tmp_path / "one", data=text())
    mine, its = weights(folder / "text"), weights(tmp_path / "one")
    torch.testing.assert_close(mine, its, rtol=1e-6, atol=1e-7)
    # Shares of single bytes of windows would give another loss.
    lines = [RunFolder(place).metrics.read() for place in (folder / "text", tmp_path / "one")]
    assert [one["test_loss"] for one in lines[0]] == pytest.approx([one["test_loss"] for one in lines[1]])

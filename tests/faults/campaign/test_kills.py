"""SIGKILL at any moment: what is resumed ends bit for bit as what was never stopped, and leaves no orphans."""

import itertools
import time

import numpy as np
import pytest

from apical.files import remains
from faults.campaign.children import apical_in
from faults.campaign.folders import differences, held

pytestmark = pytest.mark.faults

RULES = ("fa", "kp", "wm", "np", "np-direct", "sg", "reinforce", "usf", "dfa", "brsf")
OPTIMIZERS = (
    "SGD:momentum=0.9", "SGD:momentum=0.9,nesterov=True", "Adam", "AdamW:amsgrad=True", "RMSprop", "ASGD",
)  # fmt: skip
SCHEDULES = (None, "StepLR:step_size=1", "CosineAnnealingLR:T_max=3", "ExponentialLR:gamma=0.9")
EVERY = (None, 1, 7)
TRAINED, AT_A_TIME = 40, 5


def options(number):
    """The words of one of the runs; every few numbers each rule meets another optimizer, schedule and interval."""
    rule, schedule = RULES[number % len(RULES)], SCHEDULES[number % len(SCHEDULES)]
    words = ["train", "--rule", rule, "--network", "64-20-10", "--epochs", 3, "--align-every", 30, "--seed", number]
    words += ["--optimizer", OPTIMIZERS[number % len(OPTIMIZERS)], "--learning-rate", 0.003, "--batch", 60]
    words += ["--scheduler", schedule] if schedule else []
    every = EVERY[number % len(EVERY)]
    words += ["--checkpoint-every", every] if every else []
    words += ["--input-noise", 0.2] if number % 4 == 1 else []
    return words + (["--connectivity", 0.5] if number % 5 == 2 and not rule.startswith("np") else [])


def survive(home, words, name, kills):
    """Run to the end; then again with kills at random moments, each followed by a resume. How many kills hit, and differences."""
    whole = apical_in(home, *words, "--folder", "whole", out=home / "o").wait()
    assert whole.code == 0, whole.errors
    took, hit = time.monotonic() - whole.started, 0
    chance = np.random.default_rng(name)
    resumed = False
    for kill in itertools.count():
        again = [words[0], "--resume", "cut"] if resumed else [*words, "--folder", "cut"]
        child = apical_in(home, *again, out=home / f"o{kill}")
        if hit < kills and kill < 5 * kills:
            time.sleep(chance.uniform(0.02, took))
            child.send(9)
        child.wait()
        resumed = (home / "cut" / "config.json").exists()
        if child.code == 0:
            break
        assert child.code == -9, (child.name, child.errors)
        hit += 1
    left = [one for folder in (home / "cut", *(home / "cut").rglob("*")) if folder.is_dir() for one in remains(folder)]
    return hit, differences(held(home / "whole"), held(home / "cut")) + left


@pytest.mark.parametrize("first", range(0, TRAINED, AT_A_TIME))
def test_train(tmp_path, figure, first):
    kills, wrong = 0, []
    for number in range(first, first + AT_A_TIME):
        (tmp_path / str(number)).mkdir()
        hit, other = survive(tmp_path / str(number), options(number), number, 1 + number % 3)
        kills += hit
        wrong += [(options(number), other)] if other else []
    right = f"{AT_A_TIME - len(wrong)} of {AT_A_TIME} runs, {kills} kills"
    figure(f"SIGKILL train {first} to {first + AT_A_TIME - 1}, resumed bit-identical", right)
    assert not wrong


COMPARED = [
    ("on", "--rules", "np", "dfa", "shallow", "usf", "--optimizer", "Adam"),
    ("off", "--rules", "kp", "wm"),
    ("auto", "--rules", "fa", "brsf"),
]


@pytest.mark.parametrize("replicas", COMPARED, ids=lambda one: one[0])
def test_compare(tmp_path, figure, replicas):
    words = [
        "compare",
        "--network",
        "64-20-10",
        "--epochs",
        2,
        "--seeds",
        2,
        "--no-time-steps",
        "--checkpoint-every",
        5,
    ]
    words += ["--replicas", *replicas]
    kills, wrong, tries = 0, [], 3
    for number in range(tries):
        (tmp_path / str(number)).mkdir()
        hit, other = survive(tmp_path / str(number), words, number, 2)
        kills += hit
        wrong += [(number, other)] if other else []
    figure(f"SIGKILL compare --replicas {replicas[0]}", f"{tries - len(wrong)} of {tries}, {kills} kills")
    assert not wrong


def test_reproduce(tmp_path, figure):
    words = ["reproduce", "lillicrap2016/fig2a", "--scale", 0.2, "--seeds", 2]
    kills, wrong, tries = 0, [], 3
    for number in range(tries):
        (tmp_path / str(number)).mkdir()
        hit, other = survive(tmp_path / str(number), words, number, 2)
        kills += hit
        wrong += [(number, other)] if other else []
    figure("SIGKILL reproduce lillicrap2016/fig2a", f"{tries - len(wrong)} of {tries}, {kills} kills")
    assert not wrong

"""Signals: a run that is asked to stop says how it goes on, and ends bit for bit as one that was not."""

import signal
import time

import numpy as np
import pytest

from faults.campaign.children import apical_in
from faults.campaign.folders import differences, held

pytestmark = pytest.mark.faults

COMMANDS = {
    "train": ("train", "--rule", "kp", "--network", "64-30-10", "--epochs", 40, "--align-every", 200),
    "compare on": ("compare", "--rules", "kp", "np", "--network", "64-20-10", "--epochs", 12, "--seeds", 2,
                   "--replicas", "on", "--no-time-steps"),
    "compare off": ("compare", "--rules", "kp", "--network", "64-20-10", "--epochs", 12, "--seeds", 2,
                    "--replicas", "off", "--no-time-steps"),
}  # fmt: skip
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    found = {}
    for name, words in COMMANDS.items():
        home = tmp_path_factory.mktemp("whole")
        child = apical_in(home, *words, "--folder", "run", out=home / "o").wait()
        assert child.code == 0, child.errors
        found[name] = held(home / "run")
    return found


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("number", STATUS, ids=lambda one: one.name)
def test_stopped_and_resumed(tmp_path, whole, figure, name, times, number):
    tries, right, wrong = 3, 0, []
    chance = np.random.default_rng(int(number) + times)
    for one in range(tries):
        folder = f"run{one}"
        child = apical_in(tmp_path, *COMMANDS[name], "--folder", folder, out=tmp_path / "o")
        while not (tmp_path / folder / "config.json").exists() and not child.ended():
            time.sleep(0.002)
        time.sleep(chance.uniform(0.1, 0.3))
        for _ in range(times):
            child.send(number)
            time.sleep(0.001)
        child.wait()
        told = child.traceback or (child.code not in (0, STATUS[number]) and f"status {child.code}: {child.errors}")
        if not told and child.code and "resume" not in child.errors:
            told = f"no word of resuming: {child.errors}"
        again = apical_in(tmp_path, COMMANDS[name][0], "--resume", folder, out=tmp_path / "o2").wait()
        told = told or again.errors * (again.code != 0) or differences(whole[name], held(tmp_path / folder))
        right += not told
        wrong += [told] if told else []
    figure(f"{number.name} x {times} on {name}", f"{right} of {tries}")
    assert not wrong

"""The experiments on ImageNet in several processes, which share minibatches as the printed recipe's 32 workers do."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from apical.papers import find
from apical.papers.reproduce import reproduce
from data.streaming.made_up import imagenet
from papers.akrout2019 import imagenet_run
from processes import Forked, as_torchrun_starts, free_port

SIZES = [(40, 60), (36, 36), (50, 34)]


def tiny():
    """Figure 3a under one rule, for a tiny network and four workers."""
    one = find("akrout2019/fig3a")
    entries = {
        name: replace(
            own,
            network="papers.classifiers.pictures:tiny",
            recipe=replace(own.recipe, batch=14, workers=4, epochs=3, bfloat16=False),
        )
        for name, own in one.entries.items()
        if name.endswith(", kp")
    }
    return replace(one, entries=entries, pixels=32)


def outcome(place, folder, **options):
    """In double precision, in which processes differ by less than any image."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return reproduce(tiny(), folder, data=str(place), **options)
    finally:
        torch.set_default_dtype(default)


def _on_a_rank(rank, port, place, folder):
    as_torchrun_starts(rank, port)
    outcome(place, f"{folder}-{rank}")  # The first one's name counts.
    outcome(place, f"{folder}-0", resume=True)


def test_two_processes_find_what_one_finds(tmp_path):
    place, port = imagenet(tmp_path / "imagenet", 24, 3, 7, SIZES), free_port()
    ranks = [Forked(_on_a_rank, rank, port, place, tmp_path / "both") for rank in range(2)]
    alone = outcome(place, tmp_path / "one")
    for rank in ranks:
        _, err = rank.communicate(timeout=300)
        assert rank.returncode == 0, err
    assert not (tmp_path / "both-1").exists()
    both = json.loads((tmp_path / "both-0" / "outcome.json").read_text())
    assert both["shows"]["rows"] == alone["shows"]["rows"]
    for record in (tmp_path / "one" / "records").iterdir():
        mine, its = (json.loads(path.read_text()) for path in (record, tmp_path / "both-0" / "records" / record.name))
        assert mine["curves"].keys() == its["curves"].keys()
        for name, curve in mine["curves"].items():
            expected, found = (
                [math.nan if value is None else value for value in one["y"][0]] for one in (curve, its["curves"][name])
            )
            assert found == pytest.approx(expected, abs=1e-8, nan_ok=True), name
    assert [path for path in (tmp_path / "both-0").rglob("*") if path.suffix == ".ckpt" or path.name == ".lock"] == []


def test_processes_that_cannot_share_minibatches_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(
        ValueError, match=r"akrout2019/fig3a shares .* 32 workers, which 3 processes .* 1, 2, 4, 8, 16 or 32"
    ):
        reproduce(find("akrout2019/fig3a"), tmp_path / "run", data="nowhere")
    with pytest.raises(ValueError, match=r"akrout2019/fig4-cifar10 works in one process, and 3 .* without torchrun"):
        reproduce(find("akrout2019/fig4-cifar10"), tmp_path / "run", data="nowhere")
    assert list(tmp_path.iterdir()) == []


def by_torchrun(place, folder, pixels):
    """ResNet-50's recipe in two processes."""
    tests = Path(__file__).parents[2]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [imagenet_run.__file__, str(place), str(folder), str(pixels)]
    path = os.pathsep.join([str(tests), *sys.path])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    with Path(f"{folder}.err").open("a") as errors:
        return subprocess.Popen(command, env=environment, start_new_session=True, stderr=errors)


def seen(folder):
    """Rank -> lines of its log."""
    logs = [Path(f"{folder}.log-{rank}") for rank in range(2)]
    return [[json.loads(one) for one in log.read_text().splitlines()] if log.exists() else [] for log in logs]


@pytest.mark.slow
def test_resnet50_killed_at_random_sees_every_image_once_an_epoch(tmp_path):
    count, kills, chance = 256, 4, random.Random(1)
    place = imagenet(tmp_path / "imagenet", count, 1000, 32, [(60, 80), (80, 53), (120, 90), (75, 75), (64, 48)])
    folder = tmp_path / "run"
    for _ in range(kills):
        before = [len(lines) for lines in seen(folder)]
        running = by_torchrun(place, folder, 32)
        until = time.monotonic() + 200
        while any(len(lines) <= own for lines, own in zip(seen(folder), before, strict=True)):
            assert running.poll() is None, Path(f"{folder}.err").read_text()
            assert time.monotonic() < until
            time.sleep(0.05)
        time.sleep(chance.random() * 8)
        os.kill(seen(folder)[chance.randrange(2)][-1][4], signal.SIGKILL)
        assert running.wait(timeout=60) != 0
    assert by_torchrun(place, folder, 32).wait(timeout=400) == 0, Path(f"{folder}.err").read_text()
    once = {}
    for rank, lines in enumerate(seen(folder)):
        for epoch, number, images, *_ in lines:
            # What was seen before a kill and again after it is the same.
            assert once.setdefault((epoch, number, rank), images) == images
        own = [line for line in lines if line[4] == lines[-1][4]]
        assert max(line[3] for line in own) - own[0][3] < 600  # Gradients and momentum come after the first.
    for epoch in range(imagenet_run.EPOCHS):
        images = Counter(one for (own, _, _), found in once.items() for one in found if own == epoch)
        assert images == dict.fromkeys(range(count), 1)
    assert by_torchrun(place, tmp_path / "whole", 32).wait(timeout=400) == 0
    kept = [json.loads(next((one / "records").iterdir()).read_text()) for one in (folder, tmp_path / "whole")]
    assert kept[0]["curves"] == kept[1]["curves"]

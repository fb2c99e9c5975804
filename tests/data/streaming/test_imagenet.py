"""A made-up ImageNet, streamed by two processes that are killed at random moments and go on."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from data.streaming.made_up import imagenet

READER = """
import json, os, resource, sys
from pathlib import Path
from apical.data.options import DataOptions
sys.path.insert(0, sys.argv[1])
from data.streaming.made_up import numbers
place, home, rank, epochs, batch = sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]), int(sys.argv[6])
data = DataOptions(stream=True, image_size=32, augment="flip+resized-crop", workers=1).applied(place)
steps = -(-len(data.train) // batch)
done = int(at.read_text()) if (at := home / f"at-{rank}").exists() else 0
log = (home / f"log-{rank}").open("a")
for epoch in range(done // steps, epochs):
    for number, (x, _) in enumerate(data.train.batches(batch, 0, epoch, done % steps, part=(rank, 2)), done % steps):
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps([epoch, number, numbers(x), grown]), file=log, flush=True)
        done += 1
        (home / f"next-{rank}").write_text(str(done))
        os.replace(home / f"next-{rank}", at)
"""


def started(place, home, rank, epochs, batch):
    tests = Path(__file__).parents[2]
    command = [sys.executable, "-c", READER, str(tests), str(place), str(home), str(rank), str(epochs), str(batch)]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_two_processes_killed_at_random_see_every_sample_once_an_epoch(tmp_path):
    count, classes, batch = 20_000, 1000, 256
    sizes = [(60, 80), (80, 53), (120, 90), (75, 75), (36, 48)]
    place, chance = imagenet(tmp_path / "imagenet", count, classes, 50, sizes), random.Random(0)
    running = {rank: started(place, tmp_path, rank, 2, batch) for rank in range(2)}
    for _ in range(5):
        rank = chance.randrange(2)
        began = time.monotonic()
        while not (tmp_path / f"at-{rank}").exists() and time.monotonic() - began < 120:
            time.sleep(0.05)
        time.sleep(chance.random() * 5)
        running[rank].send_signal(signal.SIGKILL)
        running[rank].wait()
        running[rank] = started(place, tmp_path, rank, 2, batch)
    assert [one.wait() for one in running.values()] == [0, 0]
    lines = [json.loads(line) for rank in range(2) for line in (tmp_path / f"log-{rank}").read_text().splitlines()]
    seen, most = {}, [line[3] for line in lines]
    for rank in range(2):
        for line in (tmp_path / f"log-{rank}").read_text().splitlines():
            epoch, number, found, _ = json.loads(line)
            # What was read before a kill and again after it is the same.
            assert seen.setdefault((epoch, number, rank), found) == found
    for epoch in range(2):
        counts = Counter(one for (own, _, _), found in seen.items() for one in found if own == epoch)
        assert counts == dict.fromkeys(range(count), 1)
    assert max(most) - min(most) < 150, "memory grows"

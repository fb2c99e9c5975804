"""How fast streamed images come, against how fast ResNet-50 learns from them; whether each comes once, and in how much memory.

    python tests/data/streaming/made_up.py FOLDER LAYOUT    # LAYOUT: folders, tar or parquet
    PYTHONPATH=src:tests python -m benchmarks.streaming FOLDER

An epoch of FOLDER's images is read at 224 pixels, flipped and cut as for ImageNet. Now and then reading rests, and ResNet-50
learns from a batch in bfloat16 on as many threads, so that whatever else the machine does slows both.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

import PIL
import torch
from torch.nn import functional as F

from apical.data.options import DataOptions, processors
from apical.machine import machine
from apical.networks import resnet50
from data.streaming.made_up import numbers

BATCH, TRAINED = 64, 32
ROUND, FIRST = 24, 4
"""Batches in a round, of which the first were read while ResNet-50 learned and are not timed."""


def memory() -> int:
    """MiB that this process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


class Learning:
    """ResNet-50 that learns from batches of noise."""

    def __init__(self) -> None:
        self.net = resnet50().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.01, momentum=0.9)
        self.x = torch.randn(TRAINED, 3, 224, 224).to(memory_format=torch.channels_last)
        self.y = torch.randint(1000, (TRAINED,))
        self.step()

    def step(self) -> float:
        """Images per second."""
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(self.net(self.x).float(), self.y)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return TRAINED / (time.perf_counter() - start)


def main(folder: str) -> None:
    """Read an epoch, and print what came of it."""
    threads = processors()
    torch.set_num_threads(threads)
    learning = Learning()
    data = DataOptions(stream=True, image_size=224, augment="flip+resized-crop", workers=threads).applied(folder)
    seen, read, learned, held = Counter(), [], [], []
    start = time.perf_counter()
    for number, (x, _) in enumerate(data.train.batches(BATCH, 0, 0)):
        seen.update(numbers(x))
        if number % ROUND == FIRST:
            start = time.perf_counter()
        if number % ROUND == ROUND - 1:
            read.append((ROUND - 1 - FIRST) * BATCH / (time.perf_counter() - start))
            held.append(memory())
            learned.append(learning.step())
    ratios = [one / other for one, other in zip(read, learned, strict=True)]
    found = {
        "images": len(data.train),
        "seen once": seen == dict.fromkeys(range(len(data.train)), 1),
        "read, images/s": round(statistics.median(read)),
        "learned, images/s": round(statistics.median(learned), 1),
        "ratio": round(statistics.median(ratios), 1),
        "quartiles": [round(one, 1) for one in statistics.quantiles(ratios, n=4)[::2]],
        "MiB after each round": held,
        "threads": threads,
        "machine": machine(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "pillow": PIL.__version__},
        "date": datetime.date.today().isoformat(),
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])

"""ResNet-50's recipe on a made-up ImageNet, which tells what it sees: `torchrun ... imagenet_run.py IMAGES RUN PIXELS`.

It goes on where RUN was stopped. RUN.log-RANK gets a line for each minibatch: [epoch, number, images seen, MiB in memory,
process].
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from apical.papers import experiment, find
from apical.papers.akrout2019.imagenet import ImageNet
from apical.papers.reproduce import reproduce
from data.streaming.made_up import numbers

CONDITION = "resnet50-norm-after, kp"
BATCH, EPOCHS = 64, 2
MEAN, DEVIATION = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


class Telling(ImageNet):
    """The experiment, in whose log stands what is learned from."""

    def prepared(self, data):
        train, given = data.train, data.train.batches
        rank = os.environ["RANK"]

        def batches(size, seed, epoch, start=0, **where):
            for number, (x, y) in enumerate(given(size, seed, epoch, start, **where), start):
                pixels = x * DEVIATION[:, None, None] + MEAN[:, None, None]
                memory = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
                with Path(f"{sys.argv[2]}.log-{rank}").open("a") as log:
                    print(json.dumps([epoch, number, numbers(pixels), memory, os.getpid()]), file=log)
                yield x, y

        train.batches = batches
        return data


def small(pixels: int) -> ImageNet:
    """Figure 3b's run of one rule, in two epochs of small minibatches, each among 32 workers."""
    one = find("akrout2019/fig3b")
    own = one.entries[CONDITION]
    recipe = replace(own.recipe, batch=BATCH, epochs=EPOCHS, rate=0.1 * BATCH / 256, warmup=1, drops=())
    fields = {name: getattr(one, name) for name in one.__dataclass_fields__}
    return Telling(**{**fields, "entries": {CONDITION: replace(own, recipe=recipe)}, "pixels": pixels, "angles": False})


if __name__ == "__main__":
    torch.set_num_threads(1)
    experiment.CHECKPOINT_SECONDS = -1.0
    place, folder, size = sys.argv[1:]
    reproduce(small(int(size)), folder, data=place, resume=Path(folder, "config.json").exists())

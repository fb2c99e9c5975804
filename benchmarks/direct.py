"""What the forms of direct feedback keep, and what a step costs with them: `python -m benchmarks.direct resnet20 --batch 32`.

Times are the least of several steps, of the process alone, in which all contenders take turns; ratios are to plain PyTorch.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import time

import torch
from torch import nn

from apical.benchmark.steps import training_step
from apical.benchmark.subjects import LARGE, SUBJECTS
from apical.cli.allocator import keep_freed_memory
from apical.machine import machine

FORMS = ("", "positions=same", "positions=(4,4)", "rank=4", "positions=same,rank=4", "shared=True", "seeded=True")


def kept(model: nn.Module) -> int:
    """Bytes of all that stands for feedback in a model, each tensor once."""
    tensors = (*model.named_buffers(), *model.named_parameters())
    return sum(
        {t.data_ptr(): t.nbytes for name, t in tensors if name.rpartition(".")[2].startswith("feedback")}.values()
    )


def main() -> None:
    """Print a row for each form."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("network", choices=[*SUBJECTS, *LARGE])
    asked.add_argument("--batch", type=int, default=32)
    asked.add_argument("--rounds", type=int, default=5)
    asked.add_argument("--forms", nargs="*", default=FORMS)
    given = asked.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    subject = {**LARGE, **SUBJECTS}[given.network]
    model, (x, y) = subject.build(), subject.draw(given.batch, "cpu")
    contenders: dict[str | None, str | None] = {
        None: None,
        **{form: f"dfa:{form}" if form else "dfa" for form in given.forms},
    }
    steps, sizes = {}, {}
    for form, rule in contenders.items():
        own = copy.deepcopy(model)
        steps[form] = training_step(own, rule, x, y, optimizer="SGD:momentum=0.9", criterion=subject.criterion)
        sizes[form] = kept(own)
        steps[form]()
    best = dict.fromkeys(steps, float("inf"))
    for _ in range(given.rounds):
        for form, step in steps.items():
            begin = time.process_time()
            step()
            best[form] = min(best[form], time.process_time() - begin)
    print(
        f"{given.network}, batch {given.batch}: {machine()}, one thread, PyTorch {torch.__version__}, {datetime.date.today()}"
    )
    print(f"| form | bytes kept | ms | ratio |\n|---|---|---|---|\n| plain PyTorch | | {1000 * best[None]:.1f} | 1 |")
    for form in given.forms:
        name = f"`{form}`" if form else "in full"
        print(f"| {name} | {sizes[form]:,} | {1000 * best[form]:.1f} | {best[form] / best[None]:.2f} |")


if __name__ == "__main__":
    main()

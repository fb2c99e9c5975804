"""The process that makes checks, one after the other: their names come on its input, records go out as lines of JSON.

A check that harms the device's context, or hangs, takes this process with it and no other check; see `supervisor`.
"""

from __future__ import annotations

import gc
import itertools
import json
import math
import os
import platform
import sys
import time
import traceback
from typing import Any

import torch
from benchmarks.gpu_check import graphs, learning, phases, processes, timing
from benchmarks.gpu_check.common import Check, SkipError, Where

import apical
from apical.machine import machine

SLACK = 6
"""Times the limits of a GPU that checks may take on a CPU, which others may use too."""


def all_checks(where: Where) -> dict[str, Check]:
    """Name -> check, in the order in which they are made."""
    rooms = (learning, phases, processes, graphs, timing)
    return {check.name: check for check in itertools.chain(*(room.checks(where) for room in rooms))}


def record(check: Check) -> dict[str, Any]:
    """Make a check. ok: None where it can't be made here; error says why."""
    torch.manual_seed(0)
    figure, ok, error = None, True, ""
    start = time.perf_counter()
    try:
        figure = check.make()
    except SkipError as reason:
        ok, error = None, str(reason)
    except Exception as fault:
        ok, error = False, _told(fault)
    seconds = time.perf_counter() - start
    return {"name": check.name, "ok": ok, "figure": _finite(figure), "seconds": round(seconds, 3), "error": error}


def _told(fault: Exception) -> str:
    """The error, cut where compilers fill pages, and the place that it came from."""
    last = traceback.extract_tb(fault.__traceback__)[-1]
    return f"{type(fault).__name__}: {fault}"[:1500] + f" ({last.filename.split('/')[-1]}:{last.lineno})"


def _finite(value: Any) -> Any:
    """`value` without what JSON has no words for."""
    if isinstance(value, dict):
        return {key: _finite(own) for key, own in value.items()}
    if isinstance(value, list):
        return [_finite(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def tidy(device: str) -> bool:
    """Leave nothing of a check behind. Whether the device can still be used."""
    try:
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()
        gc.collect()
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.zeros(1, device=device).add_(1).item()
    except Exception:
        return False
    return True


def about(device: str) -> dict[str, Any]:
    """The machine and the versions."""
    cuda = device == "cuda"
    return {
        "machine": machine(),
        "gpus": torch.cuda.device_count() if cuda else 0,
        "versions": {
            "apical": apical.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version() if cuda else None,
        },
    }


def main() -> None:
    device, size = sys.argv[1:]
    # Whatever a library prints goes to the log; the records have the output to themselves.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(line: dict[str, Any]) -> None:
        channel.write(json.dumps(line) + "\n")
        channel.flush()

    if device == "cuda" and not torch.cuda.is_available():
        say({"refused": "PyTorch finds no GPU here; give --device cpu --tiny to try the checks themselves"})
        return
    checks = all_checks(Where(device, size == "tiny"))
    slack = 1 if device == "cuda" else SLACK
    say({"about": about(device), "checks": [[c.name, slack * c.limit, c.least] for c in checks.values()]})
    for name in sys.stdin:
        found = record(checks[name.strip()])
        usable = tidy(device)
        say({**found, "usable": usable})
        if not usable:
            return


if __name__ == "__main__":
    main()

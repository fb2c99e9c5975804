"""What a run folder holds, but for times and dates; and damage to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from apical.training import checkpoint

TIMES = {
    "seconds",
    "step_ms",
    "date",
    "machine",
    "command",
    "folder",
    "step_ratio",
    "seconds_each",
    "seal",
    "measured",
    "made",
    "images_per_second",
}


def held(folder: Path) -> dict[str, Any]:
    """Name -> content of every file of a run, a comparison or an experiment, without times; reports are left out."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix not in (".html", ".svg"):
            found[str(path.relative_to(folder))] = _content(path)
    return found


def _content(path: Path) -> Any:
    if path.suffix == ".ckpt":
        return _timeless(checkpoint.load(path))
    if path.suffix == ".jsonl":
        return [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
    return _timeless(json.loads(path.read_text())) if path.suffix == ".json" else path.read_bytes()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(one) for key, one in value.items() if key not in TIMES}
    if isinstance(value, list | tuple):
        return [_timeless(one) for one in value]
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.numpy().tobytes())
    return repr(value) if isinstance(value, float) else value


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of files that only one has, or that differ."""
    return sorted(
        name for name in one.keys() | other.keys() if name not in one or name not in other or one[name] != other[name]
    )


def flipped(path: Path, chance: np.random.Generator) -> bytes:
    """The file with one bit changed; what it held before."""
    before = path.read_bytes()
    place = int(chance.integers(len(before)))
    changed = bytearray(before)
    changed[place] ^= 1 << int(chance.integers(8))
    path.write_bytes(bytes(changed))
    return before

"""Checkpoints: one file, whole or not there, verified on reading, and read without unpickling code."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from apical.files import write_bytes

_MAGIC = b"apical checkpoint 1\n"


class CheckpointError(ValueError):
    """An error of a checkpoint that can't be used; its message says why, and the way out.

    >>> load(Path("nowhere.ckpt"))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    apical.training.checkpoint.CheckpointError: can't read checkpoint nowhere.ckpt: ...
    """


_BESIDE = "beside"


@dataclass(frozen=True)
class Seal:
    """The other files of a run as they were when its checkpoint was written: by it a changed one is noticed.

    Args:
        config: of the run. metrics: count and checksum of its measurements, see `MetricsLog.seal`.
        data: shape (C, H, W) and classes of what it was trained on; None in checkpoints of earlier versions.

    >>> Seal({"seed": 0, "epochs": 2}, {}).check({"seed": 7, "epochs": 2}, "this run")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    apical.training.checkpoint.CheckpointError: the checkpoint does not fit this run: ...
    """

    config: dict[str, Any]
    metrics: dict[str, Any]
    data: dict[str, Any] | None = None

    def check(self, config: dict[str, Any], these: str) -> None:
        """Raise a CheckpointError unless the checkpoint was written under `config`."""
        if self.config != config:
            changed = differences(self.config, config, "{k}: {a!r} in the checkpoint, {b!r} in config.json")
            raise CheckpointError(
                f"the checkpoint does not fit {these}: it was written under other settings than config.json has ({changed}); put "
                "back the one that was changed, or start another run in a folder of its own"
            )

    def asdict(self) -> dict[str, Any]:
        """The fields by name."""
        return {"config": self.config, "metrics": self.metrics, "data": self.data}


def differences(one: dict[str, Any], other: dict[str, Any], told: str) -> str:
    """Where two configs differ, as `told` words it of a key `k` and its two values `a` and `b`."""
    return "; ".join(
        told.format(k=k, a=one.get(k), b=other.get(k)) for k in {**one, **other} if one.get(k) != other.get(k)
    )


def save(path: Path, state: dict[str, Any], beside: Any = None) -> None:
    """Write `state` (tensors, numbers, strings and containers of them) to `path` in one step.

    beside: what else the file is to hold, which is no part of the state: how the other files of its run were.
    """
    buffer = io.BytesIO()
    torch.save(state if beside is None else {**state, _BESIDE: beside}, buffer)
    payload = buffer.getvalue()
    write_bytes(path, _MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)


def load(path: Path) -> dict[str, Any]:
    """The state that `save` has written, on the CPU.

    Raises:
        CheckpointError: if the file is no checkpoint of apical's, or is damaged.
    """
    return load_all(path)[0]


def load_all(path: Path) -> tuple[dict[str, Any], Any]:
    """The state that `save` has written, on the CPU, and what it has written beside; None if that was nothing.

    Raises:
        CheckpointError: if the file is no checkpoint of apical's, or is damaged.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"can't read checkpoint {path}: {error}") from error
    way_out = "delete it to start the run anew, or put back a copy"
    if not content.startswith(_MAGIC):
        raise CheckpointError(f"{path} is no checkpoint of apical's; {way_out}")
    digest, _, payload = content[len(_MAGIC) :].partition(b"\n")
    if hashlib.sha256(payload).hexdigest().encode() != digest:
        raise CheckpointError(f"checkpoint {path} is damaged: its content does not match its checksum; {way_out}")
    try:
        state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:
        # Whatever it raises on bytes that are no pickle of tensors: kinds and words differ with the place of the damage.
        raise CheckpointError(
            f"checkpoint {path} holds something other than tensors and numbers: {error}; {way_out}"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"checkpoint {path} holds no state but a {type(state).__name__}; {way_out}")
    return state, state.pop(_BESIDE, None)

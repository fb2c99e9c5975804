"""Checkpoints: one file, whole or not there, verified on reading, and read without unpickling code."""

from __future__ import annotations

import hashlib
import io
import pickle
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


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings and containers of them) to `path` in one step."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    write_bytes(path, _MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)


def load(path: Path) -> dict[str, Any]:
    """The state that `save` has written, on the CPU.

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
        return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError) as error:
        raise CheckpointError(
            f"checkpoint {path} holds something other than tensors and numbers: {error}; {way_out}"
        ) from error

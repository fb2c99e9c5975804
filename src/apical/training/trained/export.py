"""A run's network as plain PyTorch has it."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import nn

from apical.files import write_bytes
from apical.training.trained.load import load


def export(run: Path | str, out: Path | str, *, best: bool = False, overwrite: bool = False) -> nn.Module:
    """Write the weights of a run's network to a file that needs nothing of apical: its state dict, without feedback.

    ``torch.load(out, weights_only=True)`` reads it, and ``load_state_dict`` of the plain network takes it.

    Args:
        run: its folder. best: as for `apical.load`.
        out: the file, usually named .pt. overwrite: whether one that is there already may go.

    Returns:
        The plain network with these weights, in eval mode.

    Raises:
        ValueError: as `apical.load` does, or if `out` is a folder, or a file that may not go. OSError: if it can't be written.

    >>> import tempfile
    >>> from apical.training import TrainConfig, train
    >>> with tempfile.TemporaryDirectory() as home:
    ...     result = train(TrainConfig(rule="kp", network="64-20-10", epochs=1), f"{home}/run")
    ...     model = export(f"{home}/run", f"{home}/digits.pt")
    ...     sorted(torch.load(f"{home}/digits.pt", weights_only=True))
    ['1.bias', '1.weight', '3.bias', '3.weight']
    """
    out = Path(out)
    if out.is_dir():
        raise ValueError(f"{out} is a folder; give the name of a file, as {out / 'model.pt'}")
    if out.exists() and not overwrite:
        raise ValueError(f"{out} is there already; give another name, or overwrite it")
    learner, _ = load(run, best=best)
    model = learner.detach()
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    write_bytes(out, buffer.getvalue())
    return model

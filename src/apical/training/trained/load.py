"""A run's learner and network, out of its folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from apical.learner import Learner
from apical.training.checkpoint import CheckpointError
from apical.training.config import TrainConfig
from apical.training.options import rule_of
from apical.training.run_folder import RunFolder, RunFolderError
from apical.training.setup import Shaped, make
from apical.training.steps.average import Average


def load(run: Path | str, *, best: bool = False, data: Shaped | None = None) -> tuple[Learner, nn.Module]:
    """The learner and the network of a run, as its last checkpoint has them: trained weights and feedback in place.

    The network is on the CPU and in eval mode, ready to be used, measured (`apical.alignment`, `apical.audit`) or trained on by a
    loop of one's own; ``learner.detach()`` makes it a plain one. A run with a moving average of its weights (``ema``) gives that
    average, which is what it was tested with. One with ``normalize`` has learned from such images, and its network goes on
    taking them: ``TrainConfig.applied(data)`` gives the batches that the run saw. To go on with a run itself, resume it instead.

    Args:
        run: the folder of `apical train`, or of one of the runs in a comparison's. The run may have ended or not.
        best: take the network that ``best_by`` has kept, not the last.
        data: what the run was trained on, or anything with its `shape` and `classes`. Needed for checkpoints that do not know
            them, of earlier versions, where the config's data can't be had.

    Returns:
        (learner, model); the model is that of the learner.

    Raises:
        RunFolderError: if the folder holds no such run, or no checkpoint yet. CheckpointError: if that is damaged or of another
            run. Both are ValueErrors. ValueError: if the network can't be made, as one of the user's own that is not there.

    >>> import apical, tempfile
    >>> from apical.training import TrainConfig, train
    >>> with tempfile.TemporaryDirectory() as home:
    ...     result = train(TrainConfig(rule="kp", network="64-20-10", epochs=1), f"{home}/run")
    ...     learner, model = apical.load(f"{home}/run")
    >>> learner, model(torch.zeros(2, 1, 8, 8)).shape
    (Learner(Sequential, rule='kp', synapses=2), torch.Size([2, 10]))
    """
    folder = RunFolder(run)
    config = config_of(folder)
    state, shaped = _restored(folder, best, config)
    data = data or shaped or config.applied(config.data)
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices=cuda):
        model, learner = make(config, rule_of(config.rule), config.seed, data)
    if config.precision == "64-true":
        model.double()
    try:
        model.load_state_dict(state["model"])
        learner.load_state_dict(state["learner"])
        if config.ema:
            average = Average(learner, config.ema)
            average.load_state_dict(state["average"])
            average.settle()
    except Exception as error:  # Of whatever a forged state holds in place of its parts.
        told = " ".join(str(error).split())
        raise CheckpointError(
            f"the checkpoint in {folder.path} does not fit its run: {told}; put back a copy"
        ) from error
    return learner, model.eval()


@dataclass(frozen=True)
class _Shape:
    shape: tuple[int, ...]
    classes: int


def config_of(folder: RunFolder) -> TrainConfig:
    """The config of the single run in a folder.

    Raises:
        RunFolderError: if it holds something else.
    """
    found = folder.reopen()
    for key, kind in (("rules", "a comparison"), ("experiment", "an experiment")):
        if key in found:
            inside = "; give one of the folders in its runs/" if key == "rules" else ""
            raise RunFolderError(f"folder {folder.path} holds {kind}, and no single run{inside}")
    known = {one.name for one in dataclasses.fields(TrainConfig)}
    strange = sorted(found.keys() - known) + sorted(known - found.keys() - TrainConfig.later().keys())
    try:
        if strange:
            raise ValueError(f"{', '.join(strange)} missing or unknown")
        if isinstance(found["seed"], list):
            raise ValueError("it is of several runs side by side; give the folder of one of them")
        return TrainConfig(**found)
    except (ValueError, TypeError) as error:
        path = folder.path / "config.json"
        raise RunFolderError(f"{path} is no config of a run: {error}; restore it, or give another folder") from error


def _restored(folder: RunFolder, best: bool, config: TrainConfig) -> tuple[dict[str, Any], _Shape | None]:
    """A checkpoint's state, and what it knows of the data."""
    try:
        state, seals = folder.restore_all(best=best)
        shaped = None
        for seal in seals or ():
            seal.check(config.asdict(), "this run")
            if seal.data is not None:
                *before, last = seal.data["shape"]
                shaped = _Shape((*before, last), seal.data["classes"])
                if len(shaped.shape) not in (1, 3):
                    raise ValueError(f"its samples are {list(shaped.shape)}, neither images nor windows of a text")
    except CheckpointError:
        raise
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint in {folder.path} is none of a run of apical's ({error}); put back a copy"
        ) from error
    if state is None:
        raise RunFolderError(
            f"folder {folder.path} holds no network that was the best; train with --best-by to keep one, or take the last"
            if best
            else f"folder {folder.path} holds no checkpoint; resume the run until it has written one"
        )
    return state, shaped

"""The training engine: one run from its config to its result, in a folder of its own."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from apical.training.checkpoint import CheckpointError
from apical.training.config import Recipe, TrainConfig
from apical.training.run_folder import RunFolder, RunFolderError
from apical.training.session import NonFiniteLossError
from apical.training.stopping import Interrupted
from apical.training.train import train
from apical.training.trained.export import export
from apical.training.trained.load import load

if TYPE_CHECKING:
    from apical.comparison import CompareConfig, compare

__all__ = [
    "CheckpointError",
    "CompareConfig",
    "Interrupted",
    "NonFiniteLossError",
    "Recipe",
    "RunFolder",
    "RunFolderError",
    "TrainConfig",
    "compare",
    "export",
    "load",
    "train",
]


def __getattr__(name: str) -> Any:
    # Comparisons are made of runs, so `apical.comparison` imports this package and not the other way round; its two names
    # have always been here as well, and are looked up when somebody asks for them.
    if name in ("CompareConfig", "compare"):
        return getattr(importlib.import_module("apical.comparison"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

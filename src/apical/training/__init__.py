"""The training engine: one run, and comparisons of many."""

from apical.training.checkpoint import CheckpointError
from apical.training.compare import CompareConfig, compare
from apical.training.config import Recipe, TrainConfig
from apical.training.loop import Interrupted, NonFiniteLossError, train
from apical.training.run import RunFolder, RunFolderError

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
    "train",
]

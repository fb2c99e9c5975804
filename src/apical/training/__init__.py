"""The training engine: one run, and comparisons of many."""

from apical.training.checkpoint import CheckpointError
from apical.training.compare import CompareConfig, compare
from apical.training.config import Recipe, TrainConfig
from apical.training.loop import train
from apical.training.run import RunFolder, RunFolderError
from apical.training.session import Interrupted, NonFiniteLossError

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

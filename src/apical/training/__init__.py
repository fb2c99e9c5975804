"""The training engine: one run, and comparisons of many."""

from apical.comparison.compare import compare
from apical.comparison.config import CompareConfig
from apical.training.checkpoint import CheckpointError
from apical.training.config import Recipe, TrainConfig
from apical.training.run_folder import RunFolder, RunFolderError
from apical.training.session import Interrupted, NonFiniteLossError
from apical.training.train import train

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

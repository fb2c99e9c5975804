"""Timing a whole training step of every rule against plain PyTorch backpropagation."""

from apical.benchmark.benchmark import BenchmarkConfig, run
from apical.benchmark.measurement import Measurement, Missing
from apical.benchmark.steps import step_ratios, training_step

__all__ = ["BenchmarkConfig", "Measurement", "Missing", "run", "step_ratios", "training_step"]

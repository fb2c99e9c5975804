"""Timing a whole training step of every rule against plain PyTorch backpropagation."""

from apical.benchmark.benchmark import BenchmarkConfig, Measurement, run
from apical.benchmark.steps import step_ratios, training_step

__all__ = ["BenchmarkConfig", "Measurement", "run", "step_ratios", "training_step"]

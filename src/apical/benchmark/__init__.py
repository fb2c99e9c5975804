"""Timing a whole training step of every rule against plain PyTorch backpropagation."""

from apical.benchmark.benchmark import BenchmarkConfig, Measurement, run, step_ratios, table, training_step

__all__ = ["BenchmarkConfig", "Measurement", "run", "step_ratios", "table", "training_step"]

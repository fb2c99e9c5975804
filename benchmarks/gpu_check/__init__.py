"""Whether apical is right, and how fast it is, on a machine with a GPU: ``python -m benchmarks.gpu_check`` (see README)."""

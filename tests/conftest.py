"""One thread a test process: tests are small, and several suites on one machine would only wait for each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)

"""One thread a test process: tests are small, and several suites on one machine would only wait for each other."""

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("APICAL_NATIVE", "off")  # Whether the node in C++ was built here or not: tests of it turn it on.

import pytest

# Of apical and PyTorch nothing is imported here: the process that hands out the tests needs neither.
pytest.register_assert_rewrite(
    "comparison", "processes", "house", "attaching", "phases", "execution", "replicas", "synapses", "numeric"
)


def pytest_collection_finish():
    """What is imported by now does not count as garbage to search: tests that look for leaks collect it all."""
    import torch

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()


@pytest.fixture
def registered():
    """`register_synapse`, whose kinds are forgotten after the test."""
    import apical
    from apical.synapses import registry

    saved = dict(registry.SYNAPSES)
    yield apical.register_synapse
    registry.SYNAPSES.clear()
    registry.SYNAPSES.update(saved)

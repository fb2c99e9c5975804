"""Several processes learn what one does, whatever is left for each of them of a batch (float64)."""

import pytest
import torch

from apical.training import checkpoint
from faults.campaign.children import apical_in
from faults.campaign.ranks.processes import on_ranks

pytestmark = pytest.mark.faults

RULES = ("fa", "kp", "dfa", "usf", "sg", "shallow")
BATCHES = {"even": 64, "odd": 63, "last of one": 131, "of one each": 3}
"""1442 images: 131 leaves one for the last batch; 3 leaves ranks of three processes one each, and two for the last."""


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("rule", RULES)
def test_as_one_process(tmp_path, figure, rule, batch, count):
    words = [
        "train",
        "--rule",
        rule,
        "--network",
        "64-12-8-10",
        "--precision",
        "64-true",
        "--epochs",
        1,
        "--align-every",
        0,
    ]
    words += ["--batch", BATCHES[batch], "--accelerator", "cpu", "--learning-rate", 0.01]
    one = apical_in(tmp_path, *words, "--folder", "one", out=tmp_path / "o").wait()
    assert one.code == 0, one.errors
    for child in on_ranks(tmp_path, *words, "--folder", "ranks", count=count):
        assert child.wait().code == 0, child.errors[-2000:]
    a, b = (checkpoint.load(tmp_path / name / "checkpoint" / "last.ckpt")["model"] for name in ("one", "ranks"))
    assert a.keys() == b.keys()
    furthest = max(float((a[key] - b[key]).abs().max()) for key in a if isinstance(a[key], torch.Tensor))
    figure(f"{rule}, {count} processes, batches {batch}", f"{furthest:.1e} from one process")
    assert furthest <= 1e-10

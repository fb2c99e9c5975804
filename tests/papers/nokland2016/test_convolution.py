"""CONV: whitening, start, and claims that can fail."""

from __future__ import annotations

import pytest
import torch

from apical.data import ImageData, Split
from apical.papers import find
from apical.papers.experiment import Task
from apical.papers.nokland2016.conv import tables
from apical.papers.nokland2016.conv.whitening import whitening
from apical.papers.record import Curve, Record


def split(n: int, shape=(3, 32, 32), seed: int = 0) -> Split:
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, *shape), generator=draw).to(torch.uint8)
    return Split(images, torch.randint(10, (n,), generator=draw))


def test_whitened_pixels_have_no_mean_and_the_identity_as_covariance():
    images = split(400, (1, 3, 3))
    mixed = Split((images.images // 2 + images.images.flip(3) // 2), images.labels)  # Correlated pixels.
    x = whitening(mixed)(mixed.batch(torch.arange(400))[0])
    assert x.shape == (400, 1, 3, 3)
    rows = x.flatten(1).double()
    assert float(rows.mean(0).abs().max()) < 1e-4
    covariance = rows.T @ rows / 399
    # Mirrored columns are equal but for rounding, so six directions carry the variance.
    values = torch.linalg.eigvalsh(covariance)
    torch.testing.assert_close(values[-6:], torch.ones(6, dtype=torch.float64), rtol=0.01, atol=0.0)
    # ZCA: the symmetric root, by which images stay where they were.
    torch.testing.assert_close(whitening(mixed).matrix, whitening(mixed).matrix.T, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("rule", ["bp", "fa", "dfa"])
def test_a_network_learns_from_whitened_images(rule, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(tables, "whitening", lambda split: lambda x: seen.append(len(x)) or x - 0.5)
    data = ImageData("drawn", split(8), split(3, seed=1), 10, tuple("abcdefghij"))
    one = find("nokland2016/table2-conv")
    assert one.steps(data) == {"steps": 300}
    task = Task(rule, (0,), 1.0, {"steps": 1}, tmp_path, data)
    record = one.run(task)
    assert record.curves["test error"].x == [0, 1]
    assert seen == [3, 8, 3]
    state = task.restore("course")
    assert state is not None
    model = state["parts"]["training"]["model"]
    last = next(value for key, value in reversed(model.items()) if key.endswith("weight") and value.dim() == 2)
    # From zero, activities are zero, so that the output's weights stay in the first step; biases move, each by about rate / 0.1.
    assert bool(last.any()) is (rule == "bp")
    bias = [value for key, value in model.items() if key.endswith("bias")][-1]
    assert bool((bias != 0).all())


def of(test: float, train: float = 0.05) -> Record:
    curves = {f"{name} error": Curve([0, 1], [[90.0, value]]) for name, value in (("test", test), ("training", train))}
    return Record(curves=curves, numbers={"test error": [test], "train error": [train]}, seeds=[0])


def test_claims_can_fail_and_can_be_judged_by_rows():
    one = find("nokland2016/table2-conv")
    good = one.outcome({"bp": of(22.6), "fa": of(27.0, 0.9), "dfa": of(26.8, 0.2)})
    assert [claim.holds for claim in good.claims] == [True, True]
    assert all(row.agrees for row in good.rows)
    assert one.claims_of({row.label: row.ours for row in good.rows}) == good.claims
    bad = one.outcome({"bp": of(30.0), "fa": of(27.0), "dfa": of(33.0)})
    assert [claim.holds for claim in bad.claims] == [False, False]
    assert one.outcome({"bp": of(26.5), "fa": of(27.0), "dfa": of(27.3)}).claims[0].holds is None

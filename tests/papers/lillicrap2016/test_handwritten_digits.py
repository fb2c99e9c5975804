"""The sigmoid network of figure 3, on a few small images, against NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from apical.data import ImageData
from apical.papers import Curve, Record, Task
from apical.papers.lillicrap2016.fig3 import FIG3_SPARSE, FIG3A, IN_WORDS
from apical.papers.lillicrap2016.handwritten_digits import Contender, HandwrittenDigits, Units, shuffled
from papers.digits import images


def trained(one: HandwrittenDigits, rule: str, updates: int, data: ImageData, folder) -> dict[str, np.ndarray]:
    """The network's state after so many updates."""
    task = Task(rule, (4,), 1.0, {"updates": updates}, folder / f"{rule}-{updates}-{one.batch}", data)
    one.run(task)
    state = task.restore("course")
    assert state is not None
    return {name: tensor.double().numpy() for name, tensor in state["parts"]["model"].items()}


def sigma(v):
    return 1 / (1 + np.exp(-v))


@pytest.mark.parametrize("rule", ["shallow", "bp", "fa"])
@pytest.mark.parametrize(("batch", "shrink", "faster"), [(1, "rate", 1), (4, "example", 1), (4, "rate", 2)])
def test_updates_are_the_papers(rule, batch, shrink, faster, tmp_path):
    """dW = eta (e (*) y')^T h - alpha' W, the hidden layer by the three-factor rule; per example, summed over a batch."""
    eta, alpha, data = 0.3, 0.02, images(12)
    one = replace(FIG3A, hidden=5, rate=eta, decay=alpha, shrink=shrink, batch=batch, weights=0.8, feedback=0.9)
    one = replace(one, contenders=(Contender(rule, faster),))
    start, end = (trained(one, str(one.contenders[0]), n, data, tmp_path) for n in (0, 7))
    eta = faster * eta
    decay = eta * alpha if shrink == "rate" else alpha
    W0, b0, W, b = (start[f"{layer}.{part}"] for layer in "13" for part in ("weight", "bias"))
    B = start["3.feedback"] if rule == "fa" else None
    for step in range(7):
        total = [np.zeros_like(t) for t in (W0, b0, W, b)]
        for i in shuffled(12, batch, step, 4).tolist():
            x = data.train.images[i].numpy().reshape(-1) / 255
            h = sigma(W0 @ x + b0)
            y = sigma(W @ h + b)
            top = (np.eye(3)[int(data.train.labels[i])] - y) * y * (1 - y)
            hidden = {"bp": W.T @ top, "shallow": 0 * h}.get(rule, None if B is None else B.T @ top) * h * (1 - h)
            for t, move in zip(total, (np.outer(hidden, x), hidden, np.outer(top, h), top), strict=True):
                t += eta * move
        moved = [1.0 if rule == "shallow" and k < 2 else 1 - decay * batch for k in range(4)]
        W0, b0, W, b = (m * t + d for m, t, d in zip(moved, (W0, b0, W, b), total, strict=True))
    for name, expected in {"1.weight": W0, "1.bias": b0, "3.weight": W, "3.bias": b}.items():
        np.testing.assert_allclose(end[name], expected, rtol=1e-4, atol=1e-6)
    if rule != "shallow":
        assert np.abs(end["1.weight"] - start["1.weight"]).max() > 0.01


def test_rules_start_from_the_same_weights_and_every_seed_has_feedback_of_its_own():
    data = images(4)
    one = replace(FIG3A, hidden=50, weights=0.3, feedback=0.7)
    (bp, _), (fa, learner), (other, second) = (
        one.learner(r, s, data, 0.3) for r, s in (("bp", 1), ("fa", 1), ("fa", 2))
    )
    bp, fa, other = (dict(model.named_parameters()) for model in (bp, fa, other))
    assert torch.equal(bp["1.weight"], fa["1.weight"])
    assert torch.equal(bp["3.weight"], fa["3.weight"])
    assert not torch.equal(fa["1.weight"], other["1.weight"])
    B, another = (one.synapses["3"].feedback for one in (learner, second))
    assert B is not None
    assert another is not None
    assert not torch.equal(B, another)
    assert 0.6 < B.abs().max() <= 0.7
    assert 0.25 < fa["3.weight"].abs().max() <= 0.3
    assert not fa["1.bias"].any()
    assert not fa["3.bias"].any()


def test_half_of_the_connections_to_and_from_the_output_are_missing_and_stay_so(tmp_path):
    data = images(20)
    one = replace(FIG3_SPARSE, hidden=400, rate=0.1, batch=5)
    start, end = (trained(one, "fa", n, data, tmp_path) for n in (0, 6))
    there, back = end["3.weight"] != 0, end["3.feedback"] != 0
    assert abs(there.mean() - 0.5) < 0.06
    assert abs(back.mean() - 0.5) < 0.06
    assert abs((there & back).mean() - 0.25) < 0.06
    assert (there == (start["3.weight"] != 0)).all()
    assert (start["1.weight"] != 0).all()
    assert np.abs(end["3.weight"] - start["3.weight"]).max() > 0.01


def test_an_epoch_shows_every_image_once_in_an_order_of_its_own():
    first, second = (torch.cat([shuffled(12, 4, 3 * e + s, 0) for s in range(3)]) for e in range(2))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(12))
    assert first.tolist() != second.tolist() != torch.cat([shuffled(12, 4, s, 1) for s in range(3)]).tolist()


@pytest.mark.parametrize(
    ("slope", "derivative"),
    [
        ("own", lambda h: h * (1 - h)),
        ("constant", lambda h: np.full_like(h, 0.25)),
        ("box", lambda h: 0.25 * (np.abs(np.log(h / (1 - h))) <= 2)),
    ],
)
def test_rough_slopes_change_the_derivative_and_nothing_else(slope, derivative):
    a = torch.linspace(-5, 5, 23, dtype=torch.float64, requires_grad=True)
    h = Units(slope)(a)
    torch.testing.assert_close(h, a.sigmoid())
    h.sum().backward()
    np.testing.assert_allclose(a.grad.numpy(), derivative(h.detach().numpy()), atol=1e-12)


def test_claims_in_words_can_hold_and_fail(tmp_path):
    data, draw = images(20), np.random.default_rng(0)
    one = replace(IN_WORDS, hidden=6, rate=0.1, batch=5)
    record = one.run(Task("fa, box slope", (0,), 1.0, {"updates": 8}, tmp_path, data))
    assert np.shape(record.arrays["detectors"]) == (6, 3, 3)
    assert np.abs(record.arrays["detectors"]).max() > 0
    theirs = draw.normal(size=(20, 5, 5))

    def judged(box, ours, constant=5.0):
        ends = {"fa": 3.0, "fa, box slope": box, "fa, constant slope": constant, "bp, 10 eta": 3.0}
        found = {"fa": ours, "bp, 10 eta": theirs}
        records = {
            name: Record(
                curves={"test error": Curve([0, 1], [[90, end]])},
                arrays={"detectors": found.get(name, theirs).tolist()},
            )
            for name, end in ends.items()
        }
        return [claim.holds for claim in one.outcome(records).claims]

    near = theirs[::-1] + 0.3 * draw.normal(size=theirs.shape)
    assert judged(3.4, -near) == [True, True, True]
    assert judged(3.6, near[:, :, ::-1], constant=3.4) == [False, False, False]

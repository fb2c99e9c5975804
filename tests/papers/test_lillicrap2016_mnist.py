"""The MNIST experiments of lillicrap2016, on a few small images, against NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from apical.data import ImageData, Split
from apical.papers import Curve, Published, Record, Task, find
from apical.papers.lillicrap2016.fig3 import FIG3_SPARSE, FIG3A, FIG3B, Contender, HandwrittenDigits, shuffled
from apical.papers.lillicrap2016.fig4 import FIG4, SpikingDigits
from apical.papers.lillicrap2016.spiking import Dynamics


def images(n: int, classes: int = 3, seed: int = 0) -> ImageData:
    draw = torch.Generator().manual_seed(seed)

    def split() -> Split:
        return Split(
            torch.randint(256, (n, 1, 3, 3), generator=draw).to(torch.uint8),
            torch.randint(classes, (n,), generator=draw),
        )

    return ImageData("small", split(), split(), classes, tuple("abc"[:classes]))


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
        one._learner(r, s, data, 0.3) for r, s in (("bp", 1), ("fa", 1), ("fa", 2))
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


def record(errors: list[float], angle: list[float] | None = None) -> Record:
    x = [float(i) for i in range(len(errors))]
    curves = {"test error": Curve(x, [errors])}
    return Record(curves=curves if angle is None else {**curves, "angle": Curve(x, [angle])})


def test_what_figure_3_shows_is_judged_by_its_curves():
    good = {
        "shallow": record([90, 20, 9, 7]),
        "bp": record([90, 7, 3, 2.4]),
        "fa": record([90, 6, 3, 2.1], [90, 50, 45, 44]),
    }
    shown = FIG3A.outcome(good)
    assert [claim.holds for claim in shown.claims] == [True] * 5
    assert {row.label: row.agrees for row in shown.rows if row.published} == {
        "test error, shallow": True,
        "test error, bp": True,
        "test error, fa": True,
    }
    assert [panel.title for panel in shown.panels] == ["a", "b"]
    bad = {**good, "fa": record([90, 40, 20, 8], [90, 88, 40, 70])}
    assert [claim.holds for claim in FIG3A.outcome(bad).claims] == [False] * 5
    near = {**good, "fa": record([90, 6, 3, 2.7], [90, 50, 45, 44])}
    assert [claim.holds for claim in FIG3A.outcome(near).claims][:2] == [False, True]
    sparse = FIG3_SPARSE.outcome({"fa": near["fa"], "bp, 10 eta": near["bp"]})
    assert [(claim.text[:15], claim.holds) for claim in sparse.claims][:2] == [
        ("FA ends at BP's", False),
        ("FA matches BP's", True),
    ]
    nearer = FIG3_SPARSE.outcome({"fa": record([90, 6, 3, 2.49]), "bp, 10 eta": near["bp"]})
    assert nearer.claims[0].holds
    assert not FIG3A.outcome({}).rows
    assert not FIG3B.outcome({"fa": record([90, 80])}).panels
    # BP ends at 2.4; FA gets there two thirds of the way between its last measurements.
    assert shown.claims[2].evidence == "2.40 % after 2.67 examples against 3 (bp)"
    higher = FIG3A.outcome({"bp, 10 eta": good["bp"]})
    assert [(row.label, row.agrees) for row in higher.rows] == [("test error, bp, 10 eta", True)]


def test_descriptions_have_the_papers_numbers():
    assert FIG3A.published == {"bp": Published(2.4), "fa": Published(2.1), "shallow": Published(7.2, tag="T")}
    assert (FIG3A.hidden, FIG3A.rate, FIG3_SPARSE.connected, FIG3_SPARSE.published["fa"].value) == (
        1000,
        1e-3,
        0.5,
        2.4,
    )
    paper = (
        FIG4.hidden,
        FIG4.group,
        FIG4.presented,
        FIG4.rate,
        FIG4.decay,
        FIG4.weights,
        FIG4.feedback,
        FIG4.brightest,
    )
    assert paper == ((1500, 1500, 1500), 100, 5, 1e-3, 1e-8, 0.05, 0.1, 0.95)
    assert FIG4.published == Published(1.8)
    assert all(one.tau == 0.9 for one in FIG4.dynamics.values())
    assert FIG3A.conditions == ("shallow", "bp", "fa", "bp, 10 eta", "fa, w = 0.2", "bp, 10 eta, w = 0.2")
    assert (FIG3B.conditions, FIG3_SPARSE.conditions) == (("fa",), ("fa", "bp, 10 eta"))
    assert FIG3B.runs == FIG3A.runs != FIG3_SPARSE.runs
    for one in (FIG3A, FIG3B, FIG3_SPARSE, FIG4):
        assert find(one.name) is one


SMALL = replace(FIG4, hidden=(6, 5), group=4, streams=3, tested=4)


def test_an_image_is_five_steps_in_which_pixels_are_probabilities_and_targets_groups():
    data = images(7)
    assert SMALL.steps(data) == {"steps": 20 * 5 * 2, "steps of alternatives": 100}
    x, target = SMALL._shown(data.train, torch.tensor([5, 2]), 3)
    shown = data.train.images[[5, 2]].flatten(1).double().numpy() / 255
    np.testing.assert_allclose(x, np.minimum(shown, 0.95), rtol=1e-6)
    for row, label in zip(target.tolist(), data.train.labels[[5, 2]].tolist(), strict=True):
        assert row == [float(unit // 4 == label) for unit in range(12)]


def test_the_answer_is_the_group_that_spikes_most():
    """A network whose class groups hear one pixel each, on ten images in streams of four: every image counts once."""
    labels = torch.tensor([0, 1, 2, 1, 0, 2, 2, 1, 0, 0])
    pixels = torch.zeros(10, 1, 3, 3, dtype=torch.uint8)
    pixels.view(10, 9)[torch.arange(10), labels] = 255
    one = replace(SMALL, hidden=(), group=40)
    network = one._network("fa", 0, ImageData("", Split(pixels, labels), Split(pixels, labels), 3, ("a", "b", "c")))
    network.weights[0].fill_(-4.0)
    for label in range(3):
        network.weights[0][40 * label : 40 * label + 40, label] = 4.0
    found = one._errors(network, Split(pixels, labels), 3, 0)
    assert list(found.values()) == [0, 0]
    wrong = labels.clone()
    wrong[[3, 8, 9]] = (labels[[3, 8, 9]] + 1) % 3
    assert list(one._errors(network, Split(pixels, wrong), 3, 0).values()) == [30, 30]


def test_a_spiking_run_that_was_stopped_ends_as_one_that_was_not(tmp_path):
    data = images(9)

    def task(name: str) -> Task:
        return Task("fa", (0,), 1.0, {"steps": 133, "steps of alternatives": 1}, tmp_path / name, data)

    def stop(done: int, steps: int, note: str) -> None:
        if done == 64:
            again._saved = -1e9
        if done == 128:
            raise KeyboardInterrupt

    whole = SMALL.run(task("whole"))
    again = task("again")
    again.watcher = stop
    with pytest.raises(KeyboardInterrupt):
        SMALL.run(again)
    assert SMALL.run(task("again")) == whole


def test_readings_of_the_spiking_network_are_compared_at_equal_length():
    short = Record(curves={"test error": Curve([75.0], [[40.0]])})
    one = SpikingDigits(**{**vars(FIG4), "dynamics": {"fa": Dynamics(), "leak": Dynamics(integration="leak")}})
    rows = one.outcome({"leak": short}).rows
    assert [(row.label, list(row.ours)) for row in rows] == [("after 75 images: leak", [40.0])]

"""lansdell2020 against NumPy by its equations, the laws of its theorems, and its published constants."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

import apical
from apical.data import ImageData
from apical.data.images import Split
from apical.networks import lansdell2020_mlp
from apical.papers import experiments, find
from apical.papers.experiment import Task
from apical.papers.lansdell2020 import accumulate, views
from apical.papers.lansdell2020.common import Minibatches, pixels, seeded, training
from apical.papers.lansdell2020.fig3_table2a import METHODS, TABLE2A, autoencoder
from apical.papers.lansdell2020.fig4 import FIG4
from apical.papers.lansdell2020.theorems import SETTINGS, exponent
from apical.papers.record import Curve, Record
from apical.papers.reproduce import reproduce


def split(n: int, seed: int) -> Split:
    stream = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, 1, 28, 28), generator=stream, dtype=torch.uint8)
    return Split(images, torch.randint(10, (n,), generator=stream))


DATA = ImageData("noise", split(120, 0), split(40, 1), 10, tuple(map(str, range(10))))


def task(condition, seeds, lengths, folder) -> Task:
    return Task(condition, seeds, 1.0, lengths, folder, DATA)


def test_batches_add_up_and_grow_slowly():
    for samples in (1, 31, 5000, 3_000_000):
        sizes = accumulate.batches(samples)
        assert sum(sizes) == samples
        seen = np.cumsum([0, *sizes[:-1]])
        assert all(size <= max(32, before / 32) and size <= 8192 for size, before in zip(sizes, seen, strict=True))
    assert accumulate.batches(1000)[:5] == [32] * 5


def test_ridge_sums_of_growing_batches_are_those_of_the_equations(tmp_path):
    record = FIG4.run(task("c = 0", (3,), {"iterations": 400}, tmp_path))
    net = seeded(3, lambda: lansdell2020_mlp(784, 10))
    W = [p.detach().double().numpy() for p in net.parameters()]
    part = training(DATA)
    x, y = pixels(part).double().numpy(), np.eye(10)[part.labels]
    stream = torch.Generator().manual_seed(3)
    index = torch.cat([torch.randint(len(x), (rows,), generator=stream) for rows in accumulate.batches(400 * 32)])
    h = x[index]
    for weight, bias in zip(W[0:4:2], W[1:4:2], strict=True):
        h = 1 / (1 + np.exp(-(h @ weight.T + bias)))
    e = h @ W[4].T + W[5] - y[index]
    B = np.linalg.solve(0.1 * np.eye(10) + e.T @ e, e.T @ (e @ W[4]))  # eq. 18, on the true gradient e W
    error = np.linalg.norm(W[4] - B) / np.linalg.norm(W[4])
    assert record.curves["relative error, layer 2"].last[0] == pytest.approx(error, rel=2e-2)
    assert record.curves["relative error, layer 2"].x[-1] == pytest.approx(0.4)


def test_the_autoencoder_learns_by_sums_over_minibatches(tmp_path):
    rate, steps, seeds = METHODS["bp"].rate, 3, (0, 5)
    one = dataclasses.replace(TABLE2A, width=20)
    record = one.run(task("bp", seeds, {"iterations": steps}, tmp_path))
    x, x_test = (pixels(part).double().numpy() for part in (training(DATA), DATA.test))
    for number, seed in enumerate(seeds):
        P = [p.detach().double().numpy() for p in seeded(seed, lambda: autoencoder(784, 20)).parameters()]
        minibatches = Minibatches((seed,), len(x))
        for _ in range(steps):
            batch = x[minibatches.draw()[0].numpy()]
            activities, pre = forward(P, batch)
            delta = (activities[-1] - batch) * (pre[-1] > 0)
            for layer in (3, 2, 1, 0):
                below = delta @ P[2 * layer]
                P[2 * layer] = P[2 * layer] - rate * delta.T @ activities[layer]
                P[2 * layer + 1] = P[2 * layer + 1] - rate * delta.sum(0)
                delta = below * (1 if layer == 2 else 1 - activities[layer] ** 2)
        loss = 32 * np.mean(np.sum((forward(P, x_test)[0][-1] - x_test) ** 2, 1)) / 2
        assert record.curves["test loss"].y[number][-1] == pytest.approx(loss, rel=1e-4)


def forward(P, x):
    functions = (np.tanh, lambda a: a, np.tanh, lambda a: np.maximum(a, 0))
    activities, pre = [x], []
    for layer, f in enumerate(functions):
        pre.append(activities[-1] @ P[2 * layer].T + P[2 * layer + 1])
        activities.append(f(pre[-1]))
    return activities, pre


def test_the_autoencoder_starts_as_the_code_does():
    net = seeded(0, lambda: autoencoder(784, 200))
    assert [tuple(p.shape) for p in net.parameters()] == [
        (200, 784), (200,), (2, 200), (2,), (200, 2), (200,), (784, 200), (784,)
    ]  # fmt: skip
    parameters = [p.detach() for p in net.parameters()]
    for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
        sd = (2 / weight.shape[1]) ** 0.5
        assert float(weight.abs().max()) <= 2 * sd
        assert float(weight.std()) == pytest.approx(
            0.88 * sd, rel=0.01 + 3 / weight.numel() ** 0.5
        )  # cut off at two sd
        assert torch.all(bias == 0.1)


def test_rates_for_sums_become_rates_for_means():
    rule = find("lansdell2020/fig2").rule("np, c = 0.001", 2_000_000)
    found = rule.hyperparameters
    assert (found["rate"], found["noise"], found["warmup"], found["solver"]) == (0.016, 0.001, 1000, "sgd")
    assert find("lansdell2020/fig2").rule("np ridge, c = 0.1", 10).hyperparameters["solver"] == "ridge"
    assert TABLE2A.rule(METHODS["np"]).hyperparameters["rate"] == pytest.approx(8e-6 * 32)


@pytest.mark.parametrize("name", SETTINGS)
def test_errors_of_a_theorem_are_zero_where_its_limit_is_reached(name):
    setting = SETTINGS[name]
    net = setting.network()
    learner = apical.attach(
        net, apical.rule(setting.rule, solver="ridge"), example_input=torch.zeros(2, setting.sizes[0])
    )
    W = [net[i].weight.detach() for i in range(0, len(net), 2)]
    assert all(error > 0.5 for (error,) in setting.errors(learner, setting.layers).values())
    for layer in setting.layers:
        limit = W[layer - 1]
        if setting.rule == "np-direct" and layer == 2:
            limit = W[2] @ W[1]
        learner.synapses[str(2 * layer - 2)].feedback = limit
    assert all(error < 1e-6 for (error,) in setting.errors(learner, setting.layers).values())


def test_the_theorems_hold(tmp_path):
    outcome = reproduce(find("lansdell2020/theorems"), tmp_path / "run", seeds=3, scale=0.05)
    assert [claim["holds"] for claim in outcome["shows"]["claims"]] == [True] * 4


def test_an_exponent_is_that_of_a_power():
    x = np.logspace(1, 6, 30)
    assert exponent(Curve(x.tolist(), [(3 * x**-0.5).tolist(), (2 * x**-0.5).tolist()])) == pytest.approx(-0.5)
    assert exponent(Curve([1.0], [[2.0]])) is None


def test_a_code_that_separates_is_told_from_one_that_does_not():
    rows = np.random.default_rng(0)
    labels = rows.integers(0, 10, 300)
    codes = np.stack([np.cos(labels), np.sin(labels)], 1)
    assert views.separation(codes + 0.01 * rows.normal(size=codes.shape), labels) == 100
    assert views.separation(rows.normal(size=codes.shape), labels) < 25


def test_lengths_are_the_papers_on_mnist():
    large = ImageData("mnist", split(60_000, 0), split(10, 1), 10, DATA.class_names)
    steps = {
        name: one.steps(large if one.data else None)
        for name, one in experiments().items()
        if one.paper == "lansdell2020"
    }
    assert all(steps[f"lansdell2020/fig2{one}"] == {"iterations": 2_000_000} for one in ("", *"abcd"))
    assert all(
        steps[f"lansdell2020/{one}"] == {"iterations": 1_000_000} for one in ("table2a", "fig3b", "fig4", "fig4e")
    )


def test_published_numbers():
    assert {k: (p.value, p.spread) for k, p in views.TABLE.items() if k in ("bp", "fa, noise", "np")} == {
        "bp": (609.8, 14.4),
        "fa, noise": (768.2, 2.7),
        "np": (515.3, 4.1),
    }
    assert len(views.TABLE) == 11


def test_claims_compare_the_methods_of_the_table():
    def holds(**changed: float) -> dict[str, bool]:
        losses = {
            "bp": 600.0,
            "bp, tuned rate": 900.0,
            "fa": 780.0,
            "fa, noise": 781.0,
            "np": 510.0,
            "sg": 520.0,
            "adam": 530.0,
            "matched": 602.0,
            **changed,
        }
        records = {
            name: Record(
                curves={"test loss": Curve([0, 1], [[3000.0, loss]] * 2)},
                numbers={"minimum of test loss": [loss - 1, loss + 1]},
            )
            for name, loss in losses.items()
        }
        return {claim.text.partition(" (")[0]: claim.holds for claim in views.outcome(("curves",), records).claims}

    assert all(holds().values())
    assert {name for name, held in holds(sg=800.0).items() if not held} == {
        "FA performs poorly",
        "SG is better than BP",
    }
    assert {name for name, held in holds(**{"fa, noise": 770.0}).items() if not held} == {"noise does not help FA"}
    assert {name for name, held in holds(matched=640.0).items() if not held} == {"Matched is similar to BP"}
    assert {name for name, held in holds(adam=500.0).items() if not held} == {"NP is the best of all"}


def test_reconstructions_are_told_apart_by_the_images_they_lie_nearest_to():
    tiles = np.random.default_rng(0).random((16, 3, 5))

    def mosaic(shown):
        return np.block([[shown[4 * row + column] for column in range(4)] for row in range(4)]).tolist()

    images, near = mosaic(tiles), tiles + 0.01
    assert views.recognised(images, mosaic(near)) == 16
    near[[2, 7]] = near[[7, 2]]
    assert views.recognised(images, mosaic(near)) == 14

    def record(made):
        return Record(numbers={}, curves={}, arrays={"images": images, "reconstructions": mosaic(made)})

    def judged(**made):
        return [
            claim.holds for claim in views.outcome(("reconstructions",), {k: record(v) for k, v in made.items()}).claims
        ]

    mean = np.broadcast_to(tiles.mean(0), tiles.shape)
    assert judged(bp=near, fa=mean, np=tiles) == [True]
    assert judged(bp=near, fa=tiles, np=tiles) == judged(bp=near, fa=near, np=tiles) == [False]
    assert judged(fa=mean) == []


def test_the_curves_are_of_the_losses_that_claims_compare():
    own = {"test loss": Curve([0, 1], [[9.0, 5.0]]), "test loss, noise on": Curve([0, 1], [[9.0, 6.0]])}
    records = {
        "np": Record(curves=own, numbers={"minimum of test loss": [5.0], "minimum of test loss, noise on": [6.0]}),
        "bp": Record(curves={"test loss": own["test loss"]}, numbers={"minimum of test loss": [5.0]}),
    }
    (panel,) = views.outcome(("curves",), records).panels
    assert {line.label: list(line.y) for line in panel.lines} == {"np": [9.0, 6.0], "bp": [9.0, 5.0]}


def test_a_view_takes_conditions_from_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("apical.papers.reproduce.images.load", lambda name: DATA)
    options = {"seeds": 2, "scale": 0.005, "data": "noise"}
    whole = reproduce(find("lansdell2020/fig2"), tmp_path / "whole", only=["bp", "fa", "np, c = 0.1"], **options)
    monkeypatch.setattr(type(find("lansdell2020/fig2")), "_run", None)
    view = find("lansdell2020/fig2d")
    part = reproduce(view, tmp_path / "part", only=["fa", "np, c = 0.1"], using=tmp_path / "whole", **options)
    rows = {row["label"]: row["ours"] for row in whole["shows"]["rows"]}
    assert part["shows"]["rows"]
    assert all(rows[row["label"]] == row["ours"] for row in part["shows"]["rows"])
    assert not any("relative error" in row["label"] for row in part["shows"]["rows"])
    with pytest.raises(ValueError, match="scale: 0\\.005 there, 0\\.01 asked"):
        reproduce(view, tmp_path / "other", using=tmp_path / "whole", **{**options, "scale": 0.01})
    with pytest.raises(ValueError, match="lansdell2020/fig2, whose runs are not those of lansdell2020/fig4a"):
        reproduce(find("lansdell2020/fig4a"), tmp_path / "other", using=tmp_path / "whole", **options)
    with pytest.raises(ValueError, match=r"using: .*nothing can't be read.*no config\.json"):
        reproduce(view, tmp_path / "other", using=tmp_path / "nothing", **options)
    assert not (tmp_path / "other").exists()
    assert json.loads((tmp_path / "part" / "config.json").read_text())["experiment"] == "lansdell2020/fig2d"

"""The paper's derivations: the Kolen-Pollack difference, the weight mirror's expectation and loss, and the cost of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import apical
from apical.data import ImageData
from apical.losses import squared_error
from apical.networks.mlp import mlp
from apical.papers.akrout2019.mirroring import (
    BATCH,
    MIRRORS,
    POINTS,
    SIZES,
    attached,
    descends,
    expectations,
    fixed_points,
    networks,
)
from apical.papers.claims import Statement, judge
from apical.papers.course import Measures, course, spread
from apical.papers.experiment import Experiment, Task
from apical.papers.outcome import Line, Outcome, Panel, Row
from apical.papers.record import Record


@dataclass(frozen=True)
class Descent:
    """The options of the Kolen-Pollack network's optimizer; `decay` is its L2."""

    rate: float
    decay: float
    momentum: float = 0.0


DESCENTS = {
    "decay 1e-3 a step": Descent(0.05, 1e-3 / 0.05),  # As eqs 16-17 have it, without the rate.
    "L2 and momentum 0.9": Descent(0.05, 2e-3, 0.9),
}


@dataclass(frozen=True, kw_only=True)
class Theory(Experiment):
    """Five derivations, each a condition, tested with the library's own rules.

    Args:
        updates: of the Kolen-Pollack network. mirrors: batches of noise.
    """

    updates: int = 1000
    mirrors: int = 2000

    @property
    def conditions(self) -> tuple[str, ...]:
        """The names of the derivations."""
        return tuple(RUNS)

    def steps(self, data: ImageData | None) -> Mapping[str, int]:
        """The numbers of updates of the Kolen-Pollack network, and of mirror batches."""
        return {"updates": self.updates, "mirrors": self.mirrors}

    def run(self, task: Task) -> Record:
        """The record of one derivation's test, from all seeds at once."""
        return RUNS[task.condition](task)

    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        """The paper's statements, and curves of the Kolen-Pollack difference and of the mirrors' mean updates."""
        rows: list[Row] = []
        panels: list[Panel] = []
        if record := records.get("kp difference"):
            lines = [Line.of(name, record.curves[name]) for name in DESCENTS]
            panels.append(Panel(title="Kolen-Pollack", x="updates", y="‖W − B‖ / ‖W₀ − B₀‖", lines=lines, log_y=True))
        if record := records.get("wm expectation"):
            slopes = {name: record.numbers[f"{name}: slope"] for name in MIRRORS}
            rows += [Row(f"{name}: mean ΔB over what is expected", slope) for name, slope in slopes.items()]
            panels.append(_mean_updates(record))
        if record := records.get("wm fixed point"):
            rows += [Row(f"{name}: B over W, ReLU, η 0.1, λ 0.5", record.numbers[name]) for name in POINTS]
        return Outcome(rows=rows, claims=judge(STATEMENTS, measured(records)), panels=panels)


def measured(records: Mapping[str, Record]) -> dict[str, Any]:
    """Values that the statements speak of: deviations, the mirrors' last angles beside the noise's, and operations."""
    values: dict[str, Any] = {}
    if record := records.get("kp difference"):
        values["deviations"] = {name: max(record.numbers[name]) for name in DESCENTS}
    if record := records.get("wm expectation"):
        for name in MIRRORS:
            values[f"angle, {name}"] = float(record.curves[f"{name}: angle"].values[:, -1].mean())
            values[f"angle by noise, {name}"] = record.arrays[f"{name}: expected angle"][-1]
    if record := records.get("wm loss"):
        values["deviation from descent"] = max(record.numbers["deviation"])
    if record := records.get("flops"):
        values |= {f"operations, {name}": found[0] for name, found in record.numbers.items()}
    return values


def _proportional(mirror: str) -> Statement:
    return Statement(
        f"The weight mirror's mean update is proportional to W: {mirror}",
        (f"angle, {mirror}", f"angle by noise, {mirror}"),
        lambda end, noise: end < 1.2 * noise,
        lambda end, noise: f"{end:.2f}° from it at the end, where noise alone is expected to leave {noise:.2f}°",
        "paper" if "eq." in mirror else "derived",
    )


def _affordable(rule: str, limit: str, within: Callable[[float, float], bool]) -> Statement:
    return Statement(
        f"{rule.upper()} needs no more than Appendix B's additional operations per sample and layer (here: {limit})",
        (f"operations, {rule}", f"operations, {rule}, Appendix B"),
        within,
        lambda ours, most: (
            f"{ours:g} in matrix products beyond feedback alignment's here, {most:g} in Appendix B (100 to 20 units)"
        ),
        "ours",
    )


STATEMENTS = (
    Statement(
        "Kolen-Pollack: W − B shrinks by a factor that depends on nothing but the decay",
        ("deviations",),
        lambda worst: max(worst.values()) < 1e-10,
        lambda worst: (
            "largest deviation from (1 − λ)^t, and with momentum from its recurrence: "
            + ", ".join(f"{name} {deviation:.0e}" for name, deviation in worst.items())
        ),
        "derived",
    ),
    *map(_proportional, MIRRORS),
    Statement(
        "Eq. 21 is gradient descent on eq. 22",
        ("deviation from descent",),
        lambda deviation: deviation < 1e-12,
        lambda deviation: f"largest deviation {deviation:.0e}",
        "derived",
    ),
    # Appendix B counts a product of its own for B's update; the library shares the weights'.
    _affordable("kp", "no matrix product of its own", lambda ours, most: ours <= 0),
    _affordable("wm", "in matrix products", lambda ours, most: ours <= most),
)


def _mean_updates(record: Record) -> Panel:
    lines = []
    for name in MIRRORS:
        found = record.curves[f"{name}: angle"]
        noise = Line(label=name, x=found.x, y=record.arrays[f"{name}: expected angle"], dashed=True)
        lines += [Line.of(name, found), noise]
    return Panel(
        title="weight mirror, mean update",
        x="mirror batches",
        y="angle to what is expected (°; dashed: noise)",
        lines=[line for line in lines if line.x],
        log_x=True,
        log_y=True,
    )


def _differences(task: Task) -> Record:
    """The course of W - B under every optimizer, and its deviation from the derived one."""
    updates, n = task.lengths["updates"], len(task.seeds)
    curves, numbers = {}, {}
    for name, descent in DESCENTS.items():
        nets = networks(task.seeds)
        learner, synapse = attached(nets, apical.rule("kp"), 1)
        optimizer = apical.LocalSGD(learner, descent.rate, descent.momentum, descent.decay)
        draw = torch.Generator().manual_seed(task.seeds[0])
        start = (synapse.weight - synapse.get_parameter("feedback")).detach().clone()
        # d' = (1 + m - eta lambda) d - m d_before, from the optimizer's own recurrence.
        shrink = 1 - descent.rate * descent.decay
        factors = [1.0, shrink]
        while len(factors) <= updates:
            factors.append((descent.momentum + shrink) * factors[-1] - descent.momentum * factors[-2])

        def learn(step: int, nets=nets, optimizer=optimizer, draw=draw) -> None:
            x = torch.randn(n, BATCH, SIZES[0], generator=draw, dtype=torch.float64)
            y = torch.randint(SIZES[-1], (n, BATCH), generator=draw)
            squared_error(nets(x).flatten(0, 1), y.flatten()).view(n, -1).mean(1).sum().backward()
            optimizer.step()

        @torch.no_grad()
        def measure(synapse=synapse, start=start) -> Measures:
            now = (synapse.weight - synapse.get_parameter("feedback")).chunk(n)
            pairs = list(zip(now, start.chunk(n), strict=True))
            ratios = [float(d.norm() / d0.norm()) for d, d0 in pairs]
            # Along W0 - B0 with its sign, and across it.
            along = [float((d * d0).sum() / d0.norm() ** 2) for d, d0 in pairs]
            across = [float((d - a * d0).norm() / d0.norm()) for (d, d0), a in zip(pairs, along, strict=True)]
            return {"ratio": ratios, "along": along, "across": across}

        at = spread(updates, 50)
        parts = {"model": nets, "optimizer": optimizer, "draw": draw}
        found = course(task, updates, learn=learn, measure=measure, at=at, parts=parts, name=f"kp-{descent.momentum:g}")
        expected = torch.tensor([factors[int(x)] for x in found["along"].x], dtype=torch.float64)
        deviation = (torch.from_numpy(found["along"].values) - expected).abs().max(1).values
        across = torch.from_numpy(found["across"].values).max(1).values
        curves[name], numbers[name] = found["ratio"], torch.maximum(deviation, across).tolist()
    return Record(curves=curves, numbers=numbers)


def _flops(task: Task) -> Record:
    """The operations in matrix products per sample beyond those of feedback alignment, and those that Appendix B counts."""
    counts = {}
    for name in ("fa", "kp", "wm"):
        net = mlp(SIZES, "relu").double()
        x, y = torch.ones(BATCH, SIZES[0], dtype=torch.float64), torch.zeros(BATCH, dtype=torch.int64)
        learner = apical.attach(net, name, example_input=x)
        # Not LocalSGD, whose products in place the counter doesn't know.
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        learner.adapt(x, y, squared_error)  # Finds out about shapes.
        counter = FlopCounterMode(display=False)
        with counter:
            squared_error(net(x), y).mean().backward()
            learner.adapt(x, y, squared_error)
            optimizer.step()
        counts[name] = counter.get_total_flops() / BATCH
    ((_, _), (inner, outer)) = pairwise(SIZES)
    least = min(inner, outer) + 4 * inner * outer
    found = {
        "kp": counts["kp"] - counts["fa"],
        "wm": counts["wm"] - counts["fa"],
        "kp, Appendix B": least,
        "wm, Appendix B": least + 2 * inner * outer,
    }
    return Record(numbers={name: [float(value)] * len(task.seeds) for name, value in found.items()})


RUNS = {
    "kp difference": _differences,
    "wm expectation": expectations,
    "wm fixed point": fixed_points,
    "wm loss": descends,
    "flops": _flops,
}
"""Derivation -> its test."""

THEORY = Theory(
    name="akrout2019/theory",
    title="Kolen-Pollack's difference, the weight mirror's expectation and loss, and their cost",
    source="Eqs 11, 12, 16-18, 21, 22; Appendix B",
    length="1000 updates and 2000 mirror batches of 100",
    seeds=5,
    minutes=0.5,
    readings=(
        "Networks of 30, 100 and 20 units on random data; the mirrored layer has a fan-in of 100.",
        "Eq. 11 with its diagonal on the output's side: the printed order is a slip. Batch means are subtracted, which leaves "
        "1 − 1/N of the expectation.",
        "Noise: after n samples tan(angle) is about sqrt(c fan-in / n), c = 1 for units that are nearly linear in the noise and "
        "1.36 for ReLU.",
        "'decay times rate' is how the library reads eq. 21: B then settles at W, not at a tenth of it.",
    ),
)

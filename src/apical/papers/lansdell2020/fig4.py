"""Figure 4: convergence of the feedback to weights that stand still."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

import apical
from apical.data import ImageData
from apical.losses import squared_error
from apical.networks import lansdell2020_mlp
from apical.papers.claims import Statement, judge
from apical.papers.experiment import Rows, Task
from apical.papers.lansdell2020.accumulate import regress
from apical.papers.lansdell2020.common import (
    BATCH,
    DATA,
    LAYERS,
    Shared,
    by_eye,
    by_layer,
    iterations,
    mean,
    pixels,
    seeded,
    told,
    training,
    zero_feedback,
)
from apical.papers.outcome import Claim, Line, Outcome, Panel, Published, Row
from apical.papers.record import Curve, Record

MEASURES = {"relative error": "", "angle": "°", "sign congruence": "%"}

NOISES = {"c = 0": 0.0, "c = 0.001": 0.001, "c = 0.01": 0.01, "c = 0.1": 0.1}  # [P]
WIDTHS = {"N = 30": 30, "N = 100": 100, "N = 300": 300, "N = 1000": 1000}  # [P]

PANELS = {
    "a": (NOISES, "relative error"),
    "b": (NOISES, "angle"),
    "c": (NOISES, "sign congruence"),
    "d": (WIDTHS, "relative error"),
    "e": (WIDTHS, "angle"),
}

SWEPT = [name for name, c in NOISES.items() if c]
"""Noise levels in the code; c = 0 is not."""

# Ends of the curves in the authors' notebook, by eye [N]; two numbers are a range.
PUBLISHED: dict[tuple[str, str], dict[str, float | tuple[float, float]]] = {
    ("relative error", "layer 1"): {
        **dict.fromkeys(SWEPT, 0.65),
        **dict(zip(WIDTHS, (1.5, 2.2, 3.6, 6), strict=True)),
    },
    ("relative error", "layer 2"): {
        "c = 0.01": 0.0055,
        "c = 0.001": 0.045,
        "c = 0.1": 0.037,
        **dict(zip(WIDTHS, (0.02, 0.02, 0.1, 0.012), strict=True)),
    },
    ("angle", "layer 1"): {**dict.fromkeys(SWEPT, (1, 1.5)), **dict(zip(WIDTHS, (1.2, 2, 3.7, 7), strict=True))},
    ("angle", "layer 2"): {**dict.fromkeys(SWEPT, 0.2), **dict.fromkeys(WIDTHS, 0.27)},
    ("sign congruence", "layer 1"): dict.fromkeys(SWEPT, 82),
    ("sign congruence", "layer 2"): dict.fromkeys(SWEPT, (99, 100)),
}
LEAST = 0.008
"""The relative error of the top matrix that the text gives [P]."""


def _of_layers(measure: str, text: str, holds: Callable[[list[float], list[float]], bool], unit: str = "") -> Statement:
    """A statement about the ends of both layers' curves at several noise levels, with the values' unit in words."""
    return Statement(
        text,
        (f"{measure}, layer 2", f"{measure}, layer 1"),
        lambda top, lower: holds(list(top.values()), list(lower.values())),
        lambda top, lower: f"{unit}top {told(top)}; layer 1 {told(lower)}",
    )


def _comes_down(top: Sequence[float], lower: float) -> bool | None:
    """Whether the mean of draws is at most what the text gives, and a tenth of another; None within two standard errors."""
    end, error = mean(top), Row("", top).sem or 0.0
    if lower <= 10 * end:
        return False
    return None if abs(end - LEAST) <= 2 * error else end < LEAST


def _grows(measure: str) -> Statement:
    return Statement(
        f"the {measure} of layer 1 grows with N",
        (f"{measure} of several widths",),
        lambda found: list(found.values()) == sorted(found.values()),
        told,
        "derived",  # The text: N changes it; that it grows is seen in the plots.
    )


STATEMENTS = (
    Statement(
        "the relative error of the top matrix comes down to 0.8 %, that of layer 1 stays far larger (here: over ten times)",
        ("relative error, layer 2", "relative error, layer 1", "best"),
        lambda top, lower, best: _comes_down(best, min(lower.values())),
        lambda top, lower, best: (
            f"top {told(top)}; layer 1 {told(lower)}; the best, by draw {', '.join(f'{one:.2g}' for one in best)}"
        ),
    ),
    _of_layers(
        "angle",
        "both angles come close to 0 (here: below 5°)",
        lambda top, lower: max(*top, *lower) < 5,
        "degrees: ",
    ),
    _of_layers(
        "sign congruence",
        "signs agree far more often than by chance in both layers (here: over 60 %)",
        lambda top, lower: min(*top, *lower) > 60,
        "percent: ",
    ),
    _grows("relative error"),
    _grows("angle"),
)


@dataclass(frozen=True, kw_only=True)
class Convergence(Shared):
    """A 784-N-M-10 network with random weights that stand still; B by ridge regression, gamma 0.1.

    Args:
        iterations: of 32 samples. width_noise: c of the sweep over widths.
    """

    iterations: int = 1_000_000
    width_noise: float = 0.01  # [R]

    @property
    def conditions(self) -> tuple[str, ...]:
        """The names of the noise levels, the widths, or both."""
        return tuple(dict.fromkeys(one for panel in self.shows for one in PANELS[panel][0]))

    def steps(self, data: ImageData | None) -> Mapping[str, int]:
        """The number of iterations."""
        return {"iterations": iterations(self.iterations, data)}

    def run(self, task: Task) -> Record:
        """The record of one seed. The first layer's activities stay the same, and are computed once."""
        (seed,) = task.seeds
        hidden = (50, 20) if task.condition in NOISES else (WIDTHS[task.condition], 50)
        noise = NOISES.get(task.condition, self.width_noise)
        classes = task.data.classes
        net = seeded(seed, lambda: lansdell2020_mlp(task.data.features, classes, hidden))
        split = training(task.data)
        with torch.no_grad():
            h, h_test = (net[:3](pixels(part)) for part in (split, task.data.test))
        h_test, y_test = h_test[:1000].requires_grad_(), task.data.test.labels[:1000]
        rule = apical.rule("np", solver="ridge", noise=noise) if noise else apical.rule("sg", solver="ridge")  # [R]
        # An input that requires a gradient, as it would behind a layer that learns.
        learner = apical.attach(
            net[3:], rule, example_input=h_test[:1], generator=torch.Generator().manual_seed(seed + 10**6)
        )
        zero_feedback(learner)
        stream = torch.Generator().manual_seed(seed)

        def draw(rows: int) -> tuple[Tensor, Tensor]:
            index = torch.randint(len(h), (rows,), generator=stream)
            return h[index], split.labels[index]

        def measure() -> dict[str, list[float]]:
            found = apical.alignment(learner, h_test, y_test, squared_error)
            return {name: [value] for name, value in by_layer(found).items()}

        curves = regress(
            task,
            learner,
            BATCH * task.lengths["iterations"],
            draw=draw,
            stream=stream,
            criterion=squared_error,
            measure=measure,
        )
        scaled = {name: Curve([x / BATCH / 1000 for x in curve.x], curve.y) for name, curve in curves.items()}
        return Record(curves=scaled)

    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        """End points beside the notebook's, and the curves."""
        rows, panels = [], []
        for letter in self.shows:
            conditions, measure = PANELS[letter]
            unit = MEASURES[measure]
            for layer in LAYERS:
                lines = []
                for condition in conditions:
                    if condition not in records:
                        continue
                    curve = records[condition].curves[f"{measure}, {layer}"]
                    lines.append(Line.of(condition, curve))
                    published = by_eye(PUBLISHED.get((measure, layer), {}).get(condition))
                    rows.append(Row(f"{measure}, {layer}, {condition}", curve.last, published, unit))
                if lines:
                    panels.append(
                        Panel(
                            title=f"{letter}, {layer}",
                            x="iterations [10³]",
                            y=f"{measure} [{unit}]" if unit else measure,
                            lines=lines,
                            log_x=True,
                            log_y=measure != "sign congruence",
                        )
                    )
        ends = {c: records[c].curves["relative error, layer 2"].last for c in SWEPT if c in records}
        if "a" in self.shows and ends:
            best = min(ends, key=lambda c: mean(ends[c]))
            rows.append(Row(f"relative error, layer 2, at the best noise ({best})", ends[best], Published(LEAST)))
        return Outcome(rows=rows, claims=judge(STATEMENTS, self._measured(records)), panels=panels, columns=2)

    @override
    def claims_of(self, rows: Rows) -> list[Claim] | None:
        records = {}
        for condition in self.conditions:
            labels = {
                f"{measure}, {layer}": f"{measure}, {layer}, {condition}" for measure in MEASURES for layer in LAYERS
            }
            ends = {name: rows[label] for name, label in labels.items() if label in rows}
            if ends:
                curves = {name: Curve([0], [[value] for value in values]) for name, values in ends.items()}
                records[condition] = Record(curves=curves)
        return judge(STATEMENTS, self._measured(records)) if records else None

    def _measured(self, records: Mapping[str, Record]) -> dict[str, Any]:
        """Values that the statements speak of: ends of the curves shown, over noise levels or widths."""

        def ends(measure: str, layer: str, conditions: Iterable[str]) -> dict[str, float]:
            return {one: mean(records[one].curves[f"{measure}, {layer}"].last) for one in conditions if one in records}

        values: dict[str, Any] = {}
        for letter in self.shows:
            conditions, measure = PANELS[letter]
            if conditions is WIDTHS:
                found = ends(measure, "layer 1", WIDTHS)
                values |= {f"{measure} of several widths": found} if len(found) > 1 else {}
            elif any(one in records for one in SWEPT):
                values |= {f"{measure}, {layer}": ends(measure, layer, SWEPT) for layer in LAYERS}
                if measure == "relative error":
                    least = min(values["relative error, layer 2"].items(), key=lambda pair: pair[1])[0]
                    values["best"] = records[least].curves["relative error, layer 2"].last
        return values


FIG4 = Convergence(
    name="lansdell2020/fig4",
    title="Convergence of the feedback with weights that stand still: all panels",
    source="Figure 4; appendix C.3",
    length="1 000 000 iterations of 32 samples",
    seeds=10,
    minutes=230,
    data="ylecun/mnist",
    together=False,
    shows=("a", "b", "c", "d", "e"),
    family="lansdell2020/fig4",
    readings=(
        DATA,
        "The error of 0.8 % is the only number printed; the others are ends of curves in the authors' notebook, by eye.",
        "c = 0 is regression on the true gradient [R], which the code does not have; the sweep over widths has c = 0.01 [R].",
        "Runs are 10; the code has 3, and the text's 0.8 % may be one of them.",
        "The paper's W2 with an error of 0.8 % is read as the matrix of the output, as its plots have it [R].",
        "Sums V and S are taken over batches that grow from 32 to 8192 samples, as weights stand still; B starts at 0.",
        "Angles are those of e B to e W on 1000 test images, averaged and not folded; the code takes one sample and folds [C].",
        "Perturbations add noise to hidden units, not to the unit that stands for the bias [C].",
    ),
)

PARTS = {
    "a": ("Relative error of B at several noise levels", 50.0),
    "b": ("Angle of e B to e W at several noise levels", 50.0),
    "c": ("Sign congruence of B and W at several noise levels", 50.0),
    "d": ("Relative error of B for several widths", 180.0),
    "e": ("Angle of e B to e W for several widths", 180.0),
}

FIGURES = (
    FIG4,
    *(
        replace(FIG4, name=f"lansdell2020/fig4{letter}", title=title, shows=(letter,), minutes=minutes)
        for letter, (title, minutes) in PARTS.items()
    ),
)

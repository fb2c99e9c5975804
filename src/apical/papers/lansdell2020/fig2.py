"""Figure 2: weights and feedback learn together on MNIST."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import apical
from apical.data import ImageData
from apical.losses import error_rate, squared_error
from apical.networks import lansdell2020_mlp
from apical.papers.course import course, spread
from apical.papers.experiment import Task
from apical.papers.lansdell2020.common import (
    BATCH,
    DATA,
    LAYERS,
    Minibatches,
    Shared,
    by_eye,
    by_layer,
    iterations,
    mean,
    noisy,
    pixels,
    points,
    repeatable,
    seeded,
    told,
    training,
    zero_feedback,
)
from apical.papers.outcome import Claim, Line, Outcome, Panel, Row
from apical.papers.record import Record

NOISES = {"c = 0.0001": 1e-4, "c = 0.001": 1e-3, "c = 0.01": 1e-2, "c = 0.1": 1e-1}  # [C]

PANELS = {"a": "relative error", "b": "angle", "c": "sign congruence", "d": "test error"}
TITLED = {"test error, noise on": "d", "test error": "d, without noise"}
UNITS = {"relative error": "", "angle": "°", "sign congruence": "%", "test error": "%"}

# Final mean test errors, and ends of the curves by eye, in the authors' notebook at 2 000 000 iterations [N]. There np is
# solved by ridge regression, and its test error is that of the noisy output [C]. Where the ends of several curves can't be told
# apart, all have the range.
PUBLISHED: dict[str, dict[str, float | tuple[float, float]]] = {
    "test error": {"bp": 2.65, "fa": 4.28},
    "test error, noise on": dict(zip(NOISES, (3.51, 3.51, 3.64, 15.92), strict=True)),
    "relative error, layer 1": {"fa": 0.95, **dict(zip(NOISES, (1.6, 0.8, 0.72, 0.77), strict=True))},
    "relative error, layer 2": {"fa": 0.8, **dict(zip(NOISES, (0.70, 0.40, 1.2, 0.48), strict=True))},
    "angle, layer 1": {"fa": 45, **dict(zip(NOISES, (23, (15, 20), (15, 20), (15, 20)), strict=True))},
    "angle, layer 2": {"fa": 45, **dict.fromkeys(NOISES, (11, 20))},
    "sign congruence, layer 1": {"fa": 62, **dict.fromkeys(NOISES, (72, 76))},
    "sign congruence, layer 2": {"fa": 75, **dict(zip(NOISES, (75, 85, 66, 83), strict=True))},
}


@dataclass(frozen=True, kw_only=True)
class CoAdaptation(Shared):
    """A 784-50-20-10 network, sigmoid, squared error, plain SGD; all seeds in one pass.

    Args:
        iterations: of 32 samples. rate: of W, for sums over a minibatch. feedback_rate: of B likewise.
        warmup: fraction of the iterations in which W stands still under np: 1000 of 2 000 000.
    """

    iterations: int = 2_000_000  # [C]
    rate: float = 4e-4  # [P]
    feedback_rate: float = 5e-4  # [P]
    gamma: float = 0.1  # [C]
    warmup: float = 5e-4  # [P] 1000 iterations, [C] of 2 000 000

    @property
    def conditions(self) -> tuple[str, ...]:
        """Backpropagation, feedback alignment, and np at four noise levels by each solver."""
        return ("bp", "fa", *(f"np, {c}" for c in NOISES), *(f"np ridge, {c}" for c in NOISES))

    def steps(self, data: ImageData | None) -> Mapping[str, int]:
        """Iterations."""
        return {"iterations": iterations(self.iterations, data)}

    def rule(self, condition: str, steps: int) -> apical.Rule:
        """What a condition learns by, for so many iterations."""
        name, _, noise = condition.partition(", ")
        if name == "bp":
            return apical.rule("bp")
        if name == "fa":
            return apical.rule("fa", init="lansdell2020")
        return apical.rule(
            "np",
            solver="ridge" if name == "np ridge" else "sgd",
            rate=self.feedback_rate * BATCH,
            gamma=self.gamma,
            noise=NOISES[noise],
            warmup=round(self.warmup * steps),
            init="lansdell2020",
        )

    def run(self, task: Task) -> Record:
        """All seeds at once, as copies of one network."""
        with repeatable(task.seeds[0]):
            return self._run(task)

    def _run(self, task: Task) -> Record:
        seeds, steps, data = task.seeds, task.lengths["iterations"], task.data
        split = training(data)
        x, y = pixels(split), split.labels
        x_test, y_test = pixels(data.test), data.test.labels
        copies = apical.replicate([seeded(s, lambda: lansdell2020_mlp(data.features, data.classes)) for s in seeds])
        learner = apical.attach(
            copies,
            self.rule(task.condition, steps),
            example_input=x_test[:1].expand(len(seeds), -1, -1),
            generator=torch.Generator().manual_seed(seeds[0] + 10**6),
        )
        if task.condition.startswith("np ridge"):
            zero_feedback(learner)
        optimizer = apical.LocalSGD(learner, lr=self.rate)
        minibatches = Minibatches(seeds, len(x))
        noise = NOISES.get(task.condition.partition(", ")[2])

        def learn(step: int) -> None:
            index = minibatches.draw()
            batch, labels = x[index], y[index]
            squared_error(copies(batch).flatten(0, 1), labels.flatten()).sum().backward()
            learner.adapt(batch, labels, squared_error)
            optimizer.step()

        def measure() -> dict[str, list[float]]:
            models = copies.split()
            found = {"test error": _errors(models, x_test, y_test)}
            if noise is not None:
                with noisy(models, noise):
                    found["test error, noise on"] = _errors(models, x_test, y_test)
            if task.condition != "bp":
                for model in models:
                    aligned = apical.alignment(apical.learner_of(model), x_test[:500], y_test[:500], squared_error)
                    for name, value in by_layer(aligned).items():
                        found.setdefault(name, []).append(value)
            return found

        parts = {"model": copies, "learner": learner, "optimizer": optimizer, **minibatches.streams}
        curves = course(
            task,
            steps,
            learn=learn,
            measure=measure,
            at=spread(steps, points(steps, 50)),
            parts=parts,
            x=lambda step: step / 1000,
        )
        return Record(curves=curves)

    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        """End points beside the notebook's, the claims and the panels."""
        rows, panels = [], []
        for letter in self.shows:
            measure = PANELS[letter]
            names = (f"{measure}, noise on", measure) if letter == "d" else [f"{measure}, {layer}" for layer in LAYERS]
            for name in names:
                lines = []
                for condition, record in records.items():
                    if name not in record.curves:
                        continue
                    published = by_eye(PUBLISHED.get(name, {}).get(condition.partition(", ")[2] or condition))
                    rows.append(Row(f"{name}, {condition}", record.curves[name].last, published, UNITS[measure]))
                    lines.append(Line.of(condition, record.curves[name], dashed=condition.startswith("np ridge")))
                if lines and name.endswith("noise on"):
                    # The paper's panel has those without noise beside them.
                    without = [c for c, record in records.items() if name not in record.curves]
                    lines = [*(Line.of(c, records[c].curves[measure]) for c in without), *lines]
                if lines:
                    unit = f" [{UNITS[measure]}]" if UNITS[measure] else ""
                    low, high = _limits(measure)
                    panels.append(
                        Panel(
                            title=TITLED.get(name, f"{letter}{name.removeprefix(measure)}"),
                            x="iterations [10³]",
                            y=measure + unit,
                            lines=lines,
                            low=low,
                            high=high,
                        )
                    )
        return Outcome(rows=rows, claims=self._claims(records), panels=panels, columns=2)

    def _claims(self, records: Mapping[str, Record]) -> list[Claim]:
        claims = []
        solvers = {"np": "by SGD", "np ridge": "by ridge regression"}

        def ends(name: str, solver: str) -> dict[str, float]:
            """Noise -> value at the end."""
            return {c: mean(records[f"{solver}, {c}"].curves[name].last) for c in NOISES if f"{solver}, {c}" in records}

        def fixed(name: str) -> float | None:
            return mean(records["fa"].curves[name].last) if "fa" in records else None

        def claim(text: str, holds: bool, *told: str) -> None:
            claims.append(Claim(text, holds, "; ".join(told)))

        for solver, how in solvers.items():
            for layer in LAYERS if any(f"{solver}, {c}" in records for c in NOISES) else ():
                name = f"relative error, {layer}"
                found, fa = ends(name, solver), fixed(name)
                if "a" in self.shows and fa is not None:
                    text = f"{name}: np ({how}) below fa, at its best noise"
                    claim(text, min(found.values()) < fa, _told(found), f"fa {fa:.3g}")
                name = f"angle, {layer}"
                found, fa = ends(name, solver), fixed(name)
                if "b" in self.shows and fa is not None:
                    text = f"{name}: np ({how}) far below fa, at every noise (here: at most two thirds)"
                    claim(text, max(found.values()) < fa * 2 / 3, _told(found), f"fa {fa:.3g}")
                name = f"sign congruence, {layer}"
                found, fa = ends(name, solver), fixed(name)
                if "c" in self.shows and fa is not None:
                    text = f"{name}: np ({how}) above fa, at its best noise"
                    claim(text, max(found.values()) > fa, _told(found), f"fa {fa:.3g}")
            both = [ends(f"sign congruence, {layer}", solver) for layer in LAYERS]
            if "c" in self.shows and len(both[0]) > 2:
                apart = max(max(own.values()) - min(own.values()) for own in both)
                text = f"sign congruence ({how}) depends on the noise (here: by more than 2 percentage points)"
                claim(
                    text,
                    apart > 2,
                    *(f"{a}: {_told(b)}" for a, b in zip(LAYERS, both, strict=True)),
                )
                apart = max(abs(both[0][c] - both[1][c]) for c in both[0])
                text = f"sign congruence ({how}) is comparable between layers (here: within 15 percentage points)"
                claim(text, apart < 15, f"furthest apart {apart:.3g} points")
            found, fa = ends("test error, noise on", solver), fixed("test error")
            if "d" in self.shows and found:
                if fa is not None:
                    text = f"test error: np ({how}) below fa, at its best noise"
                    claim(text, min(found.values()) < fa, _told(found), f"fa {fa:.3g}")
                if "bp" in records:
                    bp = mean(records["bp"].curves["test error"].last)
                    text = f"test error: np ({how}) is comparable to bp (here: within 1 percentage point, at its best noise)"
                    claim(text, min(found.values()) - bp < 1, _told(found), f"bp {bp:.3g}")
            found = ends("relative error, layer 1", solver)
            if "a" in self.shows and len(found) > 2:
                claims.append(
                    Claim(
                        f"relative error of layer 1 ({how}): less noise is not always better (here: by 2 percent)",
                        min(found.values()) < 0.98 * next(iter(found.values())),
                        _told(found),
                    )
                )
        return claims


@torch.no_grad()
def _errors(models: Sequence[nn.Module], x: Tensor, y: Tensor) -> list[float]:
    return [error_rate(model(x), y) for model in models]


def _limits(measure: str) -> tuple[float | None, float | None]:
    """Of the vertical axis: the first points of ridge regression lie far off."""
    return {"relative error": (0.0, 2.5), "angle": (0.0, 90.0), "sign congruence": (40.0, 100.0)}.get(
        measure, (0.0, 20.0)
    )


def _told(values: Mapping[str, float]) -> str:
    return f"np {told(values)}"


FIG2 = CoAdaptation(
    name="lansdell2020/fig2",
    title="Weights and feedback learn together: all panels",
    source="Figure 2; appendix C.1",
    length="2 000 000 iterations of 32 samples",
    seeds=5,
    minutes=500,
    data="ylecun/mnist",
    shows=("a", "b", "c", "d"),
    family="lansdell2020/fig2",
    readings=(
        DATA,
        "B by SGD, as printed (np), and by ridge regression, as in the code that drew the figure (np ridge): the two conflict. "
        "The notebook's numbers stand beside whichever was run.",
        "Weights, biases and B are normal with sd sqrt(2 / fan in) [C]; B of ridge regression starts at 0 [C].",
        "The code's test errors under np are of the noisy output [C]; so are those that claims compare, 'noise on'. Panel d is "
        "theirs; beside it are those of the network without noise.",
        "Noise is added to units, not to the bias as in the code; sign congruence leaves biases out in both.",
        "Angles are those of e B to e W on 500 test images, averaged and not folded; the code takes one sample and folds [C].",
        "Losses are compared sample by sample, as in the model class that drew the figure [C].",
        "W stands still for 1 of 2000 iterations under np, 1000 at full length.",
    ),
)

TITLES = {
    "a": "Relative error of B while W learns",
    "b": "Angle of e B to e W while W learns",
    "c": "Sign congruence of B and W while W learns",
    "d": "Test error",
}

FIGURES = (
    FIG2,
    *(replace(FIG2, name=f"lansdell2020/fig2{one}", title=title, shows=(one,)) for one, title in TITLES.items()),
)

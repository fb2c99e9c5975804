"""The decoupled form of the linear system (section 5): one number per layer, its laws, and both theorems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from apical.data import ImageData
from apical.papers.amit2019.decoupled import EPSILONS, LAWS, below, change, conserved, decay, from_first
from apical.papers.claims import Statement, judge
from apical.papers.course import spread
from apical.papers.experiment import Experiment, Task
from apical.papers.outcome import Line, Outcome, Panel
from apical.papers.record import Curve, Record


@dataclass(frozen=True, kw_only=True)
class Decoupled(Experiment):
    """Runs from lambda = 0 towards targets lambda_T with feedback lambda_R, by fourth-order Runge-Kutta steps.

    Args:
        layers: k. step: of time. target, upper, lower: ranges that each seed draws lambda_T and lambda_R from; for k = 3
            lambda_R,2 comes from `upper` times the smallest value that Theorem 2 allows for lambda_R,3, which comes from `lower`.
        laws: whether eqs 16 and 17 are claims of this experiment. ordered: the name of the theorem about epsilon, if one is.
    """

    layers: int
    step: float
    iterations: int
    target: tuple[float, float]
    lower: tuple[float, float]
    upper: tuple[float, float] = (1.0, 1.0)
    laws: bool = False
    ordered: str = ""

    @property
    def conditions(self) -> tuple[str, ...]:
        """The names of every epsilon."""
        return tuple(EPSILONS)

    def steps(self, data: ImageData | None) -> Mapping[str, int]:
        """The number of the solver's steps."""
        return {"steps": self.iterations}

    def run(self, task: Task) -> Record:
        """The record of the flow, followed from all seeds at once."""
        epsilon, steps = EPSILONS[task.condition], task.lengths["steps"]
        target, back = self.drawn(task.seeds)
        values = np.zeros((self.layers, len(task.seeds)))
        at, lines = set(spread(steps, 200)), []
        deviation, mismatch, through_g, through_h, by_first = np.zeros((5, len(task.seeds)))
        for step in range(steps + 1):
            if step in at:
                lines.append((step * self.step, (target - values.prod(0)) ** 2, decay(values, epsilon), values))
                deviation = np.maximum(deviation, np.abs(conserved(values, back, epsilon)).max(0))
                mismatch = np.maximum(mismatch, self._mismatch(values, back, target, epsilon))
                chained = from_first(values[0], back, epsilon)
                through_g = np.maximum(through_g, np.abs(chained - values).max(0))
                # The squares: roots would magnify what rounding leaves of nothing.
                squares = below(values[1:], back[1:], epsilon) ** 2
                through_h = np.maximum(through_h, np.abs(squares - values[:-1] ** 2).max(0))
                rate = decay(values, epsilon)
                own = np.abs(decay(chained, epsilon) - rate) / np.maximum(rate, 1e-12)
                by_first = np.maximum(by_first, own)
            values = self._stepped(values, back, target, epsilon)
            if step % 1000 == 0:
                task.tell(step, steps)
        times = [line[0] for line in lines]

        def curve(rows: Sequence[np.ndarray]) -> Curve:
            return Curve(times, np.stack(rows).T.tolist())

        return Record(
            curves={
                "squared error": curve([line[1] for line in lines]),
                "rate": curve([line[2] for line in lines]),
                **{f"lambda {i + 1}": curve([line[3][i] for line in lines]) for i in range(self.layers)},
            },
            numbers={
                "eq. 16": deviation.tolist(),
                "eq. 17": mismatch.tolist(),
                "G": through_g.tolist(),
                "H": through_h.tolist(),
                "rate by the first": by_first.tolist(),
            },
        )

    def drawn(self, seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """The targets lambda_T [seeds] and feedback lambda_R [layers, seeds] that seeds draw."""
        target, back = np.empty(len(seeds)), np.zeros((self.layers, len(seeds)))
        for index, seed in enumerate(seeds):
            draw = np.random.default_rng(seed)
            target[index] = draw.uniform(*self.target)
            back[-1, index] = draw.uniform(*self.lower)
            if self.layers == 3:
                # Theorem 2's condition, at the largest epsilon.
                back[1, index] = (
                    back[2, index] * (1 + np.sqrt(1 + max(EPSILONS.values()))) / 2 * draw.uniform(*self.upper)
                )
        return target, back

    def _stepped(self, values: np.ndarray, back: np.ndarray, target: np.ndarray, epsilon: float) -> np.ndarray:
        h = self.step
        k1 = change(values, back, target, epsilon)
        k2 = change(values + h / 2 * k1, back, target, epsilon)
        k3 = change(values + h / 2 * k2, back, target, epsilon)
        k4 = change(values + h * k3, back, target, epsilon)
        return values + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    @staticmethod
    def _mismatch(values: np.ndarray, back: np.ndarray, target: np.ndarray, epsilon: float) -> np.ndarray:
        """Relative difference of eq. 17 to what the flow gives, e' = -sum_i (prod / lambda_i) lambda_i'."""
        error = target - values.prod(0)
        moved = change(values, back, target, epsilon)
        others = np.stack([np.delete(values, i, axis=0).prod(0) for i in range(len(values))])
        rate = np.divide((others * moved).sum(0), error, out=np.zeros_like(error), where=np.abs(error) > 1e-9)
        theirs = np.where(np.abs(error) > 1e-9, decay(values, epsilon), 0.0)
        return np.abs(rate - theirs) / np.maximum(np.abs(theirs), 1e-12)

    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        """The laws or the theorem; errors, rates and every layer's number over time, for the first seed."""
        claims = judge((*(LAWS if self.laws else ()), *self.statements), self.measured(records))
        names = ("squared error", "rate", *(f"lambda {i + 1}" for i in range(self.layers)))
        labels = {"squared error": "squared error", "rate": "rate of eq. 17, −d(e²)/dt / 2e²"}
        panels = [
            Panel(
                title=name,
                x="time",
                y=labels.get(name, f"λ{name[-1]}"),
                lines=[
                    Line(label=condition, x=record.curves[name].x, y=record.curves[name].y[0])
                    for condition, record in records.items()
                ],
                log_y=name == "squared error",
            )
            for name in names
        ]
        return Outcome(claims=claims, panels=panels)

    @property
    def statements(self) -> tuple[Statement, ...]:
        """The theorem's statements, if one is a claim of this experiment."""
        if not self.ordered:
            return ()
        grown = ("λ1", *(f"λ{i}" for i in range(2, self.layers)), f"ε λ{self.layers}²", "rate")
        printed = tuple(f"λ{i + 1}" for i in range(self.layers))
        as_printed = Statement(
            f"{self.ordered} as printed: {', '.join(printed)} grow with epsilon",
            ("risen", "ends"),
            lambda risen, ends: all(risen[name] for name in printed),
            lambda risen, ends: f"{_answers(risen, printed)}; {printed[-1]} falls, at the end {ends} (mean over draws)",
        )
        return (
            Statement(
                f"{self.ordered}: at every time the error is smaller, the larger epsilon is",
                ("faster", "compared", "draws"),
                lambda faster, compared, draws: faster.all(),
                lambda faster, compared, draws: (
                    f"{faster.mean():.1%} of {faster.size} comparisons of neighbours in {', '.join(compared)}, {draws} draws"
                ),
            ),
            Statement(
                f"{self.ordered}: {', '.join(grown)} grow with epsilon at every time",
                ("risen",),
                lambda risen: all(risen[name] for name in grown),
                lambda risen: _answers(risen, grown),
                # Theorem 1 is printed so; of Theorem 2 it is what holds.
                "paper" if self.layers == 2 else "derived",
            ),
            *((as_printed,) if self.layers == 3 else ()),
            Statement(
                f"{self.ordered}: the error falls exponentially",
                ("settled",),
                lambda settled: all(low > 0 and high < 0.01 for low, high in settled.values()),
                lambda settled: (
                    "slowest rate at the end, and its change over the last tenth of the time, largest of the draws: "
                    + "; ".join(f"{name} {low:.2g}, {high:.1%}" for name, (low, high) in settled.items())
                ),
            ),
        )

    def measured(self, records: Mapping[str, Record]) -> dict[str, Any]:
        """Values that the statements speak of; comparisons of neighbours in epsilon need two of them."""
        if not records:
            return {}
        values: dict[str, Any] = {
            law: max(max(record.numbers[law]) for record in records.values())
            for law in ("eq. 16", "eq. 17", "G", "H", "rate by the first")
        }
        values["settled"] = {name: _settled(record.curves["rate"]) for name, record in records.items()}
        if len(records) == 1:
            return values

        def stacked(name: str) -> np.ndarray:
            return np.stack([record.curves[name].values[:, 1:] for record in records.values()])

        errors = stacked("squared error")
        layers = {f"λ{i + 1}": stacked(f"lambda {i + 1}") for i in range(self.layers)}
        last = layers[f"λ{self.layers}"]
        part = np.array([EPSILONS[name] for name in records])[:, None, None]
        risen = {**layers, f"ε λ{self.layers}²": part * last**2, "rate": stacked("rate")}
        ends = zip(records, last[:, :, -1].mean(1), strict=True)
        return values | {
            # Equal to rounding at first, when nothing has grown; at last only rounding is left.
            "faster": (np.diff(errors, axis=0) <= 1e-14 * errors[:-1]) | (errors[1:] < 1e-24),
            "compared": tuple(records),
            "draws": errors.shape[1],
            "ends": ", ".join(f"{end:.3g} for {name}" for name, end in ends),
            "risen": {name: bool((np.diff(found, axis=0) > -1e-12).all()) for name, found in risen.items()},
        }


def _answers(risen: Mapping[str, bool], names: Sequence[str]) -> str:
    return "; ".join(f"{name}: {'yes' if risen[name] else 'no'}" for name in names)


def _settled(curve: Curve) -> tuple[float, float]:
    """The smallest last value of all seeds, and the largest relative change over the last tenth."""
    rates = curve.values
    before = rates[:, int(0.9 * (rates.shape[1] - 1))]
    return float(rates[:, -1].min()), float((np.abs(rates[:, -1] - before) / np.maximum(rates[:, -1], 1e-300)).max())


_RANGES = "The paper gives no numbers; each seed draws lambda_T and lambda_R within the theorem's conditions."

SCALAR = Decoupled(
    name="amit2019/fig12-scalar",
    title="The decoupled linear system, its conservation law and its descent",
    source="Section 5, Appendix 2, eqs 16 and 17",
    length="10000 steps of 0.02",
    seeds=10,
    minutes=0.2,
    readings=(_RANGES,),
    layers=3,
    step=0.02,
    iterations=10_000,
    target=(0.5, 1.0),
    lower=(0.05, 0.1),
    upper=(1.05, 1.5),
    laws=True,
)
THEOREM1 = Decoupled(
    name="amit2019/theorem1",
    title="Two layers: exponential convergence, faster with larger epsilon",
    source="Theorem 1",
    length="5000 steps of 0.02",
    seeds=20,
    minutes=0.2,
    readings=(_RANGES,),
    layers=2,
    step=0.02,
    iterations=5000,
    target=(0.5, 1.0),
    lower=(0.01, 0.05),
    ordered="Theorem 1",
)
THEOREM2 = Decoupled(
    name="amit2019/theorem2",
    title="Three layers: exponential convergence, faster with larger epsilon",
    source="Theorem 2",
    length="20000 steps of 0.05",
    seeds=20,
    minutes=0.5,
    readings=(_RANGES, "lambda_R,2 is 1.05 to 1.5 times the smallest value that the theorem allows."),
    layers=3,
    step=0.05,
    iterations=20_000,
    target=(0.5, 1.0),
    lower=(0.02, 0.05),
    upper=(1.05, 1.5),
    ordered="Theorem 2",
)

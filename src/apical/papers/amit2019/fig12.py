"""Figure 12: a linear three-layer network whose feedback learns more or less of what its weights learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

import apical
from apical.data import ImageData
from apical.papers.amit2019.decoupled import EPSILONS
from apical.papers.amit2019.linear_network import ERROR, LAYERS, SIZES, Start, drawn, measures, solved
from apical.papers.claims import Statement, judge
from apical.papers.course import Measures, course, curves, spread
from apical.papers.experiment import Experiment, Task
from apical.papers.outcome import Claim, Kind, Line, Outcome, Panel, Row
from apical.papers.record import Curve, Record

Curves = Mapping[str, Curve]


@dataclass(frozen=True)
class Method:
    """A way to follow the system from R(0), and the words by which conditions and claims name it.

    Args:
        sd: of R(0), and of W(0) for backpropagation. step: of Euler's method.
        flow: whether the differential equation is solved instead, over the same time.
        name: in a condition. where: in a claim.
    """

    sd: float
    step: float
    flow: bool = False
    name: str = ""
    where: str = ""


# What is not printed: the scale of R(0) and the step.
EULER = Method(0.05, 5e-3)  # [R]
ODE = Method(0.05, 5e-3, flow=True, name="ODE")  # [R]
LARGE = Method(0.2, 1e-3, name="sd 0.2", where=" (R(0) of sd 0.2)")  # [R]


@dataclass(frozen=True)
class Condition:
    """A rule, followed by a method; its `str` is the condition's name.

    Args:
        rule: "bp", or one of the names in `EPSILONS`. method: how it is followed.

    >>> str(Condition("eps=0.5", ODE))
    'eps=0.5, ODE'
    """

    rule: str
    method: Method

    def __str__(self) -> str:
        return f"{self.rule}, {self.method.name}" if self.method.name else self.rule

    @property
    def epsilon(self) -> float | None:
        """Part of W's update that R receives; None for backpropagation."""
        return EPSILONS.get(self.rule)


CONDITIONS = {
    str(one): one for one in (Condition(rule, how) for how in (EULER, ODE, LARGE) for rule in ("bp", *EPSILONS))
}


@dataclass(frozen=True, kw_only=True)
class LinearNetwork(Experiment):
    """A linear 40-100-100-10 network learns y = x T from X = I; W(0) = 0, except for backpropagation.

    Args:
        iterations: of Euler's method.
    """

    iterations: int = 1000

    @property
    def conditions(self) -> tuple[str, ...]:
        """The names of backpropagation and every epsilon: by Euler's steps, as a flow, and with a larger R(0)."""
        return tuple(CONDITIONS)

    def steps(self, data: ImageData | None) -> Mapping[str, int]:
        """The number of iterations."""
        return {"iterations": self.iterations}

    def run(self, task: Task) -> Record:
        """The record of the system, followed from all seeds."""
        condition, iterations = CONDITIONS[task.condition], task.lengths["iterations"]
        at = spread(iterations, 100)
        starts = [drawn(condition.epsilon, condition.method.sd, seed) for seed in task.seeds]
        if condition.method.flow:
            times = np.asarray(at) * condition.method.step
            runs = [solved(start, times) for start in starts]
            return Record(curves=curves(list(zip(at, map(_joined, zip(*runs, strict=True)), strict=True))))
        copies, learner = _network(starts)
        optimizer = apical.LocalSGD(learner, lr=condition.method.step)
        X = torch.eye(SIZES[0], dtype=torch.float64).expand(len(starts), -1, -1)
        T = torch.stack([start.target for start in starts])

        def learn(step: int) -> None:
            ((copies(X) - T).square().sum() / 2).backward()
            optimizer.step()

        @torch.no_grad()
        def measure() -> Measures:
            synapses = learner.synapses.values()
            weights = list(zip(*(s.weight.chunk(len(starts)) for s in synapses), strict=True))
            feedback = [s.feedback.chunk(len(starts)) for s in synapses if s.feedback is not None]
            kept = list(zip(*feedback, strict=True)) if condition.epsilon is not None else []
            return measures(weights, kept, [s.target for s in starts])

        parts = {"model": copies, "optimizer": optimizer}
        return Record(curves=course(task, iterations, learn=learn, measure=measure, at=at, parts=parts))

    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        """The paper's four rows of panels, one column per run, and its statements about every method."""
        main = _by_rule(records, EULER)
        rows = [
            Row(f"{rule}: correlation, {layer}", own[layer].last)
            for rule, own in main.items()
            for layer in LAYERS
            if layer in own
        ]
        runs = max((len(record.seeds) for record in records.values()), default=0)
        panels = [_panel(main, measure, run) for measure in (ERROR, *LAYERS) for run in range(runs)]
        claims: list[Claim] = []
        for method in (EULER, LARGE):
            claims += judge(statements(method.where), measured(_by_rule(records, method)))
        claims += judge([FOLLOWED], followed(main, _by_rule(records, ODE)))
        return Outcome(
            rows=rows, claims=claims, panels=[panel for panel in panels if panel.lines], columns=max(runs, 1)
        )


def _network(starts: Sequence[Start]) -> tuple[apical.Replicas, apical.Learner]:
    nets = []
    for start in starts:
        net = nn.Sequential(*(nn.Linear(*W.shape[::-1], bias=False, dtype=W.dtype) for W in start.weights))
        net.load_state_dict({f"{i}.weight": W for i, W in enumerate(start.weights)})
        nets.append(net)
    copies = apical.replicate(nets)
    epsilon = starts[0].epsilon
    if epsilon is None:
        return copies, apical.attach(copies, "bp")
    # Tracked, so that the input layer has an R of its own though no signal uses it. [R]
    learner = apical.attach(copies, apical.rule("urfb", epsilon=epsilon, track=True))
    for synapse, *own in zip(learner.synapses.values(), *(start.feedback for start in starts), strict=True):
        synapse.feedback = torch.cat(own)
    return copies, learner


def _joined(runs: Sequence[Measures]) -> Measures:
    """The measures of several runs, each of one value, as those of one course."""
    return {name: [value for one in runs for value in one[name]] for name in runs[0]}


def _by_rule(records: Mapping[str, Record], method: Method) -> dict[str, Curves]:
    """Rule -> curves of the conditions that are followed by this method."""
    return {CONDITIONS[name].rule: own.curves for name, own in records.items() if CONDITIONS[name].method == method}


def _panel(main: Mapping[str, Curves], measure: str, run: int) -> Panel:
    return Panel(
        title=f"run {run + 1}" if measure == ERROR else "",
        x="iterations",
        y=measure if measure == ERROR else f"correlation of W and R, {measure}",
        lines=[
            Line(label=name, x=own[measure].x, y=own[measure].y[run])
            for name, own in main.items()
            if measure in own and run < len(own[measure].y)
        ],
        log_y=measure == ERROR,
    )


def measured(runs: Mapping[str, Curves]) -> dict[str, Any]:
    """Values that the statements speak of: errors, and the last correlations [input, middle, top] by the name of epsilon.

    "several errors" and "several correlations" are there for two epsilons or more, in the order of epsilon.
    """
    errors = {rule: own[ERROR].values for rule, own in runs.items()}
    learned = {rule: own for rule, own in runs.items() if rule in EPSILONS}
    last = {rule: np.array([own[k].values[:, -1] for k in LAYERS]).mean(1) for rule, own in learned.items()}
    values: dict[str, Any] = {}
    if errors:
        values["error left"] = {rule: float((own[:, -1] / own[:, 0]).max()) for rule, own in errors.items()}
    if last:
        values["correlations"] = last
    if len(last) > 1:
        values |= {"several errors": {rule: errors[rule] for rule in last}, "several correlations": last}
    return values | ({"correlations at eps=1": last["eps=1"]} if "eps=1" in last else {})


def followed(steps: Mapping[str, Curves], flow: Mapping[str, Curves]) -> dict[str, Any]:
    """The most decades by which the error of Euler's steps differs from the flow's, and the rule where that is."""
    apart = {}
    for rule, own in flow.items():
        if rule in steps:
            ours, theirs = steps[rule][ERROR].values, own[ERROR].values
            shown = theirs > 1e-6 * theirs[:, :1]
            apart[rule] = float(np.abs(np.log10(ours[shown] / theirs[shown])).max())
    return {"decades apart": max(apart.items(), key=lambda pair: pair[1])} if apart else {}


def statements(where: str) -> tuple[Statement, ...]:
    """The figure's statements; `where` names the scale of R(0) in their text, where they are judged once more by another one."""
    kind: Kind = "ours" if where else "paper"

    def of_correlations(text: str, holds: Callable[..., bool], *needs: str) -> Statement:
        return Statement(f"{text}{where}", (*needs, "correlations"), holds, lambda *given: _table(given[-1]), kind)

    return (
        Statement(
            f"In the end all errors are negligible{where}",
            ("error left",),
            lambda left: max(left.values()) < 1e-6,
            lambda left: (
                "part of the first error that is left, largest of the runs: "
                + ", ".join(f"{name} {part:.0e}" for name, part in left.items())
            ),
            kind,
        ),
        Statement(
            f"A larger epsilon converges faster{where}",
            ("several errors",),
            # Below this, rounding is all that is left.
            lambda errors: bool((np.diff(_later(errors), axis=0) <= 1e-24).all()),
            lambda errors: f"{', '.join(errors)} compared in every run, at all times of the second half",
            kind,
        ),
        of_correlations(
            "The top layer's correlation is always very close to 1 (here: over 0.9)",
            lambda found: all(top > 0.9 for _, _, top in found.values()),
        ),
        of_correlations(
            "The other layers' stay below the top's",
            lambda found: all(top > np.max(others) for *others, top in found.values()),
        ),
        of_correlations(
            "With epsilon = 1 the input layer's is slightly above the middle's",
            lambda largest, found: largest[0] > largest[1],
            "correlations at eps=1",
        ),
        of_correlations(
            "Correlations rise with epsilon in every layer",
            lambda several, found: bool((np.diff(list(several.values()), axis=0) > 0).all()),
            "several correlations",
        ),
    )


def _table(correlations: Mapping[str, np.ndarray]) -> str:
    rows = (f"{name} " + ", ".join(f"{c:.2f}" for c in found) for name, found in correlations.items())
    return "; ".join(rows) + " (input, middle, top; mean over runs)"


def _later(errors: Mapping[str, np.ndarray]) -> np.ndarray:
    """The errors of the second half [epsilon, run, time]."""
    stacked = np.stack(list(errors.values()))
    return stacked[:, :, stacked.shape[2] // 2 :]


FOLLOWED = Statement(
    "Iterations follow the differential equation",
    ("decades apart",),
    lambda worst: worst[1] < 1,
    lambda worst: (
        f"while the error falls by six decades, the two differ by at most {worst[1]:.2g} decades ({worst[0]})"
    ),
    "ours",
)


FIG12 = LinearNetwork(
    name="amit2019/fig12",
    title="Linear networks with asymmetric feedback converge, faster with larger epsilon",
    source="Figure 12; section 5, Appendix 2",
    length="1000 iterations",
    seeds=3,
    minutes=0.5,
    readings=(
        "Iterations are Euler steps of 5e-3, and R(0) (for backpropagation W(0)) is normal with sd 0.05; neither is printed. "
        "Conditions with 'sd 0.2' have sd 0.2 and steps of 1e-3; conditions with 'ODE' solve the differential equation to a "
        "relative tolerance of 1e-8 over the same time (their error is not followed below that).",
        "R of the input layer carries no signal; it is learned like the others and compared with W.",
        "Correlation is Pearson's over all entries. For which epsilon the input layer's lies above the middle's is not said; it "
        "is judged at 1.",
    ),
)

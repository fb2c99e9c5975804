"""Figure 12: a linear three-layer network whose feedback learns more or less of what its weights learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

import apical
from apical.data import ImageData
from apical.measures.tensors import correlation
from apical.papers.course import Measures, course, curves, spread
from apical.papers.experiment import Experiment, Task
from apical.papers.outcome import Claim, Line, Outcome, Panel, Row
from apical.papers.record import Record

SIZES = (40, 100, 100, 10)
TARGET = 0.2
"""Standard deviation of the entries of W* that make the target."""
LAYERS = ("input layer", "middle layer", "top layer")
ERROR = "squared error"


@dataclass(frozen=True)
class Setting:
    """One condition.

    Args:
        epsilon: part of W's update that R receives; None for backpropagation. sd: of R(0), and of W(0) for backpropagation.
        step: of Euler's method. flow: whether the differential equation is solved instead, over the same time.
    """

    epsilon: float | None
    sd: float
    step: float
    flow: bool = False


def settings() -> dict[str, Setting]:
    """Condition -> setting. What is not printed: the scale of R(0) and the step."""
    found = {}
    for suffix, sd, step, flow in (
        ("", 0.05, 5e-3, False),  # [R]
        (", ODE", 0.05, 5e-3, True),  # [R]
        (", sd 0.2", 0.2, 1e-3, False),  # [R]
    ):
        found[f"bp{suffix}"] = Setting(None, sd, step, flow)
        found |= {f"eps={epsilon:g}{suffix}": Setting(epsilon, sd, step, flow) for epsilon in (0, 0.25, 0.5, 1)}
    return found


@dataclass(frozen=True, kw_only=True)
class LinearNetwork(Experiment):
    """y = x T is learned from X = I by a linear 40-100-100-10 network; W(0) = 0, except for backpropagation."""

    iterations: int = 1000

    @property
    def conditions(self) -> tuple[str, ...]:
        """Backpropagation and every epsilon, by Euler steps, as a flow, and with larger R(0)."""
        return tuple(settings())

    def steps(self, data: ImageData | None) -> Mapping[str, int]:
        """Iterations."""
        return {"iterations": self.iterations}

    def run(self, task: Task) -> Record:
        """All seeds."""
        setting, iterations = settings()[task.condition], task.lengths["iterations"]
        at = spread(iterations, 100)
        starts = [_start(setting, seed) for seed in task.seeds]
        if setting.flow:
            return Record(curves=curves(_solved(setting, starts, at)))
        copies, learner = _network(setting, starts)
        optimizer = apical.LocalSGD(learner, lr=setting.step)
        X = torch.eye(SIZES[0], dtype=torch.float64).expand(len(starts), -1, -1)
        T = torch.stack([start.target for start in starts])

        def learn(step: int) -> None:
            ((copies(X) - T).square().sum() / 2).backward()
            optimizer.step()

        @torch.no_grad()
        def measure() -> Measures:
            synapses = learner.synapses.values()
            weights = list(zip(*(s.weight.chunk(len(starts)) for s in synapses), strict=True))
            feedback = list(
                zip(*(s.feedback.chunk(len(starts)) for s in synapses if s.feedback is not None), strict=True)
            )
            return _measures(weights, feedback if setting.epsilon is not None else [], [s.target for s in starts])

        parts = {"model": copies, "optimizer": optimizer}
        return Record(curves=course(task, iterations, learn=learn, measure=measure, at=at, parts=parts))

    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        """The paper's four rows of panels, one column per run."""
        main = {name: record.curves for name, record in records.items() if "," not in name}
        rows = [
            Row(f"{name}: correlation, {layer}", record.curves[layer].last)
            for name, record in records.items()
            if name in main
            for layer in LAYERS
            if layer in record.curves
        ]
        runs = max((len(record.seeds) for record in records.values()), default=0)
        panels = [
            Panel(
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
            for measure in (ERROR, *LAYERS)
            for run in range(runs)
        ]
        return Outcome(
            rows=rows,
            claims=_claims(main, "") + _claims(_named(records, ", sd 0.2"), " (R(0) of sd 0.2)") + _followed(records),
            panels=[panel for panel in panels if panel.lines],
            columns=max(runs, 1),
        )


@dataclass(frozen=True)
class _Start:
    """A run's beginning: W(0) and R(0) [out, in] of every layer, and the target T [40, 10]."""

    weights: list[Tensor]
    feedback: list[Tensor]
    target: Tensor


def _start(setting: Setting, seed: int) -> _Start:
    draw = torch.Generator().manual_seed(seed)
    shapes = [(out, inp) for inp, out in pairwise(SIZES)]

    def normal(sd: float) -> list[Tensor]:
        return [torch.randn(shape, generator=draw, dtype=torch.float64) * sd for shape in shapes]

    W1, W2, W3 = normal(TARGET)
    feedback, weights = normal(setting.sd), normal(setting.sd)
    if setting.epsilon is not None:
        weights = [torch.zeros_like(W) for W in weights]
    return _Start(weights, feedback, (W3 @ W2 @ W1).t())


def _network(setting: Setting, starts: Sequence[_Start]) -> tuple[apical.Replicas, apical.Learner]:
    nets = []
    for start in starts:
        net = nn.Sequential(*(nn.Linear(*W.shape[::-1], bias=False, dtype=W.dtype) for W in start.weights))
        net.load_state_dict({f"{i}.weight": W for i, W in enumerate(start.weights)})
        nets.append(net)
    copies = apical.replicate(nets)
    if setting.epsilon is None:
        return copies, apical.attach(copies, "bp")
    # Tracked, so that the input layer has an R of its own though no signal uses it. [R]
    learner = apical.attach(copies, apical.rule("urfb", epsilon=setting.epsilon, track=True))
    for synapse, *own in zip(learner.synapses.values(), *(start.feedback for start in starts), strict=True):
        synapse.feedback = torch.cat(own)
    return copies, learner


def flow(W: Sequence[np.ndarray], R: Sequence[np.ndarray] | None, T: np.ndarray, epsilon: float) -> list[np.ndarray]:
    """dW_i/dt of section 5 for three layers, in shapes [out, in], with T [out, in] and X = I; R(0) None: backpropagation."""
    back = W if R is None else [r + epsilon * w for r, w in zip(R, W, strict=True)]
    E = T - W[2] @ W[1] @ W[0]
    delta = back[2].T @ E
    return [back[1].T @ delta, delta @ W[0].T, E @ (W[1] @ W[0]).T]


def _solved(setting: Setting, starts: Sequence[_Start], at: Sequence[int]) -> list[tuple[int, Measures]]:
    """The flow at the same times, to a tolerance far below Euler's error."""
    found = []
    for start in starts:
        shapes = [W.shape for W in start.weights]
        ends = np.cumsum([0, *(W.numel() for W in start.weights)])
        R = None if setting.epsilon is None else [B.numpy() for B in start.feedback]
        T = start.target.t().numpy()

        def apart(flat: np.ndarray, ends=ends, shapes=shapes) -> list[np.ndarray]:
            return [flat[a:b].reshape(shape) for (a, b), shape in zip(pairwise(ends), shapes, strict=True)]

        def change(t: float, flat: np.ndarray, R=R, T=T, apart=apart) -> np.ndarray:
            return np.concatenate([d.ravel() for d in flow(apart(flat), R, T, setting.epsilon or 0.0)])

        W0 = np.concatenate([W.numpy().ravel() for W in start.weights])
        times = np.asarray(at) * setting.step
        solution = solve_ivp(change, (0, times[-1]), W0, method="DOP853", t_eval=times, rtol=1e-8, atol=1e-11)
        lines = []
        for flat in solution.y.T:
            W = [torch.from_numpy(w.copy()) for w in apart(flat)]
            B = (
                [r + setting.epsilon * w for r, w in zip(start.feedback, W, strict=True)]
                if setting.epsilon is not None
                else []
            )
            lines.append(_measures([W], [B] if B else [], [start.target]))
        found.append(lines)
    return [
        (step, {name: [value for line in lines for value in line[name]] for name in lines[0]})
        for step, lines in zip(at, zip(*found, strict=True), strict=True)
    ]


def _measures(
    weights: Sequence[Sequence[Tensor]], feedback: Sequence[Sequence[Tensor]], targets: Sequence[Tensor]
) -> Measures:
    found = {ERROR: [float((W[2] @ W[1] @ W[0] - T.t()).square().sum()) for W, T in zip(weights, targets, strict=True)]}
    if feedback:
        for index, layer in enumerate(LAYERS):
            found[layer] = [correlation(W[index], B[index]) for W, B in zip(weights, feedback, strict=True)]
    return found


def _named(records: Mapping[str, Record], suffix: str) -> dict[str, Mapping]:
    return {name.removesuffix(suffix): record.curves for name, record in records.items() if name.endswith(suffix)}


def _claims(curves: Mapping[str, Mapping], where: str) -> list[Claim]:
    epsilons = [name for name in curves if name.startswith("eps=")]
    claims = []
    finals = {name: float((own[ERROR].values[:, -1] / own[ERROR].values[:, 0]).max()) for name, own in curves.items()}
    if finals:
        text = ", ".join(f"{name} {part:.0e}" for name, part in finals.items())
        claims.append(
            Claim(
                f"In the end all errors are negligible{where}",
                max(finals.values()) < 1e-6,
                f"part of the first error that is left, largest of the runs: {text}",
            )
        )
    if len(epsilons) > 1:
        errors = np.stack([curves[name][ERROR].values for name in epsilons])
        later = errors[:, :, errors.shape[2] // 2 :]
        # Below this, rounding is all that is left.
        ordered = bool((np.diff(later, axis=0) <= 1e-24).all())
        claims.append(
            Claim(
                f"A larger epsilon converges faster{where}",
                ordered,
                f"{', '.join(epsilons)} compared in every run, at all times of the second half",
            )
        )
    if epsilons:
        last = {name: np.array([curves[name][layer].values[:, -1] for layer in LAYERS]).mean(1) for name in epsilons}
        table = "; ".join(f"{name} " + ", ".join(f"{c:.2f}" for c in found) for name, found in last.items())
        table += " (input, middle, top; mean over runs)"
        found = np.stack(list(last.values()))
        below = bool((found[:, 2] > found[:, :2].max(1)).all())
        claims += [
            Claim(
                f"The top layer's correlation is always very close to 1 (here: over 0.9){where}",
                bool((found[:, 2] > 0.9).all()),
                table,
            ),
            Claim(f"The other layers' stay below the top's{where}", below, table),
        ]
        if "eps=1" in last:
            lower, middle = last["eps=1"][:2]
            claims.append(
                Claim(
                    f"With epsilon = 1 the input layer's is slightly above the middle's{where}",
                    bool(lower > middle),
                    table,
                )
            )
        if len(epsilons) > 1:
            rises = bool((np.diff(found, axis=0) > 0).all())
            claims.append(Claim(f"Correlations rise with epsilon in every layer{where}", rises, table))
    return claims


def _followed(records: Mapping[str, Record]) -> list[Claim]:
    """How far Euler's steps are from the flow."""
    apart = []
    for name, own in _named(records, ", ODE").items():
        if name in records:
            ours, theirs = records[name].curves[ERROR].values, own[ERROR].values
            shown = theirs > 1e-6 * theirs[:, :1]
            apart.append((name, float(np.abs(np.log10(ours[shown] / theirs[shown])).max())))
    if not apart:
        return []
    worst = max(apart, key=lambda pair: pair[1])
    evidence = f"while the error falls by six decades, the two differ by at most {worst[1]:.2g} decades ({worst[0]})"
    return [Claim("Iterations follow the differential equation", worst[1] < 1, evidence)]


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

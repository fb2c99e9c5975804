"""Figure 5: how the feedback's information comes into the forward weights, on a quadratic function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

import apical
from apical.data import ImageData
from apical.measures.tensors import angles
from apical.papers.course import course, spread
from apical.papers.experiment import Experiment, Task
from apical.papers.lillicrap2016.online import Pairs, Students, drawn, normalized_squared_error, uniform
from apical.papers.outcome import Claim, Line, Outcome, Panel, Row
from apical.papers.record import Curve, Record

INPUTS, HIDDEN, OUTPUTS = 20, 1000, 20
ERROR, ANGLE, UNIT = "normalized squared error", "angle of W to B per unit, mean", "unit"
UNITS = 10


def quadratic() -> Callable[[Tensor], Tensor]:
    """y*_k = x Q_k x^T, with entries of Q_k from U[-0.5, 0.5], common to all seeds and conditions."""
    Q = drawn((OUTPUTS, INPUTS, INPUTS), 0.5, 2016)  # [R] the form; the entries are printed
    return lambda x: (x.unsqueeze(2) * x.unsqueeze(1)).flatten(1) @ Q.flatten(1).t()


def box(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """U[-2, 2]."""
    return torch.empty(shape).uniform_(-2, 2, generator=generator)


def network(seed: int, hidden: float, output: float) -> nn.Sequential:
    """20-1000-20, tanh hidden, linear output; W_0 and its biases from U[-hidden, hidden], W and its from U[-output, output]."""
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, OUTPUTS))
    for layer, bound in ((net[0], hidden), (net[2], output)):
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return net


def unit_angles(W: Float[Tensor, "seeds o i"], B: Float[Tensor, "seeds o i"]) -> Float[Tensor, "seeds i"]:
    """`apical.measures.unit_angles` of every network."""
    n, _, units = W.shape
    return angles(W.mT.flatten(0, 1), B.mT.flatten(0, 1)).view(n, units)


@dataclass(frozen=True, kw_only=True)
class Quadratic(Experiment):
    """A 20-1000-20 network learns a quadratic function online by feedback alignment.

    Args:
        rate: of all weights. hidden, output: of the initial weights, see `network`. feedback: B from U[-feedback, feedback].
    """

    rate: float
    hidden: float
    output: float
    feedback: float

    def students(self, task: Task) -> tuple[Pairs, Students]:
        """Examples, and one network per seed."""
        return Pairs(task.seeds, INPUTS, quadratic(), box), Students(
            lambda seed: network(seed, self.hidden, self.output),
            apical.rule("fa", init=uniform(self.feedback)),
            task.seeds,
            inputs=INPUTS,
            rate=self.rate,
        )


@dataclass(frozen=True, kw_only=True)
class UnitAngles(Quadratic):
    """Figure 5a: outgoing weights of hidden units turn towards their feedback."""

    examples: int = 30_000  # [R]

    @property
    def conditions(self) -> tuple[str, ...]:
        """One rule."""
        return ("fa",)

    def steps(self, data: ImageData | None) -> Mapping[str, int]:
        """Examples."""
        return {"examples": self.examples}

    def run(self, task: Task) -> Record:
        """All seeds at once, as copies of one network."""
        pairs, students = self.students(task)
        x, y = pairs.held_out(500)
        # [R] which units; the same of every network.
        sample = torch.randperm(HIDDEN, generator=torch.Generator().manual_seed(5))[:UNITS]

        def measure() -> dict[str, list[float]]:
            found = unit_angles(students.weight("2"), students.feedback("2"))
            each = {f"{UNIT} {j}": found[:, j].tolist() for j in sample.tolist()}
            return {ERROR: normalized_squared_error(students.outputs(x), y), ANGLE: found.mean(1).tolist(), **each}

        examples = task.lengths["examples"]
        found = course(
            task,
            examples,
            learn=lambda step: students.learn(*pairs(step)),
            measure=measure,
            at=spread(examples, 60),
            parts=students.parts,
        )
        return Record(curves=found)

    @override
    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        if "fa" not in records:
            return Outcome()
        curves = records["fa"].curves
        mean, error = curves[ANGLE].values, curves[ERROR].values
        units = {name: curve.values for name, curve in curves.items() if name.startswith(UNIT)}
        fell = float(np.mean([values[:, -1] < values[:, 0] for values in units.values()]))
        claims = [
            Claim(
                "The angles start at about 90 degrees",
                bool(abs(mean[:, 0].mean() - 90) < 5),
                f"{mean[:, 0].mean():.1f}, mean over the {HIDDEN} units and over seeds",
            ),
            Claim(
                "They fall as W aligns with B",
                bool(mean[:, -1].mean() < mean[:, 0].mean() - 20),
                f"{mean[:, -1].mean():.1f} at the end; of {UNITS} units sampled in each network {100 * fell:.0f} % fell",
            ),
            Claim(
                "Meanwhile the network learns",
                bool(error[:, -1].mean() < error[:, 0].mean() / 2),
                f"normalized squared error from {error[:, 0].mean():.2g} to {error[:, -1].mean():.2g}",
            ),
        ]
        rows = [Row(f"{ANGLE}, at the end", curves[ANGLE].last, unit="°"), Row(f"final {ERROR}", curves[ERROR].last)]
        # One network's units, as in the paper; bands over networks would hide them.
        lines = [Line(label=name, x=curves[name].x, y=values[0].tolist()) for name, values in [*units.items()][:5]]
        panels = [
            Panel(title="angles of five units", x="examples", y="angle of W to B, °", lines=lines, low=0, marks=(90,)),
            Panel(
                title="all units",
                x="examples",
                y="angle of W to B, °",
                lines=[Line.of("mean over units", curves[ANGLE])],
                low=0,
                marks=(90,),
            ),
            Panel(title="learning curve", x="examples", y=ERROR, lines=[Line.of("fa", curves[ERROR])], log_y=True),
        ]
        return Outcome(rows=rows, claims=claims, panels=panels)


def ends(curve: Curve, bounds: list[int]) -> np.ndarray:
    """A curve's values at the bounds of the phases: [seeds, bounds]."""
    x = np.asarray(curve.x)
    return curve.values[:, [int(np.argmin(np.abs(x - bound))) for bound in bounds]]


@dataclass(frozen=True, kw_only=True)
class Phases(Quadratic):
    """Figure 5c: W_0 alone learns, then W alone, then W_0 alone.

    Args:
        phases: examples in each.
    """

    phases: tuple[int, int, int] = (4000, 4000, 4000)  # [R]

    @property
    def conditions(self) -> tuple[str, ...]:
        """The figure, and the same without its first phase, in which W_0 then stands still."""
        return ("three phases", "without phase 1")

    def steps(self, data: ImageData | None) -> Mapping[str, int]:
        """Examples in each phase."""
        return {f"phase {number}": length for number, length in enumerate(self.phases, 1)}

    def run(self, task: Task) -> Record:
        """All seeds at once, as copies of one network."""
        pairs, students = self.students(task)
        x, y = pairs.held_out(500)
        bounds = np.cumsum([0, *task.lengths.values()]).tolist()
        still: dict[int, tuple[str, ...]] = {0: ("2",), 1: ("0",), 2: ("2",)}
        if task.condition == "without phase 1":
            still[0] = ("0", "2")
        now = -1

        def learn(step: int) -> None:
            nonlocal now
            phase = sum(step >= bound for bound in bounds[1:-1])
            if phase != now:
                Students.freeze(students.copies.model, still[phase])
                now = phase
            if len(still[phase]) < 2:
                students.learn(*pairs(step))

        def measure() -> dict[str, list[float]]:
            found = unit_angles(students.weight("2"), students.feedback("2"))
            return {ERROR: normalized_squared_error(students.outputs(x), y), ANGLE: found.mean(1).tolist()}

        found = course(
            task, bounds[-1], learn=learn, measure=measure, at=[*spread(bounds[-1], 60), *bounds], parts=students.parts
        )
        return Record(curves=found, arrays={"bounds": bounds})

    @override
    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        rows, claims = [], []
        for name, record in records.items():
            error = ends(record.curves[ERROR], record.arrays["bounds"])
            rows += [
                Row(
                    f"fraction of the error left by phase {phase}, {name}",
                    (error[:, phase] / error[:, phase - 1]).tolist(),
                )
                for phase in (1, 2, 3)
            ]
        if "three phases" in records:
            record = records["three phases"]
            error, angle = (ends(record.curves[key], record.arrays["bounds"]) for key in (ERROR, ANGLE))
            left = (error[:, 1:] / error[:, :-1]).mean(0)
            claims += [
                Claim(
                    "Phase 1: error driven through B hardly reduces the loss",
                    bool(left[0] > 0.9),
                    f"{left[0]:.2f} of the error is left",
                ),
                Claim(
                    "Phase 2: B's information passes from W_0 into W, which turns towards B",
                    bool(angle[:, 2].mean() < angle[:, 1].mean() - 5),
                    f"mean angle per unit from {angle[:, 1].mean():.1f} to {angle[:, 2].mean():.1f} degrees",
                ),
                Claim(
                    "Phase 3: error driven through B has become effective for the hidden layer",
                    bool(left[2] < 0.9 and left[2] < left[0]),
                    f"{left[2]:.2f} of the error of phase 2 is left",
                ),
            ]
        if len(records) == 2:
            left = {
                name: float((error[:, 3] / error[:, 2]).mean())
                for name, record in records.items()
                for error in [ends(record.curves[ERROR], record.arrays["bounds"])]
            }
            claims.append(
                Claim(
                    "Without phase 1 the third phase is not as effective (our control)",
                    left["without phase 1"] > left["three phases"],
                    f"{left['without phase 1']:.2f} of the error is left, against {left['three phases']:.2f}",
                )
            )
        panels = [
            Panel(title=title, x="examples", y=key, lines=self._lines(records, key), low=low, marks=marks)
            for title, key, low, marks in (("c", ERROR, 0, ()), ("angles", ANGLE, None, (90,)))
        ]
        return Outcome(rows=rows, claims=claims, panels=panels)

    @staticmethod
    def _lines(records: Mapping[str, Record], key: str) -> list[Line]:
        return [Line.of(name, one.curves[key], dashed=name != "three phases") for name, one in records.items()]


READINGS = (
    "The target is y*_k = x Q_k x^T, the quadratic form that needs one matrix for each output; its formula is lost.",
    "Ranges, rate and lengths were manually selected and are not printed; ours by training error and the shape of the curves.",
)
FIG5A = UnitAngles(
    name="lillicrap2016/fig5a",
    title="Outgoing weights of hidden units align with their feedback",
    source="Figure 5a; Methods, quadratic function",
    length="30000 examples",
    seeds=20,
    minutes=5,
    rate=3e-4,  # [R]
    hidden=1.0,  # [R]
    output=0.1,  # [R]
    feedback=1.0,  # [R]
    readings=(
        *READINGS,
        "Also tried, one network each, 20000 examples: W_0 from U[-0.1, 0.1] or U[-0.3, 0.3] and W from U[-0.01, 0.01] to "
        "U[-0.1, 0.1] at rates 3e-4 to 1e-3, B from U[-0.5, 0.5] or U[-1, 1]. The mean angle then rises above 90 degrees (to "
        "100 to 120) before it falls, sooner and further (to 51 to 64 degrees). With B from U[-0.02, 0.02] little is learned.",
    ),
)
FIG5C = Phases(
    name="lillicrap2016/fig5c",
    title="The feedback's information passes through W0 into W, and makes errors effective",
    source="Figure 5c",
    length="three phases of 4000 examples",
    seeds=20,
    minutes=4,
    rate=1e-3,  # [R]
    hidden=0.5,  # [R]
    output=0.01,  # [R]
    feedback=0.5,  # [R]
    readings=(
        *READINGS,
        "Also tried, one network each: W_0 from U[-0.1, 0.1], B from U[-0.2, 0.2], rates 1e-4 and 3e-4. Phases of 4000 examples "
        "are then too short to see much (at 1e-4 no phase reduces the error by more than 5 percent).",
    ),
)

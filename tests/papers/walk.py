"""An experiment that takes no time."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from apical.papers import Claim, Experiment, Line, Outcome, Panel, Published, Record, Row
from apical.papers.course import course, spread


@dataclass(frozen=True, kw_only=True)
class Walk(Experiment):
    """A random walk in place of a network."""

    calls: list = field(default_factory=list, compare=False)
    long: int = 1
    only: tuple[str, ...] = ("slow", "quick")

    @property
    def conditions(self):
        return self.only

    def steps(self, data):
        return {"steps": 400 * self.long, "warm-up steps": 40 * self.long}

    def run(self, task):
        self.calls.append((task.condition, task.seeds))
        state = torch.nn.Parameter(torch.zeros(len(task.seeds)), requires_grad=False)
        own = torch.Generator().manual_seed(task.seeds[0])
        module = torch.nn.ParameterList([state])

        def learn(step):
            state.add_(torch.randn(len(task.seeds), generator=own) + 0.1 * torch.rand(1))

        torch.manual_seed(3)
        found = course(
            task,
            task.lengths["steps"],
            learn=learn,
            measure=lambda: {"place": state.tolist()},
            at=spread(task.lengths["steps"], 8),
            parts={"module": module, "own": own},
        )
        return Record(curves=found, numbers={"end": found["place"].last})

    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        return Outcome(
            rows=[Row(name, record.numbers["end"], Published(0.5, 100.0)) for name, record in records.items()],
            claims=[Claim("it moves", True, "it did")],
            panels=[Panel(title="a", lines=[Line.of(name, r.curves["place"]) for name, r in records.items()])],
        )


def walk(**options):
    return Walk(
        name="lillicrap2016/walk", title="A walk", source="Nowhere", length="400 steps", seeds=3, minutes=0.1, **options
    )

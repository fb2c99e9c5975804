"""Tables 2 and 3: the convolutional network on whitened images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from typing_extensions import override

import apical
from apical.data import ImageData
from apical.losses import binary_cross_entropy
from apical.networks import nokland2016_conv
from apical.papers import vision
from apical.papers.claims import Statement, judge
from apical.papers.experiment import Experiment, Rows, Task, given
from apical.papers.nokland2016.conv.whitening import whitening
from apical.papers.nokland2016.tables import RULES, Cell
from apical.papers.nokland2016.training import BATCH, EPOCHS, STOP
from apical.papers.outcome import Claim, Line, Outcome, Panel, Published, Row
from apical.papers.record import Record
from apical.papers.vision import Recipe, Training

STATEMENTS = (
    Statement(
        "BP has less error than FA and DFA (so it is in the table)",
        ("bp", "fa", "dfa"),
        lambda bp, fa, dfa: _all(vision.below(bp, fa), vision.below(bp, dfa)),
        lambda bp, fa, dfa: vision.listed({"bp": bp, "fa": fa, "dfa": dfa}),
        kind="derived",
    ),
    Statement(
        "FA and DFA perform alike (here: within 1 %; the table has 0.2 % on CIFAR-10 and 1.5 % on CIFAR-100)",
        ("fa", "dfa"),
        lambda fa, dfa: abs(vision.average(fa) - vision.average(dfa)) <= 1,
        lambda fa, dfa: vision.listed({"fa": fa, "dfa": dfa}),
        kind="derived",
    ),
)


def _all(*found: bool | None) -> bool | None:
    return False if False in found else None if None in found else True


@dataclass(frozen=True, kw_only=True)
class Convolutional(Experiment):
    """CONV by three rules: RMSprop, batch 64, logistic outputs, no dropout; until the training error is gone.

    Args:
        rate: of RMSprop. cells: rule -> what the table prints. epochs: at most.
    """

    rate: float
    cells: Mapping[str, Cell]
    epochs: int = EPOCHS

    @property
    @override
    def conditions(self) -> tuple[str, ...]:
        return RULES

    @override
    def steps(self, data: ImageData | None) -> Mapping[str, int]:
        return {"steps": self.epochs * vision.with_data(given(data), BATCH)}

    @override
    def run(self, task: Task) -> Record:
        (seed,) = task.seeds
        with vision.repeatable(seed):
            return self._run(task, seed)

    def _run(self, task: Task, seed: int) -> Record:
        data, rule = task.data, task.condition
        model = vision.seeded(seed, lambda: nokland2016_conv(data.classes, data.shape[0], zero=rule != "bp"))
        chosen = apical.rule("bp") if rule == "bp" else apical.rule(rule, init="nokland2016")
        example = data.train.batch(torch.arange(2))[0]
        apical.attach(model, chosen, example_input=example, generator=vision.feedback_stream(seed))
        recipe = Recipe(loss=binary_cross_entropy, batch=BATCH, summed=True, prepared=whitening(data.train), stop=STOP)
        optimizer = torch.optim.RMSprop(model.parameters(), lr=self.rate, alpha=0.99, eps=1e-8)
        training = Training(model, optimizer, recipe, data.train, task.seeds, task.precision)
        curves = vision.run(task, training, task.lengths["steps"], {"test": data.test})
        return Record(
            curves=curves,
            numbers={"test error": curves["test error"].last, "train error": curves["training error"].last},
        )

    @override
    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        rows = []
        for rule, record in records.items():
            cell = self.cells[rule]
            known = Published(0.0, to=0.1, tag=cell.tag) if cell.train is None else Published(cell.train, tag=cell.tag)
            rows += [
                Row(
                    f"{rule}: test error",
                    record.numbers["test error"],
                    Published(cell.test, cell.spread, cell.tag),
                    "%",
                    1.0,
                ),
                Row(f"{rule}: train error", record.numbers["train error"], known, "%", 0.1),
            ]
        lines = {
            name: [Line.of(rule, one.curves[f"{name} error"]) for rule, one in records.items()]
            for name in ("training", "test")
        }
        panels = [Panel(title=f"{name} error", x="epochs", y="error (%)", lines=own) for name, own in lines.items()]
        tests = {rule: one.numbers["test error"] for rule, one in records.items()}
        return Outcome(rows=rows, claims=judge(STATEMENTS, tests), panels=panels)

    @override
    def claims_of(self, rows: Rows) -> list[Claim] | None:
        tests = {rule: rows[f"{rule}: test error"] for rule in RULES if f"{rule}: test error" in rows}
        return judge(STATEMENTS, tests) if tests else None


OPEN = (
    "The network's sizes are the released code's; no dropout, which the row does not name.",
    "Images from 0 to 1 are whitened by ZCA with 1e-5 added to the eigenvalues of the training images' covariance, the default "
    "of the tool that the released code uses.",
    "The cost is summed over outputs and the batch: released code.",
    "The training error is that of the minibatches as they are learned from; training stops when its mean over epochs, "
    "0.75 old + 0.25 new and 1 at first, is at most 0.01 %: released code.",
    "The spread's meaning and the number of runs are not stated; it is taken for a standard error.",
    "For FA and DFA all weights and biases start at zero as the paper says; in the released code FA's first layer does not.",
    "B is drawn from U(±1/sqrt(n)), n the values that the signal arrives at (for FA the fan in), as in the released code; the "
    "paper prints 1/sqrt(fan out). Direct signals arrive after max-pooling.",
)

TABLE2_CONV = Convolutional(
    name="nokland2016/table2-conv",
    title="CIFAR-10 by three rules, convolutional",
    source="Table 2, CONV",
    length="until the training error is 0.01 %, at most 300 epochs",
    seeds=1,
    minutes=54000,
    data="uoft-cs/cifar10",
    together=False,
    precisions=vision.PRECISIONS,
    readings=(*OPEN, "The rate is the released code's, 5e-5."),
    rate=5e-5,
    cells={"bp": Cell(22.5, 0.4), "fa": Cell(27.1, 0.8, 0.9), "dfa": Cell(26.9, 0.5, 0.2)},
)
TABLE3_CONV = Convolutional(
    name="nokland2016/table3-conv",
    title="CIFAR-100 by three rules, convolutional",
    source="Table 3, CONV",
    length="until the training error is 0.01 %, at most 300 epochs",
    seeds=1,
    minutes=54000,
    data="uoft-cs/cifar100",
    together=False,
    precisions=vision.PRECISIONS,
    readings=(*OPEN, "The rate is the released code's, 2.5e-5.", "BP's cell is from memory."),
    rate=2.5e-5,
    cells={"bp": Cell(51.7, 0.2, tag="M"), "fa": Cell(60.5, 0.3), "dfa": Cell(59.0, 0.3)},
)

"""`apical audit`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from rich.table import Table
from rich.text import Text

from apical.checks import check_seed
from apical.cli.terminal import console
from apical.training.config import Recipe

STYLES = {"nothing": "green", "signs": "yellow", "normalization scale": "yellow", "weights": "red"}


@dataclass(frozen=True)
class Audit:
    """Prove, layer by layer, what a rule transports on a network: nothing, signs, normalization scales or weights.

    While the forward pass computes with clean weights, every other reader of them sees NaN; what suffers had read them.

    Try:
      apical audit --rule fa
      apical audit --rule usf --network resnet20 --data ylecun/mnist
      apical audit --rule kp --network my_models.py:make_net --data path/to/folder
    """

    rule: str = "fa"
    """A rule, with options after a colon."""
    data: str = "digits"
    """Data set: digits, a hub name or a folder."""
    network: str = "64-100-50-10"
    """Sizes, a named network, or module:function of your own."""
    activation: str = "tanh"
    """Between the layers of a network given by sizes."""
    loss: Literal["cross-entropy", "binary-cross-entropy", "squared-error", "hinge"] = "cross-entropy"
    """The loss whose error is sent back."""
    seed: int = 0
    """Of weights and feedback."""

    def run(self) -> None:
        """Audit."""
        from apical import data as images
        from apical.losses import LOSSES
        from apical.measures.audit import audit
        from apical.training.options import rule_of
        from apical.training.setup import make

        rule = rule_of(self.rule)
        check_seed("seed", self.seed)
        data = images.load(self.data)
        recipe = Recipe(data=self.data, network=self.network, activation=self.activation, loss=self.loss)
        _, learner = make(recipe, rule, self.seed, data)
        x, y = data.train.batch(torch.arange(min(8, len(data.train))))
        report = audit(learner, x, y, LOSSES[self.loss])
        table = Table(title=f"{rule.title} on {self.network}: what is transported", title_justify="left")
        table.add_column("layer", style="bold")
        table.add_column("kind")
        table.add_column("transported")
        for name, kind in report.transported.items():
            module = learner.model if name == "(model)" else learner.model.get_submodule(name)
            table.add_row(name, type(module).__name__.removesuffix("Synapse"), Text(kind, STYLES[kind]))
        console.print(table)
        console.print(Text.assemble("in all: ", (report.summary, STYLES.get(report.summary, "red"))))
        if report.broadcast:
            console.print(f"broadcast: {report.broadcast}")

"""`apical rules`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.table import Table

from apical.cli.terminal import console


@dataclass(frozen=True)
class Rules:
    """List the learning rules, or show one with its hyperparameters and what to cite.

    Try:
      apical rules
      apical rules urfb
    """

    name: Annotated[str | None, tyro.conf.Positional] = None
    """A rule to show; all of them if left out."""

    def run(self) -> None:
        """List."""
        if self.name is not None:
            self._one(self.name)
            return
        from apical.rules import rules

        table = Table(title="Rules", title_justify="left")
        for column in ("name", "title", "pathway", "feedback is", "source"):
            table.add_column(column, style="bold" if column == "name" else None)
        for rule in rules().values():
            table.add_row(rule.name, rule.title, rule.pathway.name, rule.plasticity.name, ", ".join(rule.cites))
        console.print(table)
        console.print("More on one: apical rules NAME")

    def _one(self, name: str) -> None:
        from apical.training.options import rule_of

        rule = rule_of(name)
        console.print(f"[bold]{rule.name}[/]: {rule.title}", markup=True)
        console.print(f"  pathway: {rule.pathway.name}; feedback: {rule.plasticity.name}")
        options = ", ".join(f"{key}={value!r}" for key, value in rule.hyperparameters.items())
        console.print(f"  hyperparameters: {options or 'none'}")
        if rule.weight_decay:
            console.print(
                f"  weight decay of its paper: {rule.weight_decay:g}, by the optimizer, equal for weights and feedback"
            )
        where = f" ({rule.where})" if rule.where else ""
        for citation in rule.citations:
            console.print(f"  cite: {citation}", highlight=False)
        if where:
            console.print(f"  where: {rule.where}")

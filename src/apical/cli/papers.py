"""`apical papers`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from apical.cli.terminal import console, line


@dataclass(frozen=True)
class Papers:
    """List the papers' experiments: what `apical reproduce` can run, and what it takes.

    Try:
      apical papers
      apical papers --pages docs/results
    """

    pages: Path | None = None
    """Write the pages of what was published into this folder (with reproduce --publish) anew, and list nothing."""
    judge: bool = False
    """With --pages: first judge what was published by the statements as they are now, where its rows suffice."""

    def run(self) -> None:
        """List."""
        if self.pages is not None:
            from apical.report.papers import results

            for path in results.judge(self.pages) if self.judge else ():
                line(f"judged: {path}")
            for page in results.pages(self.pages):
                line(f"page: {page}")
            return
        if self.judge:
            raise ValueError("--judge goes with --pages FOLDER, which holds the results to judge")
        from apical.papers import PAPERS, experiments

        table = Table(title="apical reproduce ID", title_justify="left", show_header=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        for paper in PAPERS:
            for one in experiments().values():
                if one.paper == paper:
                    seeds = f"{one.seeds} seed{'s' if one.seeds > 1 else ''}"
                    facts = f"{one.length}; {seeds}; {duration(one.minutes)} on two cores; data {one.data or 'drawn'}"
                    table.add_row(one.name, Text.assemble(f"{one.title}\n", (facts, "dim")))
            table.add_section()
        console.print(table)


def duration(minutes: float) -> str:
    """A duration in words that fit a column.

    >>> duration(0.2), duration(12), duration(90), duration(6000)
    ('seconds', '12 min', '1.5 h', '4.2 days')
    """
    if minutes < 1:
        return "seconds"
    if minutes < 60:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.2g} h" if minutes < 2880 else f"{minutes / 1440:.2g} days"

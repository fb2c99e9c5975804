"""`apical reproduce`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.progress import Progress
from rich.table import Table

from apical.cli.terminal import check_resumed, config_in, console, errors, line, new_folder, progress, resumable, slug
from apical.distributed import rank

if TYPE_CHECKING:
    from apical.papers.experiment import Watcher


@dataclass(frozen=True)
class Reproduce:
    """Run an experiment of one of the papers, and set what comes out beside what was published.

    Try:
      apical papers
      apical reproduce lillicrap2016/fig2a
      apical reproduce akrout2019/code-mnist --scale 0.05 --seeds 1
    """

    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="ID")] = None
    """Which experiment; `apical papers` lists them."""
    seeds: int | None = None
    """How many seeds. None: as many as the experiment has at full length."""
    first_seed: int = 0
    """The first seed."""
    scale: float = 1.0
    """Fraction of the paper's length; printed on every table and figure made with it."""
    only: tuple[str, ...] = ()
    """Some of the experiment's conditions (rules, rows of a table). None given: all."""
    data: str | None = None
    """Hub name or folder of the images. None: the data set of the paper by its hub name."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Of the passes through the network, of experiments that have a choice: those on convolutional networks."""
    folder: Path | None = None
    """Where to leave everything. None: a new folder under runs/."""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Finish the experiment in this folder; every other option but --publish is read from it."""
    using: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Take finished conditions from the folder of another experiment of the same runs (fig2a from fig2), with the same --data,
    --seeds and --scale."""
    overwrite: bool = False
    """Delete the files of the experiment in --folder first, if there is one; others in it stay."""
    publish: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Also put outcome and figure into this folder of results (docs/results), unless a longer run is there."""

    def run(self) -> None:
        """Reproduce."""
        from apical.papers import find
        from apical.papers.reproduce import KEYS, reproduce
        from apical.report.papers import paper, results

        options: dict[str, Any] = {
            "seeds": self.seeds,
            "first_seed": self.first_seed,
            "scale": self.scale,
            "data": self.data,
            "only": self.only,
            "using": self.using,
            "precision": self.precision,
        }
        if self.resume is not None:
            folder, kept = (
                self.resume,
                config_in(self.resume, "reproduce", (*KEYS, "precision"), {"precision": "32-true"}),
            )
            chosen = find(kept["experiment"])
            if self.name is not None and find(self.name) is not chosen:
                raise ValueError(f"--resume: folder {folder} holds {chosen.name}, not {self.name}; leave the ID out")
            own = {
                "seeds": len(kept["seeds"]),
                "first_seed": kept["seeds"][0],
                "scale": kept["scale"],
                "data": kept["data"],
                "only": kept["conditions"],
                "precision": kept["precision"],
            }
            same = set(self.only) == set(kept["conditions"])  # In whatever order.
            asked = {**options, "only": kept["conditions"] if same else self.only}
            check_resumed(self, asked, own, {one.name: one.default for one in fields(self)})
            options = own
        elif self.name is None:
            raise ValueError("which experiment? give its ID; `apical papers` lists them")
        else:
            chosen = find(self.name)
            folder = new_folder(self.folder, slug(chosen.name))
        with progress() as display, resumable("reproduce", folder, resumes=self.resume is not None):
            outcome = reproduce(
                chosen,
                folder,
                **options,
                resume=self.resume is not None,
                overwrite=self.overwrite,
                announce=lambda condition, seeds: _watch(display, condition, seeds),
            )
        if rank():
            return
        for part in tables(outcome):
            console.print(part)
        line(f"report: {paper.write(folder)}")
        if self.publish is not None:
            line(f"published: {results.publish(folder, self.publish)}")


def _watch(display: Progress, condition: str, seeds: Any) -> Watcher:
    which = f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds"
    line = display.add_task(f"{condition}, {which}", total=None, note="", visible=False)
    told = errors.is_terminal

    def watcher(done: int, steps: int, note: str) -> None:
        nonlocal told
        display.update(line, completed=done, total=steps, note=note, visible=done < steps)
        if done >= steps and not told:
            told = True
            errors.print(f"{condition}, {which}: done", highlight=False)

    return watcher


def tables(outcome: dict[str, Any]) -> list[Table]:
    """The tables of an outcome for the terminal: our numbers beside the published ones, then the paper's claims."""
    from apical.report.papers.paper import extent, number, printed, verdict

    made = []
    shows = outcome["shows"]
    if shows["rows"]:
        table = Table(title=f"{outcome['experiment']}: {outcome['title']}, {extent(outcome)}", title_justify="left")
        table.add_column("", style="bold")
        table.add_column("ours", justify="right", no_wrap=True)
        table.add_column("published", justify="right", no_wrap=True)
        table.add_column("agrees")
        for row in shows["rows"]:
            theirs = row["published"]
            published = "" if theirs is None else printed(theirs, row["unit"])
            agrees = "" if row["agrees"] is None else verdict(row["agrees"], outcome["scale"])
            table.add_row(row["label"], number(row["mean"], row["sem"], row["unit"]), published, agrees)
        made.append(table)
    if shows["claims"]:
        table = Table(title=f"{outcome['experiment']}: claims, {extent(outcome)}", title_justify="left")
        table.add_column("claim")
        table.add_column("whose")
        table.add_column("holds here", style="bold")
        table.add_column("evidence")
        for claim in shows["claims"]:
            held = verdict(claim["holds"], outcome["scale"], claim["kind"])
            table.add_row(claim["text"], claim["kind"], held, claim["evidence"])
        made.append(table)
    return made

"""`apical speedrun`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table

from apical.cli.compare import carried_out, kept_in, told
from apical.cli.terminal import check_resumed, console, line, new_folder
from apical.comparison.speedrun import HEAD, SpeedrunConfig, cells


@dataclass(frozen=True)
class Speedrun:
    """CIFAR-10 to 94 % test accuracy without weight transport, as fast as it can be had: one network and recipe, several rules.

    It is a comparison with a fixed recipe: minutes a run on two CPU cores, seconds on a GPU. Killed or stopped at any moment, it
    goes on with --resume FOLDER.

    Try:
      apical speedrun
      apical speedrun --rules bp kp --seeds 5 --page docs/results/speedrun.md --json docs/results/speedrun.json
      apical speedrun --data path/to/cifar10 --images 512 --epochs 1 --seeds 1
    """

    config: tyro.conf.OmitArgPrefixes[SpeedrunConfig] = field(default_factory=SpeedrunConfig)
    folder: Path | None = None
    """Where to leave everything. None: a new folder under runs/."""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Finish the speed-run in this folder; every option of the run is read from it."""
    overwrite: bool = False
    """Delete the files of the run in --folder first, if there is one; others in it stay."""
    json: Path | None = None
    """Also write all figures, with machine, versions, command and date, to this file."""
    page: Path | None = None
    """Also write them as a page of Markdown."""
    time_steps: bool = True
    """Measure each rule's time per step against plain PyTorch when all runs are done (a minute or two)."""

    captured: bool = True
    """On a GPU, take each step as one CUDA graph where that can be: the same numbers, sooner."""

    def run(self) -> None:
        """Run."""
        from apical.comparison.speedrun import figures, page
        from apical.files import write_json, write_text

        for option, path in (("json", self.json), ("page", self.page)):
            if path is not None and path.is_dir():
                raise ValueError(f"--{option}: {path} is a folder; name a file")
        config = self.config.comparison()
        if self.resume is not None:
            config, kept = kept_in(self.resume)
            check_resumed(self, asdict(self.config), kept, asdict(SpeedrunConfig()))
        folder = self.resume or new_folder(self.folder, "speedrun")
        comparison = carried_out(self, config, folder, "speedrun")
        found = figures(comparison, folder)
        console.print(table(found))
        if self.json is not None:
            write_json(self.json, found)
        if self.page is not None:
            write_text(self.page, page(found))
        told(comparison, folder)
        line(f"run folder: {folder}")


def table(found: dict[str, Any]) -> Table:
    """The figures as a table for the terminal."""
    result = Table(title=f"{found['data']['name']}, {found['config']['epochs']} epochs", title_justify="left")
    for number, name in enumerate(HEAD):
        right = 0 < number < len(HEAD) - 1
        result.add_column(name, justify="right" if right else "left", overflow="fold", min_width=min(12, len(name)))
    for row in found["rows"]:
        result.add_row(*cells(row))
    return result

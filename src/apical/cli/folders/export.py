"""`apical export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from apical.cli.terminal import console, line


@dataclass(frozen=True)
class Export:
    """Write a trained network's weights to a file that plain PyTorch reads: its state dict, without feedback.

    Try:
      apical train --rule kp --folder runs/kp
      apical export runs/kp kp.pt

    In Python, apical.load("runs/kp") gives learner and network back, with feedback.
    """

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a run of `apical train`, or of one of a comparison's (runs/...)."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The file to write, as model.pt."""
    best: bool = False
    """The network that --best-by has kept, not the last."""
    overwrite: bool = False
    """Let a file go that is there already."""

    def run(self) -> None:
        """Export."""
        from apical.training.run_folder import RunFolder
        from apical.training.trained.export import export
        from apical.training.trained.load import config_of

        model = export(self.run_folder, self.out, best=self.best, overwrite=self.overwrite)
        weights = sum(one.numel() for one in model.parameters())
        config = config_of(RunFolder(self.run_folder))
        console.print(f"{config.network}, {config.rule}, seed {config.seed}: {weights:,} parameters", highlight=False)
        line(f'read it with: model.load_state_dict(torch.load("{self.out}", weights_only=True))')

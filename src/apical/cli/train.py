"""`apical train`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated

import tyro

from apical.cli.terminal import (
    check_resumed,
    config_in,
    console,
    line,
    new_folder,
    progress,
    resumable,
    settings_of,
    slug,
    told_splits,
    watch,
)
from apical.training.config import TrainConfig
from apical.training.stopping import Interrupted


@dataclass(frozen=True)
class Train:
    """Train one network by one rule, and leave a run folder: config.json, metrics.jsonl, checkpoint/, result.json.

    A killed or stopped run goes on with --resume FOLDER and ends bit-identical to one that was never stopped.

    Try:
      apical train --rule dfa
      apical train --rule kp --data ylecun/mnist --network 784-800-800-10 --optimizer RMSprop --learning-rate 1e-4
      apical train --rule fa --network my_models.py:make_net --data path/to/folder
    """

    config: tyro.conf.OmitArgPrefixes[TrainConfig] = field(default_factory=TrainConfig)
    folder: Path | None = None
    """Where to leave the run. None: a new folder under runs/."""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Go on with the run in this folder; every other option is read from it."""
    overwrite: bool = False
    """Delete the files of the run in --folder first, if there is one; others in it stay."""

    captured: bool = True
    """On a GPU, take each step as one CUDA graph where that can be: the same numbers, sooner."""

    def run(self) -> None:
        """Train."""
        from apical.training.train import train

        config, folder = self.config, self.resume
        if folder is not None:
            kept = config_in(folder, "train", [one.name for one in fields(TrainConfig)], TrainConfig.later())
            check_resumed(self, asdict(config), kept, asdict(TrainConfig()))
            with settings_of(folder):
                config = TrainConfig(**kept)
        else:
            kind = f"{slug(config.data)}-{slug(config.rule)}-{config.seed}"
            folder = new_folder(self.folder, kind)
        with progress() as display, resumable("train", folder, resumes=self.resume is not None):
            watcher = watch(display, f"{config.rule}, seed {config.seed}")
            try:
                result = train(
                    config,
                    folder,
                    resume=self.resume is not None,
                    overwrite=self.overwrite,
                    watcher=watcher,
                    captured=self.captured,
                )
            except Interrupted as error:
                error.args = (f"{error}: apical train --resume {folder}",)
                raise
        console.print(
            f"test error [bold]{result['test_error']:.2f} %[/] after {result['steps']:,} steps, {result['seconds']:.1f} s",
            markup=True,
        )
        if "test_bits_per_byte" in result:
            line(f"test loss {result['test_loss']:.3f} nats per byte, {result['test_bits_per_byte']:.3f} bits")
        if "validation_error" in result:
            console.print(f"validation error [bold]{result['validation_error']:.2f} %[/]", markup=True)
        if "splits" in result:
            line(told_splits(result["splits"]))
        for name, measured in (result["alignment"] or {}).items():
            if measured["delta_angle"] is not None:
                console.print(f"  {name}: delta angle to backpropagation {measured['delta_angle']:.1f}°")
        line(f"run folder: {folder}")

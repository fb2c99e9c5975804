"""`apical benchmark`."""

from __future__ import annotations

import datetime
import json
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro

import apical
from apical.benchmark.benchmark import BenchmarkConfig
from apical.cli.terminal import console, errors


@dataclass(frozen=True)
class Benchmark:
    """Time a whole training step of each rule against plain PyTorch backpropagation, and compare peak memory.

    Same network, weights, batch and optimizer; contenders take turns; medians of ratios. Let nothing else run meanwhile.

    Try:
      apical benchmark
      apical benchmark --networks 784-800-800-10 --rules fa dfa kp --seconds 60 --json figures.json
    """

    config: tyro.conf.OmitArgPrefixes[BenchmarkConfig] = field(default_factory=BenchmarkConfig)
    json: Path | None = None
    """Also write all figures, with machine, versions and date, to this file."""

    figure: Path | None = None
    """Also draw all ratios into this SVG."""
    read: Path | None = None
    """Time nothing; draw --figure from the --json of an earlier run."""

    def run(self) -> None:
        """Measure."""
        from apical.benchmark.benchmark import run, table
        from apical.files import write_json
        from apical.training.machine import machine

        for option, path in (("json", self.json), ("figure", self.figure)):
            if path is not None and path.is_dir():
                raise ValueError(f"--{option}: {path} is a folder; name a file")
        if self.figure is not None and self.figure.suffix.lower() != ".svg":
            raise ValueError(f"--figure: only SVG can be drawn, got {self.figure}; give a name that ends in .svg")
        if self.read is not None:
            if self.figure is None or self.json is not None:
                raise ValueError(
                    "--read goes with --figure and without --json: it draws what an earlier run has written"
                )
            self._draw(_written(self.read))
            return
        with errors.status("") as status:
            found = run(self.config, lambda network: status.update(f"timing {network}"))
        console.print(table(found))
        threads = self.config.threads or torch.get_num_threads()
        console.print(
            f"{machine()}; PyTorch {torch.__version__} with {threads} threads, float32, {self.config.optimizer}"
            + (", local updates against the fastest plain SGD" if self.config.local else "")
        )
        document = {
            "machine": machine(),
            "threads": threads,
            "date": f"{datetime.date.today()}",
            "versions": {
                "apical": apical.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "config": asdict(self.config),
            "measurements": [m.asdict() for m in found],
        }
        if self.json is not None:
            write_json(self.json, document)
        if self.figure is not None:
            self._draw(document)

    def _draw(self, document: dict[str, Any]) -> None:
        from apical.files import write_text
        from apical.report.costs import costs

        assert self.figure is not None
        write_text(self.figure, costs(document))


def _written(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"--read: {path} can't be read as JSON ({error}); give a file that --json wrote") from error
    if not isinstance(found, dict):
        raise ValueError(f"--read: {path} holds no figures; give a file that --json wrote")
    return found

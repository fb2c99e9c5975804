"""`apical benchmark`."""

from __future__ import annotations

import datetime
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import tyro

import apical
from apical.benchmark import BenchmarkConfig
from apical.commands.terminal import console, errors


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

    def run(self) -> None:
        """Measure."""
        from apical.benchmark import run, table
        from apical.files import write_json
        from apical.training.compare import machine

        if self.json is not None and self.json.is_dir():
            raise ValueError(f"--json: {self.json} is a folder; name a file")
        with errors.status("") as status:
            found = run(self.config, lambda network: status.update(f"timing {network}"))
        console.print(table(found))
        threads = self.config.threads or torch.get_num_threads()
        console.print(
            f"{machine()}; PyTorch {torch.__version__} with {threads} threads, float32, {self.config.optimizer}"
            + (", local updates against the fastest plain SGD" if self.config.local else "")
        )
        if self.json is not None:
            write_json(
                self.json,
                {
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
                },
            )

"""`apical benchmark`."""

from __future__ import annotations

import datetime
import json
import math
import platform
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.table import Table

import apical
from apical.benchmark import BenchmarkConfig, Measurement, Missing, benchmark
from apical.benchmark.steps import PLAIN
from apical.cli.terminal import console, errors
from apical.distributed import check_alone
from apical.synapses.native.building import BuildError, build, library, wanted


@dataclass(frozen=True)
class Benchmark:
    """Time a whole training step of each rule against plain PyTorch backpropagation, and compare peak memory.

    Same network, weights, batch and optimizer; contenders take turns; medians of ratios. Let nothing else run meanwhile.

    Try:
      apical benchmark
      apical benchmark --networks 784-800-800-10 --rules fa dfa kp --seconds 60 --json figures.json
      apical benchmark --device cuda --precision bfloat16 --networks resnet50 --rules fa kp --modes eager captured
    """

    config: tyro.conf.OmitArgPrefixes[BenchmarkConfig] = field(default_factory=BenchmarkConfig)
    json: Path | None = None
    """Also write all figures, with machine, versions and date, to this file."""
    figure: Path | None = None
    """Also draw all ratios into this SVG."""
    read: Path | None = None
    """Time nothing; draw --figure from the --json of an earlier run."""

    def run(self) -> None:
        """Time the steps, print the table, and write the file and the figure that were asked for."""
        from apical.files import write_json

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
            _draw(_written(self.read), self.figure)
            return
        check_alone("a benchmark", "start it without torchrun: processes side by side would slow each other down")
        with errors.status("") as status:
            _built(status.update)
            missing: list[Missing] = []
            found = benchmark.run(self.config, lambda network: status.update(f"timing {network}"), missing)
        console.print(table(found))
        for one in missing:
            errors.print(f"not timed: {one.rule} on {one.network}, {one.mode}: {one.error}", markup=False)
        document = _document(self.config, found, missing)
        console.print(
            f"{document['machine']}; PyTorch {torch.__version__} with {document['threads']} threads, {self.config.precision}, "
            f"{'with' if document['native'] else 'without'} the synapses' node in C++, "
            f"{self.config.optimizer}{', local updates against the fastest plain SGD' if self.config.local else ''}"
        )
        if self.json is not None:
            write_json(self.json, document)
        if self.figure is not None:
            _draw(document, self.figure)


def _built(update: Callable[[str], None]) -> None:
    """The synapses' node in C++ is timed, where it can be built."""
    if wanted() and library() is None:
        update("building the synapses' node in C++, once on this machine (half a minute)")
        try:
            build()
        except BuildError as error:
            errors.print(f"timed without the synapses' node in C++: {error}", markup=False)


def _document(config: BenchmarkConfig, found: list[Measurement], missing: list[Missing]) -> dict[str, Any]:
    """The content of --json: the measurements, and all that they depend on."""
    from apical.machine import machine

    return {
        "machine": machine(),
        "threads": config.threads or torch.get_num_threads(),
        "date": f"{datetime.date.today()}",
        "native": library() is not None,
        "command": shlex.join(["apical", *sys.argv[1:]]),
        "versions": {
            "apical": apical.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "cuda": torch.version.cuda,
        },
        "config": asdict(config),
        "measurements": [m.asdict() for m in found],
        "missing": [asdict(one) for one in missing],
    }


def _draw(document: dict[str, Any], figure: Path) -> None:
    from apical.files import write_text
    from apical.report.costs import costs

    write_text(figure, costs(document))


def _written(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"--read: {path} can't be read as JSON ({error}); give a file that --json wrote") from error
    if not isinstance(found, dict):
        raise ValueError(f"--read: {path} holds no figures; give a file that --json wrote")
    return found


def table(measurements: list[Measurement]) -> Table:
    """The measurements as a table for the terminal: ratios to the plain step, a row per rule and a column per network.

    Peak memory's ratio stands in brackets. The row of the plain step has milliseconds, MiB, and its share of the floor.
    """
    columns = list(dict.fromkeys((m.network, m.mode) for m in measurements))
    rules = list(dict.fromkeys(m.rule for m in measurements))
    result = Table(
        title="Time of a training step / plain PyTorch backpropagation (peak memory / plain)", title_justify="left"
    )
    result.add_column("rule", style="bold")
    for network, mode in columns:
        batch = next(m.batch for m in measurements if m.network == network)
        written = "" if mode == "eager" else f", {mode}"
        # Names that are cut short would look alike.
        result.add_column(f"{network}, {batch}{written}", justify="right", overflow="fold")
    for rule in rules:
        cells = {(m.network, m.mode): m for m in measurements if m.rule == rule}
        row = (_cell(cells[column]) if column in cells else "-" for column in columns)
        result.add_row(rule, *row, end_section=rule == PLAIN)
    return result


def _cell(m: Measurement) -> str:
    if m.rule == PLAIN:
        share = "" if math.isnan(m.share) else f"\n{100 * m.share:.0f} % of floor"
        pace = "" if math.isnan(m.throughput) else f"\n{m.throughput:,.0f} {m.unit}/s"
        return f"{m.timing.milliseconds:.2f} ms\n{m.peak_memory:.{0 if m.peak_memory >= 10 else 1}f} MiB{share}{pace}"
    return f"{m.timing.ratio:.2f} ({m.memory_ratio:.2f})"

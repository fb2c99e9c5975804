"""`apical compare`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table
from rich.text import Text

from apical.cli.terminal import (
    check_resumed,
    command_line,
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
from apical.comparison.config import CompareConfig
from apical.training.session import NonFiniteLossError
from apical.training.stopping import Interrupted

MORE = {"validation_error": "validation error [%]", "test_bits_per_byte": "bits per byte"}
"""Columns of what some comparisons measure: measure -> title."""


@dataclass(frozen=True)
class Compare:
    r"""Train one network under several rules, from several seeds each; print the comparison and write an HTML report.

    Try:
      apical compare
      apical compare --rules bp fa dfa kp --data ylecun/mnist --network 784-800-800-10 --optimizer RMSprop \
          --learning-rate 1e-4 --epochs 5
      apical compare --rules bp urfb urfb:epsilon=0.5 frfb --seeds 5
    """

    config: tyro.conf.OmitArgPrefixes[CompareConfig] = field(default_factory=CompareConfig)
    folder: Path | None = None
    """Where to leave everything. None: a new folder under runs/."""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Finish the comparison in this folder; every other option but --time-steps and --captured is read from it."""
    overwrite: bool = False
    """Delete the files of the comparison in --folder first, if there is one; others in it stay."""
    time_steps: bool = True
    """Measure each rule's time per step against plain backpropagation when all runs are done (seconds)."""

    captured: bool = True
    """On a GPU, take each step as one CUDA graph where that can be: the same numbers, sooner."""

    def run(self) -> None:
        """Compare."""
        config = self.config
        if self.resume is not None:
            resumed, kept = kept_in(self.resume)
            check_resumed(self, asdict(config), kept, asdict(CompareConfig()))
            config = resumed
        folder = self.resume or new_folder(self.folder, f"compare-{slug(config.data)}")
        comparison = carried_out(self, config, folder, "compare")
        console.print(table(comparison))
        told(comparison, folder)


def kept_in(folder: Path) -> tuple[CompareConfig, dict[str, Any]]:
    """The config of the comparison in a folder, which is to go on, and as the file has it."""
    kept = config_in(folder, "compare", [one.name for one in fields(CompareConfig)], CompareConfig.later())
    with settings_of(folder):
        return CompareConfig(**{**kept, "rules": tuple(kept["rules"])}), kept


def carried_out(command: Any, config: CompareConfig, folder: Path, name: str) -> dict[str, Any]:
    """A comparison, begun or gone on with in `folder`, as the command called `name` has it: what comparison.json holds.

    command: with `resume`, `overwrite`, `time_steps` and `captured`.
    """
    from apical.benchmark import step_ratios
    from apical.comparison import compare

    try:
        with progress() as display, resumable(name, folder, resumes=command.resume is not None):
            return compare(
                config,
                folder,
                resume=command.resume is not None,
                overwrite=command.overwrite,
                command=command_line(),
                announce=lambda rule, seeds: watch(display, f"{rule}, {_named(seeds)}"),
                time_steps=step_ratios if command.time_steps else None,
                captured=command.captured,
            )
    except Interrupted as error:
        error.args = (f"the comparison can be resumed: apical {name} --resume {folder}",)
        raise


def told(comparison: dict[str, Any], folder: Path) -> None:
    """Say which runs failed, and write the report.

    Raises:
        NonFiniteLossError: if all did.
    """
    from apical import report

    for run in comparison["runs"]:
        if "failed" in run:
            console.print(Text.assemble((f"{run['rule']}, seed {run['seed']}:", "red"), " ", run["failed"]))
    failed = all("failed" in run for run in comparison["runs"])
    # Where all failed before they had measured anything, there is nothing to draw.
    with suppress(report.ReportError) if failed else nullcontext():
        line(f"report: {report.write(folder)}")
    if failed:
        raise NonFiniteLossError(f"every run failed, so there is nothing to compare; what they left lies in {folder}")


def _named(seeds: Sequence[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"


def table(comparison: dict[str, Any]) -> Table:
    """The comparison as a table for the terminal."""
    data, seeds = comparison["data"], comparison["seeds"]
    plural = "s" if len(seeds) > 1 else ""
    result = Table(title=f"{data['name']}, {comparison['network']}, {len(seeds)} seed{plural}", title_justify="left")
    # Rules with many options are long; they fold before the figures give way.
    result.add_column(
        "rule", style="bold", overflow="fold", min_width=min(12, max(len(r["rule"]) for r in comparison["table"]))
    )
    result.add_column("test error [%]", justify="right", no_wrap=True, min_width=14)
    more = {key: name for key, name in MORE.items() if any(f"{key}_mean" in row for row in comparison["table"])}
    for name in more.values():
        result.add_column(name, justify="right", no_wrap=True, min_width=min(14, len(name)))
    result.add_column("delta angle to bp, layer by layer [°]", justify="right", min_width=12)
    result.add_column("time per step / bp", justify="right", min_width=8)
    result.add_column("what is transported", min_width=11)
    for row in comparison["table"]:
        error = "failed" if row["test_error_mean"] is None else f"{row['test_error_mean']:.2f}"
        if row["test_error_sem"] is not None:
            error += f" ± {row['test_error_sem']:.2f}"
        angles = " ".join("-" if angle is None else f"{angle:.0f}" for angle in row["angles"].values())
        ratio = "" if row["step_ratio"] is None else f"{row['step_ratio']:.2f}"
        broadcast = f"; broadcast: {row['broadcast']}" if row.get("broadcast") else ""
        chosen = [f"{row[f'{key}_mean']:.2f}" if f"{key}_mean" in row else "" for key in more]
        result.add_row(row["rule"], error, *chosen, angles, ratio, (row["transported"] or "not audited") + broadcast)
    if "splits" in data:
        result.caption, result.caption_justify = told_splits(data["splits"]), "left"
    return result

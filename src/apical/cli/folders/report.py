"""`apical report`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from apical.cli.terminal import line


@dataclass(frozen=True)
class Report:
    """Write the HTML report of a comparison anew, and on request its picture as SVG.

    Try:
      apical report runs/demo
      apical report runs/demo --picture docs/demo.svg
    """

    folder: Annotated[Path, tyro.conf.Positional]
    """A folder left by `apical compare`."""
    picture: Path | None = None
    """Also draw learning curves and test errors into this SVG file."""

    def run(self) -> None:
        """Write."""
        from apical import report

        line(f"report: {report.write(self.folder)}")
        if self.picture is not None:
            line(f"picture: {report.picture(self.folder, self.picture)}")

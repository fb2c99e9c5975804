"""The run folder's `metrics.jsonl`: one measurement a line, in the order of steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from apical.files import append_text, write_text


class MetricsLog:
    """Appends measurements; cut back to a checkpoint's step when a run resumes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, line: dict[str, Any]) -> None:
        """Write one measurement."""
        append_text(self.path, json.dumps(line, allow_nan=False) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All measurements; a last line that a kill cut short is left out.

        Raises:
            ValueError: if a line is damaged.
        """
        if not self.path.exists():
            return []
        lines = self.path.read_text().split("\n")
        return [self._measurement(line, number) for number, line in enumerate(lines[:-1], 1) if line]

    def _measurement(self, line: str, number: int) -> dict[str, Any]:
        try:
            found = json.loads(line)
            found["step"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.path}, line {number}: is no measurement ({error}); restore it, or delete the run's folder to start anew"
            ) from error
        return found

    def cut(self, step: int | None) -> None:
        """Drop everything measured after `step`; with None, everything."""
        kept = [] if step is None else [line for line in self.read() if line["step"] <= step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

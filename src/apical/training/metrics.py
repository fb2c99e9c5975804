"""The run folder's `metrics.jsonl`: one measurement a line, in the order of steps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from apical.data.images import Split
from apical.files import append_text, write_text


class SkippedLog:
    """The run folder's `skipped.jsonl`: which images were left out as they can't be decoded, and why, each once.

    Several processes may write to it; what a run that is resumed finds anew is there already.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def note(self, splits: Iterable[Split]) -> None:
        """Write what splits have left out."""
        if found := {image: why for split in splits for image, why in split.skipped.items()}:
            known = self.read()
            new = [{"image": image, "why": why} for image, why in found.items() if image not in known]
            append_text(self.path, "".join(json.dumps(one) + "\n" for one in new))

    def read(self) -> dict[str, str]:
        """Image -> why; a last line that a kill cut short is left out.

        Raises:
            ValueError: if a line is damaged.
        """
        lines = self.path.read_bytes().decode(errors="backslashreplace").split("\n")[:-1] if self.path.exists() else []
        try:
            return {one["image"]: one["why"] for one in map(json.loads, lines)}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path}: is damaged ({error}); delete it, and resume the run") from error


class MetricsLog:
    """Appends measurements; cut back to a checkpoint's step when a run resumes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written, self._sum, self._last = 0, hashlib.sha256(), ""

    def append(self, line: dict[str, Any]) -> None:
        """Write one measurement."""
        text = json.dumps(line, allow_nan=False) + "\n"
        append_text(self.path, text)
        self._count(text)

    def _count(self, line: str) -> None:
        self._written, self._last = self._written + 1, line
        self._sum.update(line.encode())

    @property
    def seal(self) -> dict[str, Any]:
        """The count and the checksum of the lines that are written, with the last one, for a checkpoint to hold."""
        return {"lines": self._written, "sha256": self._sum.hexdigest(), "last": self._last}

    @property
    def sha256(self) -> str:
        """The checksum of the file as it is now; of nothing, if it is not there."""
        return hashlib.sha256(self.path.read_bytes() if self.path.exists() else b"").hexdigest()

    def read(self) -> list[dict[str, Any]]:
        """All measurements; a last line that a kill cut short is left out.

        Raises:
            ValueError: if a line is damaged.
        """
        return [self._measurement(line, number) for number, line in enumerate(self._lines(), 1) if line.strip()]

    def _lines(self) -> list[str]:
        """The file's whole lines, with their ends."""
        if not self.path.exists():
            return []
        return [f"{line}\n" for line in self.path.read_bytes().decode(errors="backslashreplace").split("\n")[:-1]]

    def _measurement(self, line: str, number: int) -> dict[str, Any]:
        try:
            found = json.loads(line)
            found["step"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.path}, line {number}: is no measurement ({error}); restore it, or delete the run's folder to start anew"
            ) from error
        return found

    def cut(self, step: int | None, seal: dict[str, Any] | None = None) -> None:
        """Drop everything measured after the checkpoint of `step`; with None, everything.

        seal: what the checkpoint holds of these lines, if it holds that. The last of them comes from it if it is lost, as a
            loss of power may have it.

        Raises:
            ValueError: if the lines are not those that the seal was made of.
        """
        if step is None or seal is None:
            kept = [] if step is None else [line for line in self.read() if line["step"] <= step]
            self._rewrite([json.dumps(line) + "\n" for line in kept])
            return
        lines = self._lines()
        kept = lines[: seal["lines"]]
        if len(lines) == seal["lines"] - 1:
            kept.append(seal["last"])
        if len(kept) != seal["lines"] or hashlib.sha256("".join(kept).encode()).hexdigest() != seal["sha256"]:
            what = "lines are missing" if len(kept) < seal["lines"] else "their content does not match its checksum"
            raise ValueError(
                f"{self.path}: is damaged, its first {seal['lines']} lines are not those that the checkpoint was written after "
                f"({what}); restore it, or delete the run's folder to start anew"
            )
        self._rewrite(kept)

    def _rewrite(self, lines: Sequence[str]) -> None:
        write_text(self.path, "".join(lines))
        self._written, self._sum, self._last = 0, hashlib.sha256(), ""
        for line in lines:
            self._count(line)

"""A run as a folder: config.json, metrics.jsonl, checkpoint/last.ckpt, result.json; where asked for, checkpoint/best.ckpt."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from apical.files import delete, read_sealed, remains, sealed, write_json
from apical.training import checkpoint
from apical.training.checkpoint import Seal, differences
from apical.training.metrics import MetricsLog, SkippedLog

_LOCK = ".lock"
_MEASURED = "measured"
FILES = ("metrics.jsonl", "result.json", "checkpoint/last.ckpt", _LOCK, "config.json")
"""All that a run leaves; the config last, as without it nobody would know the rest for a run's."""
BEST = "checkpoint/best.ckpt"
"""What a run leaves besides whose config has `best_by`."""
SKIPPED = "skipped.jsonl"
"""What one leaves that has `skip_corrupt`, and has left images out."""


def files_of(config: Mapping[str, Any]) -> list[str]:
    """All that a run with this config may leave."""
    return [*FILES, *(file for file, key in ((BEST, "best_by"), (SKIPPED, "skip_corrupt")) if config.get(key))]


class RunFolderError(ValueError):
    """An error of a run folder that can't be used as asked; its message says why, and the way out.

    >>> RunFolder("nowhere").reopen()
    Traceback (most recent call last):
    apical.training.run_folder.RunFolderError: folder nowhere holds no run to resume: it has no config.json
    """


class RunFolder:
    """The folder in which a run keeps everything it knows. Every file in it is whole or not there.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as home:
    ...     run = RunFolder(f"{home}/one")
    ...     run.start({"rule": "fa"})
    ...     run.metrics.append({"step": 0, "test_error": 90.1})
    ...     run.finish({"test_error": 2.5})
    ...     run.reopen(), run.metrics.read(), run.result
    ({'rule': 'fa'}, [{'step': 0, 'test_error': 90.1}], {'test_error': 2.5})
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.metrics = MetricsLog(self.path / "metrics.jsonl")
        self.skipped = SkippedLog(self.path / SKIPPED)
        self._is_held = False

    def start(
        self,
        config: dict[str, Any],
        *,
        overwrite: bool = False,
        more: Callable[[dict[str, Any]], Iterable[str | Path]] = lambda _: (),
        seal: bool = False,
        later: Collection[str] = (),
    ) -> None:
        """Open the folder for a new run.

        seal: whether the config holds a checksum of itself. That of a single run has none: its checkpoint knows it.

        overwrite: delete an earlier run of the same kind, one whose config has the same keys but for `later` ones: its files,
            and nothing else that lies in the folder. more: gives, from its config, the files that it has beyond a run's own.

        Raises:
            RunFolderError: if something else is there already.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"{self.path} is a file; give another folder")
        # What a kill left of a config half-written is no run.
        left = [*remains(self.path), self.path / _LOCK]
        there = self.path.exists() and any(one not in left for one in self.path.iterdir())
        if there and overwrite:
            found = self._read(self._config) if self._config.exists() else {}
            if not found or (found.keys() ^ config.keys()) - set(later):
                raise RunFolderError(
                    f"overwrite: folder {self.path} holds no run of this kind, so it is left alone; give another folder, or "
                    "delete it yourself"
                )
            try:
                names = [*more(found), *files_of(found)]
            except (KeyError, TypeError, ValueError) as error:
                raise RunFolderError(
                    f"overwrite: {self._config} does not say what belongs to the run ({error!r}); delete its files yourself, or "
                    "give another folder"
                ) from error
            delete(self.path, [name for name in names if name != _LOCK])  # Whoever overwrites it holds it.
        elif there:
            what = "holds a run already; resume it, or" if self._config.exists() else "is not empty;"
            raise RunFolderError(f"folder {self.path} {what} give another folder")
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self._config, sealed(config) if seal else config)

    def reopen(self, config: dict[str, Any] | None = None, later: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Open the folder of an earlier run, and give its config.

        later: keys that a config may have or lack alike with these values, see `Recipe.asdict`.

        Raises:
            RunFolderError: if there is none, it can't be read, or it differs from `config`.
        """
        if not self._config.exists():
            raise RunFolderError(f"folder {self.path} holds no run to resume: it has no config.json")
        found = self._read(self._config)
        if later is not None:
            found = {key: value for key, value in found.items() if key not in later or value != later[key]}
        if config is not None and found != config:
            changed = differences(found, config, "{k}: {a!r} there, {b!r} asked")
            raise RunFolderError(
                f"the run in {self.path} was made with other settings ({changed}); give another folder"
            )
        return found

    @contextmanager
    def held(self, needed: bool = True) -> Iterator[None]:
        """Keep other processes from starting or resuming a run in this folder meanwhile. The system lets go if this one dies.

        needed: False for nothing at all.

        Raises:
            RunFolderError: if another process holds it, whose run is going on.
        """
        if self._is_held or not needed:
            yield
            return
        path = self.path / _LOCK
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0.2)
        except Timeout:
            raise RunFolderError(
                f"the run in {self.path} is going on in another process; wait until it ends, or stop that process first"
            ) from None
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
            with suppress(OSError):
                path.unlink()
            lock.release()

    @property
    def has_run(self) -> bool:
        """True once a run was started here."""
        return self._config.exists()

    @property
    def result(self) -> dict[str, Any] | None:
        """The result that the run ended with, or None while it hasn't."""
        found = self._ended()
        return None if found is None else {key: value for key, value in found.items() if key != _MEASURED}

    @property
    def measured(self) -> Any:
        """The checksums of measurements that lie with the result; None while the run hasn't ended, or if it has none."""
        return (self._ended() or {}).get(_MEASURED)

    def _ended(self) -> dict[str, Any] | None:
        path = self.path / "result.json"
        if not path.exists():
            return None
        found = self._read(path)
        if not found.keys() & {"test_error", "failed"}:
            raise RunFolderError(f"{path} holds no result; delete it, and resume the run")
        return found

    def finish(self, result: dict[str, Any], measured: Any = None) -> None:
        """Write the result. measured: checksums of other runs' measurements; None: that of this one's own, if it has any."""
        own = self.metrics.seal
        measured = own["sha256"] if measured is None and own["lines"] else measured
        write_json(self.path / "result.json", sealed(result if measured is None else {**result, _MEASURED: measured}))

    def unfinish(self) -> None:
        """Delete the result."""
        (self.path / "result.json").unlink()

    def save(self, state: dict[str, Any], seals: Sequence[Seal] | None = None) -> None:
        """Write the checkpoint. seals: how the other files of each run in it were, see `Session.seals`."""
        checkpoint.save(self._checkpoint, state, [seal.asdict() for seal in seals or ()] or None)

    def save_best(self, state: dict[str, Any], seals: Sequence[Seal]) -> None:
        """Write the network that is the best so far, beside the checkpoint: what of its state is needed to use it."""
        checkpoint.save(self._best, state, [seal.asdict() for seal in seals])

    def forget(self) -> None:
        """Delete the checkpoint."""
        self._checkpoint.unlink(missing_ok=True)

    def restore(self) -> dict[str, Any] | None:
        """The last checkpoint, or None if the run was stopped before the first."""
        return self.restore_all()[0]

    def restore_all(self, *, best: bool = False) -> tuple[dict[str, Any] | None, Sequence[Seal] | None]:
        """The last checkpoint with its seals. None: the run was stopped before the first, or it is of a version without seals.

        best: what `save_best` has written, in its place.
        """
        path = self._best if best else self._checkpoint
        if not path.exists():
            return None, None
        state, beside = checkpoint.load_all(path)
        return state, None if beside is None else [Seal(**one) for one in beside]

    @property
    def _config(self) -> Path:
        return self.path / "config.json"

    @property
    def _checkpoint(self) -> Path:
        return self.path / "checkpoint" / "last.ckpt"

    @property
    def _best(self) -> Path:
        return self.path / BEST

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            return read_sealed(path)
        except (OSError, ValueError) as error:
            way_out = "delete it, and resume the run"
            if path == self._config:
                way_out = "restore it, or delete the folder to start anew"
            raise RunFolderError(f"can't read {path}: {error}; {way_out}") from error

"""What the commands share: the terminal, progress, folders, and errors as people read them."""

from __future__ import annotations

import datetime
import os
import re
import shlex
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

import apical
from apical.distributed import PeerLostError
from apical.files import read_sealed
from apical.training.run_folder import RunFolder
from apical.training.session import NonFiniteLossError, Watcher
from apical.training.stopping import Ended, Interrupted, handled, ignore

# Without markup, because names and paths may hold brackets.
console = Console(markup=False)
errors = Console(stderr=True, markup=False)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.0f} steps/s", style="progress.data.speed")


_COMMANDS = {"rule": "train", "rules": "compare", "experiment": "reproduce"}
"""By a key that only its configs have."""


@contextmanager
def progress() -> Iterator[Progress]:
    """A progress display with rate and time left; silent where there is no terminal."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
        _Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as display:
        yield display


def watch(display: Progress, description: str) -> Watcher:
    """A watcher that shows one run as a line of `display`."""
    task = display.add_task(description, total=None, note="", visible=False)

    def watcher(step: int, steps: int, newest: dict[str, Any] | None) -> None:
        note = "" if newest is None else f"test error {newest['test_error']:.2f} %"
        display.update(task, completed=step, total=steps, note=note, visible=step < steps)
        if step == steps:
            display.stop_task(task)

    return watcher


def command_line() -> str:
    """The command as it was typed."""
    return shlex.join(["apical", *sys.argv[1:]])


def new_folder(folder: Path | None, kind: str) -> Path:
    """The folder for a new run: the one asked for, or one under runs/ named by kind and time."""
    return Path("runs") / f"{kind}-{datetime.datetime.now():%Y%m%d-%H%M%S}" if folder is None else folder


def config_in(
    folder: Path, command: str, keys: Iterable[str], later: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The config of the run to resume, which `command` has started and which has these keys.

    later: those of them that it may lack, with what they are then.
    """
    path = folder / "config.json"
    try:
        found = read_sealed(path)
    except OSError as error:
        raise ValueError(f"--resume: folder {folder} holds no run to resume ({error})") from error
    except ValueError as error:
        raise ValueError(
            f"--resume: {path} is no config of `apical {command}`: {error}; restore it, or give another folder"
        ) from error
    other = next((one for key, one in _COMMANDS.items() if key in found), command)
    if other != command:
        raise ValueError(
            f"--resume: folder {folder} holds a run of `apical {other}`; go on with: apical {other} --resume {folder}"
        )
    found = {**(later or {}), **found}
    strange = sorted(found.keys() ^ set(keys))
    if strange:
        raise ValueError(
            f"--resume: {path} is no config of `apical {command}`: {', '.join(strange)} missing or unknown; restore it, go on "
            "with the apical that wrote it, or give another folder"
        )
    return found


def check_resumed(command: Any, asked: Mapping[str, Any], kept: Mapping[str, Any], default: Mapping[str, Any]) -> None:
    """Refuse to resume where something else is asked for than what the run was started with.

    command: whose `resume` is the run's folder, and which has `folder` and `overwrite` for new runs.

    Raises:
        ValueError: naming the options that are neither the run's own nor left out.
    """
    asked = {**asked, "folder": command.folder, "overwrite": command.overwrite}
    default = {**default, "folder": None, "overwrite": False}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in asked.items()}
    changed = [key for key, value in asked.items() if value != default[key] and plain[key] != kept.get(key)]
    if changed:
        shown = {key: " ".join(map(str, one)) if isinstance(one, list) else one for key, one in kept.items()}
        told = ", ".join(f"--{key.replace('_', '-')} {shown[key]}" if key in kept else f"no --{key}" for key in changed)
        raise ValueError(
            f"--resume: the run in {command.resume} goes on as it was started, with {told}; leave those options out, or start "
            "another run in a folder of its own"
        )


def told_splits(splits: Mapping[str, str]) -> str:
    """Which split each error is of.

    >>> told_splits({"test": "split 'val'", "validation": "100 of 1,000 images of split 'train', held out by seed 0"})
    "test error: split 'val'; validation error: 100 of 1,000 images of split 'train', held out by seed 0"
    """
    return "; ".join(f"{role} error: {told}" for role, told in splits.items())


def slug(text: str) -> str:
    """`text` as part of a folder's name."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")


@contextmanager
def plain_errors(*, last: bool = False) -> Iterator[None]:
    """Errors as one sentence and an exit status: 2 for bad input, 1 for a failed run, 130 after Ctrl-C, 143 after SIGTERM.

    last: the process ends with this, so that nothing more is heard of signals once one has ended it.
    """
    try:
        with _ended_by_signals(last) as deaf:
            try:
                yield
            except Interrupted as error:
                deaf()
                _say("stopped", error)
                sys.exit(error.status)
            except KeyboardInterrupt as error:
                deaf()
                before = error.__context__  # It may come while what was stopped in good order is being left.
                _say("stopped", before if isinstance(before, Interrupted) else _with_notes("at once", error))
                sys.exit(getattr(error, "status", 130))
            except (NonFiniteLossError, PeerLostError) as error:
                _say("error", error)
                sys.exit(1)
            except BrokenPipeError:
                # Whoever read the output has seen enough; nothing is left to flush.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                sys.exit(1)
            except (ValueError, TypeError, OSError) as error:
                _say("error", _with_notes(str(error), error))
                sys.exit(2)
            except Exception as error:
                _say("error", _with_notes(cause(error), error))
                sys.exit(1 if hasattr(error, "__notes__") else 2)
    except KeyboardInterrupt as error:  # A second one, before the first was told.
        sys.exit(getattr(error, "status", 130))


@contextmanager
def _ended_by_signals(last: bool) -> Iterator[Callable[[], None]]:
    """A signal that asks the process to end raises; those after it, or after the function that is given, do nothing."""
    ended: list[int] = []

    def handler(number: int, frame: Any) -> None:
        if not ended:
            ended.append(number)
            raise Ended(number)

    first = threading.current_thread() is threading.main_thread()
    try:
        with handled(handler) if first else nullcontext():
            yield lambda: ended.append(0)
    finally:
        if first and last and ended:
            ignore()


@contextmanager
def resumable(command: str, folder: Path, *, resumes: bool = False) -> Iterator[None]:
    """Whatever stops a run of `command` says how it goes on, unless the same would stop it again.

    resumes: whether settings are read from the folder; errors about them name the file.
    """
    go_on = f"go on with: apical {command} --resume {shlex.quote(str(folder))}"
    try:
        yield
    except (Interrupted, NonFiniteLossError):
        raise
    except (Exception, KeyboardInterrupt) as error:
        amid = hasattr(error, "__notes__") or not isinstance(error, ValueError | TypeError)
        if amid and RunFolder(folder).has_run:
            error.add_note(go_on if isinstance(error, KeyboardInterrupt) else f"once that is mended, {go_on}")
        if resumes and not amid:
            with settings_of(folder):
                raise
        raise


@contextmanager
def settings_of(folder: Path) -> Iterator[None]:
    """Errors of settings that were read from a run's folder name the file."""
    try:
        yield
    except (ValueError, TypeError) as error:
        if str(folder) not in str(error):
            error.add_note(f"the settings are those in {folder / 'config.json'}")
        raise


def cause(error: Exception) -> str:
    """An error that apical has no words for, as its kind, text, and place: the user's own code if it came through that.

    >>> cause(MemoryError())
    'there is not enough memory; take a smaller network or a smaller batch'
    """
    text = str(error).strip().partition("\n")[0]
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "allocate" in text
    ):
        wanted = re.search(r"allocate ([\d.]+ ?\w+)", text)
        size = f" ({wanted[1]} were asked for)" if wanted else ""
        return f"there is not enough memory{size}; take a smaller network or a smaller batch"
    frames = [one for one in traceback.extract_tb(error.__traceback__) if Path(one.filename).exists()]
    own = Path(apical.__file__).parent
    mine = [one for one in frames if own in Path(one.filename).parents]
    others = [one for one in frames if one not in mine and not _installed(Path(one.filename))]
    where = [f" ({one.filename}, line {one.lineno}, in {one.name})" for one in (others or mine)[-1:]]
    return f"{type(error).__name__}{': ' if text else ''}{text}{''.join(where)}"


def _installed(path: Path) -> bool:
    return bool({"site-packages", "dist-packages"} & set(path.parts)) or Path(os.__file__).parent in path.parents


def _with_notes(text: str, error: BaseException) -> str:
    return "; ".join([text, *getattr(error, "__notes__", ())])


def _say(what: str, message: object) -> None:
    # Ctrl-C is pressed twice by those who are in a hurry; what has ended needs no second end.
    with suppress(KeyboardInterrupt):
        errors.print(f"apical: {what}:", style="bold red", end=" ")
        line(str(message), errors)


def line(text: str, to: Console = console) -> None:
    """Print a line. Words are kept whole on a terminal; elsewhere the line is kept whole, with the paths in it."""
    to.print(text, highlight=False, soft_wrap=not to.is_terminal)

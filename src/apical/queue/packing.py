"""What a queue's lines have come to, in a few small files, for ways on which no others pass."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from apical.files import remains, write_bytes, write_json
from apical.queue.lines import Line
from apical.queue.queue import Queue

MOST = 16 * 2**20
"""Bytes of a file."""
_LIST, _TAKEN = "queue.json", ".taken.json"


def hand_back(queue: Queue, lines: Iterable[Line], to: Path, most: int = MOST) -> int:
    """Put all files of some lines into one archive (tar), cut into files of at most `most` bytes; `take` is the way back.

    The files are `to`/queue.0, queue.1, ... and queue.json, which has their number and the checksum of the whole. What an
    earlier call has left there goes. Lines that another process has by now are left out: it goes on with them.

    Returns:
        How many files there are.

    Raises:
        OSError: if something can't be read or written.
    """
    summed, count = hashlib.sha256(), 0
    to.mkdir(parents=True, exist_ok=True)
    (to / _LIST).unlink(missing_ok=True)
    with tempfile.TemporaryFile() as whole:
        with tarfile.open(fileobj=whole, mode="w") as archive:
            for line in lines:
                with queue.held(line) as mine:
                    for path in _files(queue, line) if mine else ():
                        archive.add(path, path.relative_to(queue.folder).as_posix())
        whole.seek(0)
        while content := whole.read(most):
            write_bytes(to / f"queue.{count}", content)
            summed.update(content)
            count += 1
    write_json(to / _LIST, {"pieces": count, "sha256": summed.hexdigest()})
    number = count
    while (left := to / f"queue.{number}").exists():
        left.unlink()
        number += 1
    return count + 1


def take(queue: Queue, source: Path) -> list[Line]:
    """Take what `hand_back` has left in `source` into a queue's folder, in the place of what is there.

    Lines that are done here, and those that another process has, are left alone; what is of other lists as well. The same is
    taken once only, so that a command which takes it can be given again when its queue has gone on. Killed, it can be done again.

    Returns:
        The lines that were taken.

    Raises:
        ValueError: if files are missing, damaged or do not belong together.
    """
    try:
        told = json.loads((source / _LIST).read_text())
        content = b"".join((source / f"queue.{number}").read_bytes() for number in range(told["pieces"]))
        whole = hashlib.sha256(content).hexdigest()
        if whole != told["sha256"]:
            raise ValueError("they do not belong together")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"what was handed back in {source} can't be taken: {error}; copy all its files again"
        ) from error
    before = _before(queue)
    if whole in before:
        return []
    taken = []
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        with tarfile.open(fileobj=file) as archive:
            members = {PurePosixPath(one.name): one for one in archive.getmembers() if one.isfile()}
            for line in queue.lines:
                own = [one for one in members if one.parts[0] in (line.name, f"{line.name}.log", f"{line.name}.json")]
                if not own or any(".." in one.parts for one in own):
                    continue
                with queue.held(line) as mine:
                    if not mine or queue.state(line) == "done":
                        continue
                    shutil.rmtree(queue.place(line), ignore_errors=True)
                    # Last that the line has ended: a kill in between leaves one that goes on.
                    for path in sorted(own, key=lambda one: len(one.parts), reverse=True):
                        held = archive.extractfile(members[path])
                        assert held is not None
                        write_bytes(queue.folder / path, held.read())
                    taken.append(line)
    write_json(queue.folder / _TAKEN, [*before, whole])
    return taken


def _before(queue: Queue) -> list[str]:
    """Checksums of what was taken before."""
    try:
        return list(json.loads((queue.folder / _TAKEN).read_text()))
    except (OSError, ValueError, TypeError):
        return []


def _files(queue: Queue, line: Line) -> list[Path]:
    place = queue.place(line)
    folders = [one for one in (place, *place.rglob("*")) if one.is_dir()]
    left = {one for folder in folders for one in remains(folder)}
    inside = [one for one in sorted(place.rglob("*")) if one.is_file() and one not in left and one.name != ".lock"]
    return [*inside, *(one for one in (queue.log(line), queue.mark(line)) if one.exists())]

"""The lines of a queue's list: command lines of apical."""

from __future__ import annotations

import hashlib
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

COMMANDS = ("train", "compare", "speedrun", "reproduce")
GIVEN = ("--folder", "--resume", "--overwrite")
"""Options that the queue gives its lines itself."""


@dataclass(frozen=True)
class Line:
    """One line of a list.

    Args:
        number: of the line in its file, from 1. words: the command and its options.
    """

    number: int
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        """The words as one command line."""
        return shlex.join(self.words)

    @property
    def name(self) -> str:
        """A name for files, by what is in the line.

        >>> Line(3, ("train", "--rule", "urfb:epsilon=0.5")).name
        'train-rule-urfb-epsilon-0.5-bf75b846'
        """
        plain = re.sub(r"[^\w.]+", "-", " ".join(self.words)).strip("-.")[:80]
        return f"{plain}-{hashlib.sha256(self.text.encode()).hexdigest()[:8]}"

    def command(self, folder: Path, *, resume: bool) -> list[str]:
        """The words that start what the line asks for in `folder`, or go on with it there.

        >>> Line(1, ("reproduce", "lillicrap2016/fig2a", "--using", "runs/fig2")).command(Path("q/one"), resume=True)
        ['reproduce', 'lillicrap2016/fig2a', '--resume', 'q/one']
        """
        words = list(self.words)
        if resume:  # What was to be taken has been.
            words = [word for word in words if not word.startswith("--using=")]
            for where in [number for number, word in enumerate(words) if word == "--using"]:
                del words[where : where + 2]
        return [*words, "--resume" if resume else "--folder", str(folder)]


def read(file: Path) -> list[Line]:
    """The lines of a list: a text file with one command line in each, or a YAML list of them.

    "apical" before a command may be left out; empty lines and what follows a # are no commands.

    Raises:
        ValueError: naming file and line, for what is no command that can be queued, and for a line that is there twice.
        OSError: if the file can't be read.
    """
    found: dict[tuple[str, ...], Line] = {}
    for number, text in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            words = _words(text)
            if not words:
                continue
            _check(words)
            if words in found:
                raise ValueError(f"it is line {found[words].number} again; leave one out, or give another --seed")
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: {error}") from error
        found[words] = Line(number, words)
    if not found:
        raise ValueError(f"{file} holds no command; write one a line, as: train --rule fa --seed 1")
    return list(found.values())


def _words(text: str) -> tuple[str, ...]:
    """The words of a line.

    >>> _words("- 'apical train --rule fa'  # the first"), _words("# none")
    (('train', '--rule', 'fa'), ())
    """
    words = shlex.split(text.strip().removeprefix("- "), comments=True)
    if len(words) == 1:  # Of a YAML list, in quotes.
        words = shlex.split(words[0])
    return tuple(words[1:] if words[:1] == ["apical"] else words)


def _check(words: tuple[str, ...]) -> None:
    if words[0] not in COMMANDS:
        raise ValueError(f"{words[0]!r} can't be queued; {', '.join(COMMANDS[:-1])} and {COMMANDS[-1]} can")
    own = [word for word in words if word.partition("=")[0].replace("_", "-") in GIVEN]
    if own:
        raise ValueError(f"the queue itself gives {own[0].partition('=')[0]}; leave it out")

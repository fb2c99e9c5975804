"""Where results come from: the day of a run, and the apical, PyTorch and machine that it was made with."""

from __future__ import annotations

import datetime
import platform
import subprocess
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

import apical
from apical.machine import machine

Made = Mapping[str, str | None]
"""date, commit (None outside of a repository), apical, torch, python and machine of one run."""

_PACKAGE = Path(apical.__file__).parent


def now() -> str:
    """The date and time, in ISO 8601 to the second, with the offset from UTC."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def made() -> Made:
    """What a run that ends now was made by.

    >>> sorted(made())
    ['apical', 'commit', 'date', 'machine', 'python', 'torch']
    """
    return {
        "date": now(),
        "commit": commit(),
        "apical": version(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "machine": machine(),
    }


def version() -> str:
    """The version of apical that runs here, with its commit where it runs from a repository (PEP 440)."""
    known = commit()
    return apical.__version__ + ("" if known is None else f"+g{known.replace('-', '.')}")


@cache
def commit(package: Path = _PACKAGE) -> str | None:
    """What `git describe` says of the commit that a package runs from; None where it is in no repository's tree.

    It ends in "-dirty" where files of the package differ from that commit. It is asked for once in a process, whose modules
    stay as they are whatever becomes of their files.
    """
    try:
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        known = _git(package, "describe", "--always", "--abbrev=12")
        return known + ("-dirty" if _git(package, "status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    asked = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10)
    return asked.stdout.strip()


def told(runs: Iterable[Made]) -> dict[str, Any] | None:
    """The first and last date of several runs, and all that they were made by; None where one of them is not known.

    >>> one = {"date": "2026-11-28T01:00:00+00:00", "commit": None, "apical": "0.1.0"}
    >>> told([one, {**one, "date": "2026-11-27T01:00:00+00:00"}])["from"]
    '2026-11-27T01:00:00+00:00'
    """
    known = list(runs)
    if not all(known):
        return None
    dates = sorted((str(one["date"]) for one in known), key=datetime.datetime.fromisoformat)
    every = {key: sorted({str(one[key]) for one in known if one[key] is not None}) for key in known[0] if key != "date"}
    return {"from": dates[0], "to": dates[-1], **every}

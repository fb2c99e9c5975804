"""Where the node's compiled library lies, and how it comes there."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from filelock import FileLock

from apical.files import cache_folder, write_text

SOURCE = Path(__file__).with_name("node.cpp")
_HEADERS = ("common.h", "moving.h", "products.h", "taps.h")
_NAME = "apical_node"
_SECONDS = 900


class BuildError(RuntimeError):
    """The library can't be built here."""


def wanted() -> bool:
    """Whether the library is to be used where there is one: unless $APICAL_NATIVE is "off"."""
    return os.environ.get("APICAL_NATIVE", "").lower() not in ("off", "0", "no")


def place() -> Path:
    """Where the library belongs that goes with this source, PyTorch and Python; there need be none."""
    facts = (
        *(SOURCE.with_name(name).read_text(encoding="utf-8") for name in (SOURCE.name, *_HEADERS)),
        torch.__version__,
        torch.version.git_version,
        sys.version,
        sysconfig.get_platform(),
    )
    return cache_folder() / "native" / hashlib.sha256(repr(facts).encode()).hexdigest()[:16] / f"{_NAME}.so"


@cache
def library() -> Any | None:
    """The library, where it was built and is wanted; None elsewhere."""
    if not wanted():
        return None
    try:
        path = place()
        return _load(path) if _whole(path) else None
    except (OSError, ImportError, RuntimeError):  # The last where there is no home for a cache.
        return None


def build() -> Path:
    """Build the library, if there is none yet: half a minute of a C++ compiler.

    Raises:
        BuildError: without a compiler or Python's headers, or where it fails.
    """
    try:
        path = place()
    except RuntimeError as error:
        raise BuildError(f"there is no place for it: {error} Name a folder in $APICAL_CACHE") from error
    if _whole(path):
        return path
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)
    if compiler is None or sys.platform == "win32":
        raise BuildError(
            "no C++ compiler was found (c++, g++, clang++ or $CXX); steps are as right without, only slower"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not _whole(path):
            made = path.with_suffix(f".{os.getpid()}")
            try:
                done = subprocess.run(
                    _command(compiler, made), capture_output=True, text=True, timeout=_SECONDS, check=False
                )
                if done.returncode:
                    told = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[-300:])
                    raise BuildError(f"{compiler} can't build the synapses' node: {told}")
                _load(made)
                write_text(_sum(path), _checksum(made))
                made.replace(path)
            except subprocess.TimeoutExpired as error:
                raise BuildError(f"{compiler} was not done after {_SECONDS} s") from error
            except ImportError as error:
                raise BuildError(f"what {compiler} has built can't be loaded: {error}") from error
            finally:
                made.unlink(missing_ok=True)
    library.cache_clear()
    return path


def _sum(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _whole(path: Path) -> bool:
    """Whether the library is there as it was built: one that is cut short would end every process that loads it."""
    return path.is_file() and _sum(path).is_file() and _sum(path).read_text(encoding="utf-8") == _checksum(path)


def _command(compiler: str, path: Path) -> list[str]:
    torch_home = Path(torch.__file__).parent
    headers = [torch_home / "include", torch_home / "include/torch/csrc/api/include", sysconfig.get_paths()["include"]]
    undefined = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
    return [
        *(compiler, "-O2", "-shared", "-fPIC", "-std=c++20", f"-DTORCH_EXTENSION_NAME={_NAME}"),
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}",
        *(word for folder in headers for word in ("-isystem", str(folder))),
        *(str(SOURCE), "-o", str(path), f"-L{torch_home / 'lib'}", *undefined),
        *("-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python"),
    ]


def _load(path: Path) -> ModuleType:
    loader = importlib.machinery.ExtensionFileLoader(_NAME, str(path))
    spec = importlib.util.spec_from_file_location(_NAME, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module

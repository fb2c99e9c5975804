"""The machine that a result was made on, in a few words."""

from __future__ import annotations

import os
import platform

import torch


def machine() -> str:
    """This machine in a few words, without its name."""
    threads = torch.get_num_threads()
    parts = [f"{os.cpu_count()} CPU cores ({platform.machine()})", f"{threads} thread{'s' if threads > 1 else ''}"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)

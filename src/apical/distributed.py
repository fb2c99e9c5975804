"""Several processes that learn together."""

from __future__ import annotations

from torch import distributed


def together() -> bool:
    """Whether this process is one of several that learn together."""
    return distributed.is_available() and distributed.is_initialized()

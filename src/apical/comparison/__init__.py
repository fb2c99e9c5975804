"""Several rules on one network, several seeds each: runs, then one table."""

from apical.comparison.compare import compare
from apical.comparison.config import CompareConfig

__all__ = ["CompareConfig", "compare"]

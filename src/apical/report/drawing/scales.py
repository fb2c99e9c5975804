"""Round marks for axes, and whether an axis is logarithmic."""

from __future__ import annotations

import math
from collections.abc import Sequence


def logarithmic(values: Sequence[float]) -> bool:
    """True if a logarithmic axis shows these values better: all positive, over more than a factor of ten.

    >>> logarithmic([2.0, 90.0]), logarithmic([0.0, 90.0])
    (True, False)
    """
    return bool(values) and min(values) > 0 and max(values) > 10 * min(values)


def decades(low: float, high: float) -> list[float]:
    """The marks 1, 2, 5, 10, ... from `low` to `high`, or where that is few all digits' marks.

    >>> decades(2.5, 90)
    [5.0, 10.0, 20.0, 50.0]
    >>> decades(2.5, 4.5)
    [3.0, 4.0]
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), range(1, 10)):
        found = [mark for power in powers for digit in digits if low <= (mark := float(f"{digit}e{power}")) <= high]
        if len(found) > 2:
            break
    return found


def marks(high: float, most: int = 6) -> list[float]:
    """Round marks from 0 up to at most `high`.

    >>> marks(11.2)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    if high <= 0:
        return [0.0]
    power = math.floor(math.log10(high / most))
    step = next(
        s for s in (float(f"{digit}e{p}") for p in (power, power + 1) for digit in (1, 2, 5)) if high / s <= most
    )
    return [round(step * index, 12) for index in range(math.floor(high / step) + 1)]

"""Statements of the papers as data: which values each needs, when it holds, and the numbers that say so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from apical.papers.outcome import Claim, Kind


@dataclass(frozen=True)
class Statement:
    """A sentence of a paper that runs can bear out or not.

    An experiment lists its statements as data, so that they can be read beside the paper; `judge` compares them with what was
    measured. `holds` and `evidence` are called with the values of `needs`, in that order.

    Args:
        text: the sentence, with the threshold that "about" or "much" stands for here in brackets.
        needs: names of the values that it speaks about; where one was not measured, the statement is not judged.
        holds: whether it is so; None where the runs' own error leaves it undecided. evidence: the numbers that say so, in words.
        kind: whose statement it is, see `Kind`.

    >>> slower = Statement(
    ...     "fa is slower than bp", ("fa", "bp"), lambda fa, bp: fa > bp, lambda fa, bp: f"{fa} against {bp} examples"
    ... )
    >>> slower.judged({"fa": 120, "bp": 100}).holds
    True
    >>> slower.judged({"fa": 120}) is None
    True
    """

    text: str
    needs: tuple[str, ...]
    holds: Callable[..., bool | None]
    evidence: Callable[..., str]
    kind: Kind = "paper"

    def judged(self, values: Mapping[str, Any]) -> Claim | None:
        """The claim that these values make of the statement; None where one is missing."""
        if any(name not in values for name in self.needs):
            return None
        given = [values[name] for name in self.needs]
        held = self.holds(*given)
        return Claim(self.text, None if held is None else bool(held), self.evidence(*given), self.kind)


def judge(statements: Iterable[Statement], values: Mapping[str, Any]) -> list[Claim]:
    """The claims that can be judged by the values measured, in the statements' order."""
    return [claim for claim in (one.judged(values) for one in statements) if claim is not None]

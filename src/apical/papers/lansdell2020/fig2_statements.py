"""The conditions of figure 2, and what the paper says of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from apical.papers.claims import Statement
from apical.papers.lansdell2020.common import LAYERS, mean, told
from apical.papers.record import Record

MEASURES = ("relative error", "angle", "sign congruence")
NOISES = {f"c = {c:g}": c for c in (1e-4, 1e-3, 1e-2, 1e-1)}  # [C]


@dataclass(frozen=True)
class Condition:
    """A rule and, under node perturbation, its solver and the level of its noise; its `str` is the condition's name.

    Args:
        rule: "bp", "fa" or "np". level: one of `NOISES`. ridge: ridge regression in place of SGD.

    >>> str(Condition("np", "c = 0.1", ridge=True))
    'np ridge, c = 0.1'
    """

    rule: str
    level: str | None = None
    ridge: bool = False

    def __str__(self) -> str:
        return self.method if self.level is None else f"{self.method}, {self.level}"

    @property
    def method(self) -> str:
        """The rule with its solver: a key of `SOLVERS` under node perturbation."""
        return f"{self.rule} ridge" if self.ridge else self.rule

    @property
    def noise(self) -> float | None:
        """The noise's standard deviation c; None without noise."""
        return None if self.level is None else NOISES[self.level]

    @property
    def curve(self) -> str:
        """The notebook's curve, which is one for both solvers."""
        return self.rule if self.level is None else self.level


SOLVERS = {"np": "by SGD", "np ridge": "by ridge regression"}
"""Method -> its solver, in words."""

CONDITIONS = {
    str(one): one
    for one in (
        Condition("bp"),
        Condition("fa"),
        *(Condition("np", level) for level in NOISES),
        *(Condition("np", level, ridge=True) for level in NOISES),
    )
}


def measured(records: Mapping[str, Record], measures: Iterable[str]) -> dict[str, Any]:
    """Values that the statements speak of, of these measures: means over seeds, at the end.

    "relative error, layer 1, fa" is a number, "relative error, layer 1, np" maps noise levels to numbers, and
    "relative error, layer 1, over np's noise" is the same where three levels or more were run.
    """
    values: dict[str, Any] = {}
    for measure in measures:
        for name, record in records.items():
            if measure in record.curves:
                condition, end = CONDITIONS[name], mean(record.curves[measure].last)
                if condition.level is None:
                    values[f"{measure}, {condition}"] = end
                else:
                    values.setdefault(f"{measure}, {condition.method}", {})[condition.level] = end
        for method in SOLVERS:
            found = values.get(f"{measure}, {method}", {})
            if len(found) > 2:
                values[f"{measure}, over {method}'s noise"] = found
    return values


def _np(found: Mapping[str, float]) -> str:
    return f"np {told(found)}"


def _beside(
    text: str,
    method: str,
    measure: str,
    holds: Callable[[list[float], float], bool],
    *,
    rule: str = "fa",
    other: str | None = None,
) -> Statement:
    """A statement about a measure under np by one solver, beside that measure, or an `other` one, of a rule."""
    return Statement(
        text,
        (f"{measure}, {method}", f"{other or measure}, {rule}"),
        lambda found, end: holds(list(found.values()), end),
        lambda found, end: f"{_np(found)}; {rule} {end:.3g}",
    )


def _of_layer(method: str, layer: str) -> tuple[Statement, ...]:
    how, error, angle, congruence = SOLVERS[method], *(f"{one}, {layer}" for one in MEASURES)
    return (
        _beside(f"{error}: np ({how}) below fa, at its best noise", method, error, lambda ends, fa: min(ends) < fa),
        _beside(
            f"{angle}: np ({how}) far below fa, at every noise (here: at most two thirds)",
            method,
            angle,
            lambda ends, fa: max(ends) < fa * 2 / 3,
        ),
        _beside(
            f"{congruence}: np ({how}) above fa, at its best noise",
            method,
            congruence,
            lambda ends, fa: max(ends) > fa,
        ),
    )


def _of_noise(method: str) -> tuple[Statement, ...]:
    how = SOLVERS[method]
    both = tuple(f"sign congruence, {layer}, over {method}'s noise" for layer in LAYERS)
    return (
        Statement(
            f"sign congruence ({how}) depends on the noise (here: by more than 2 percentage points)",
            both,
            lambda *layers: max(max(own.values()) - min(own.values()) for own in layers) > 2,
            lambda *layers: "; ".join(f"{name}: {_np(own)}" for name, own in zip(LAYERS, layers, strict=True)),
        ),
        Statement(
            f"sign congruence ({how}) is comparable between layers (here: within 15 percentage points)",
            both,
            lambda *layers: _apart(*layers) < 15,
            lambda *layers: f"furthest apart {_apart(*layers):.3g} points",
        ),
    )


def _apart(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    return max(abs(one[level] - other[level]) for level in one)


def _of_errors(method: str) -> tuple[Statement, ...]:
    how, noisy, plain = SOLVERS[method], "test error, noise on", "test error"
    return (
        _beside(
            f"test error: np ({how}) below fa, at its best noise",
            method,
            noisy,
            lambda ends, fa: min(ends) < fa,
            other=plain,
        ),
        _beside(
            f"test error: np ({how}) is comparable to bp (here: within 1 percentage point, at its best noise)",
            method,
            noisy,
            lambda ends, bp: min(ends) - bp < 1,
            rule="bp",
            other=plain,
        ),
        Statement(
            f"relative error of layer 1 ({how}): less noise is not always better (here: by 2 percent)",
            (f"relative error, layer 1, over {method}'s noise",),
            lambda found: min(found.values()) < 0.98 * next(iter(found.values())),
            _np,
        ),
    )


STATEMENTS = tuple(
    one
    for method in SOLVERS
    for part in (*(_of_layer(method, layer) for layer in LAYERS), _of_noise(method), _of_errors(method))
    for one in part
)

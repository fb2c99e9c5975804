"""Sentences of the page: its numbers, its finding, and how to read its figures."""

from __future__ import annotations

from apical.report.comparison.comparison import BASELINE, NO_TRANSPORT, Comparison, Row

SPACE = "\u00a0"  # between a number and its unit, where no line may break


def percent(comparison: Comparison, row: Row) -> str:
    """A row's test error as "3.1 % ± 0.2": one digit after the point, or two in all rows where some row needs them."""
    if row.test_error_mean is None:
        return "not finished"
    rows = [other for other in comparison.table if other.test_error_mean is not None]
    fine = any((other.test_error_mean or 0) < 1 or 0 < (other.test_error_sem or 0) < 0.05 for other in rows)
    digits = 2 if fine else 1
    said = f"{row.test_error_mean:.{digits}f}{SPACE}%"
    return said if row.test_error_sem is None else f"{said} ±{SPACE}{row.test_error_sem:.{digits}f}"


def inside(title: str) -> str:
    """A title as it stands inside a sentence: small, unless it carries a name.

    >>> inside("Feedback alignment"), inside("Kolen-Pollack")
    ('feedback alignment', 'Kolen-Pollack')
    """
    return (
        title
        if title[1:] != title[1:].lower() or any(sign.isdigit() for sign in title)
        else title[:1].lower() + title[1:]
    )


def count(many: int, one: str, more: str = "") -> str:
    """A number of things.

    >>> count(1, "seed"), count(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{many} {one if many == 1 else more or one + 's'}"


def headline(comparison: Comparison) -> str:
    """The finding in one sentence: the best rule that transports nothing, beside backpropagation."""
    where = f"On {comparison.data['name']}"
    rows = [row for row in comparison.ranking if row.test_error_mean is not None]
    if not rows:
        return f"{where}, no rule has finished yet"
    reference = next((row for row in rows if row.rule == BASELINE), None)
    others = [row for row in rows if row is not reference]
    if not others:
        return f"{where}, {_ends(comparison, rows[0], ' test error')}."
    free = [row for row in others if row.transported == (NO_TRANSPORT,)]
    best = (free or others)[0]
    unit = " test error without weight transport" if free and reference else " test error"
    sentence = f"{where}, {_ends(comparison, best, unit)}"
    second = reference or next((row for row in others if row is not best), None)
    return f"{sentence}, {_ends(comparison, second, '', verb='at')}." if second else f"{sentence}."


def _ends(comparison: Comparison, row: Row, unit: str, verb: str = "ends at") -> str:
    return f"{inside(comparison.title(row.rule))} {verb} {percent(comparison, row)}{unit}"


def setting(comparison: Comparison) -> str:
    """The setting in a sentence or two: how many rules and seeds, for how long, on how many images."""
    data = comparison.data
    parts = [count(len(comparison.rules), "rule"), count(len(comparison.seeds), "seed") + " each"]
    if comparison.length:
        parts.append(f"{comparison.length:g} {comparison.axis}{'' if comparison.length == 1 else 's'}")
    said = ", ".join(parts)
    shape = data.get("shape")
    unit = f"windows of {shape[0]} bytes" if isinstance(shape, list) and len(shape) == 1 else "images"
    if isinstance(data.get("train"), int):
        said += f", on {data['train']:,} training {unit}"
    if isinstance(data.get("test"), int):
        said += f"; errors are over {data['test']:,} test {unit}"
        if isinstance(splits := data.get("splits"), dict) and splits.get("test", "split 'test'") != "split 'test'":
            said += f" ({splits['test']})"
    if any(row.test_error_sem is not None for row in comparison.table):
        said += ", ± is the standard error over seeds"
    return said + "."


def spread(comparison: Comparison) -> str:
    """A legend for lines and bands."""
    most = max(len(comparison.counted(entry.name)) for entry in comparison.rules)
    if most < 2:
        return "Lines: the one seed of each rule."
    return f"Lines: mean over {count(most, 'seed')}. Bands: from the lowest to the highest seed."

"""What the autoencoders of Figure 3 and Table 2a show: the table, curves, codes and reconstructions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from apical.papers.lansdell2020.common import mean
from apical.papers.outcome import Claim, Line, Outcome, Panel, Published, Row
from apical.papers.record import Record

# Table 2a [P]: mean and standard error of the least test loss of an epoch.
TABLE = {
    "bp": Published(609.8, 14.4),
    "bp, noise": Published(536.8, 2.1),
    "adam": Published(533.3, 2.2),
    "adam, noise": Published(522.3, 0.4),
    "fa": Published(759.1, 3.3),
    "fa, noise": Published(768.2, 2.7),
    "dae": Published(539.8, 4.9),
    "np": Published(515.3, 4.1),
    "sg": Published(521.6, 2.3),
    "matched": Published(615.0, 0.4),
    "matched, noise": Published(629.9, 1.1),
}

NEIGHBOURS = 10
SHOWN = 4
"""Rows and columns of the images in a mosaic."""
CODES = 1000
"""Test images whose codes are looked at."""
SEPARATION = "neighbours in the code of one class"


def outcome(shows: tuple[str, ...], records: Mapping[str, Record]) -> Outcome:
    """The parts that `shows` names: "table", "curves", "codes", "reconstructions"."""
    rows, claims, panels = [], [], []
    if "table" in shows:
        rows += _table(records)
    if {"table", "curves"} & set(shows):
        claims += _order(records)
    if "curves" in shows:
        panels.append(_curves(records))
    if "codes" in shows:
        rows += [
            Row(
                f"test images whose neighbours in the code are of their class, {k}",
                record.numbers[SEPARATION],
                unit="%",
            )
            for k, record in records.items()
        ]
        claims += _separated({k: mean(record.numbers[SEPARATION]) for k, record in records.items()})
        panels += [_codes(name, record) for name, record in records.items()]
    if "reconstructions" in shows:
        panels += _reconstructions(records)
        claims += _scrambled(records)
    return Outcome(rows=rows, claims=claims, panels=panels, columns=4 if shows == ("reconstructions",) else 2)


def _table(records: Mapping[str, Record]) -> list[Row]:
    rows = []
    for name, record in records.items():
        plain = name.removesuffix(", tuned rate")
        theirs, noisy = TABLE.get(plain), "minimum of test loss, noise on" in record.numbers
        # Methods differ by less than a tenth.
        own, reported = "minimum of test loss", None if noisy else theirs
        rows.append(Row(f"least test loss, {name}", record.numbers[own], reported, within=0))
        if noisy:
            own = "minimum of test loss, noise on"
            rows.append(Row(f"least test loss, {name}, noise on", record.numbers[own], theirs, within=0))
    return rows


def losses(record: Record) -> Sequence[float]:
    """Each seed's least test loss, of a noisy network with its noise on, as the code reports it [C]."""
    name = "minimum of test loss"
    return record.numbers.get(f"{name}, noise on", record.numbers[name])


def _order(records: Mapping[str, Record]) -> list[Claim]:
    found = {name: mean(losses(record)) for name, record in records.items()}
    claims = _worst(records)

    def below(one: str, other: str, text: str) -> None:
        if one in found and other in found:
            claims.append(Claim(text, found[one] < found[other], f"{found[one]:.1f} and {found[other]:.1f}"))

    below("np", "bp", "NP is better than BP")
    below("sg", "bp", "SG is better than BP (not said in words; so it is in the table)")
    below("dae", "bp", "DAE is better than BP")
    below("bp, noise", "bp", "noise helps BP")
    below("adam, noise", "adam", "noise helps ADAM")
    if {"fa", "fa, noise"} <= found.keys():
        apart = _two_errors(records, "fa", "fa, noise")
        claims.append(
            Claim(
                "noise does not help FA (here: by no more than two standard errors)",
                found["fa"] - found["fa, noise"] <= apart,
                f"{found['fa, noise']:.1f} with, {found['fa']:.1f} without; two standard errors are {apart:.1f}",
            )
        )
    printed = {name: value for name, value in found.items() if name in TABLE}
    if "np" in printed and len(printed) > 3:
        best = min(printed, key=lambda name: printed[name])
        claims.append(
            Claim(
                "NP is the best of all (here: of those in the table)",
                best == "np",
                f"best {best}, {printed[best]:.1f}; np {printed['np']:.1f}",
            )
        )
    if {"matched", "bp"} <= found.keys():
        apart = _two_errors(records, "matched", "bp")
        claims.append(
            Claim(
                "Matched is similar to BP (here: within two standard errors)",
                abs(found["matched"] - found["bp"]) <= apart,
                f"{found['matched']:.1f} and {found['bp']:.1f}; two standard errors are {apart:.1f}",
            )
        )
    return claims


def _two_errors(records: Mapping[str, Record], *names: str) -> float:
    """Two standard errors of the difference of two methods' losses."""
    return 2 * math.hypot(*(Row("", losses(records[name])).sem or 0.0 for name in names))


def _worst(records: Mapping[str, Record]) -> list[Claim]:
    found = {name: mean(losses(record)) for name, record in records.items() if name in TABLE}
    others = {name: value for name, value in found.items() if not name.startswith("fa")}
    if "fa" not in found or not others:
        return []
    nearest = max(others, key=lambda name: others[name])
    return [
        Claim(
            "FA performs poorly (here: worse than all others in the table)",
            found["fa"] > others[nearest],
            f"{found['fa']:.1f}; next is {nearest}, {others[nearest]:.1f}",
        )
    ]


def _curves(records: Mapping[str, Record]) -> Panel:
    return Panel(
        title="a",
        x="iterations [10³]",
        y="test loss of 32 images",
        lines=[
            Line.of(name, record.curves.get("test loss, noise on", record.curves["test loss"]))
            for name, record in records.items()
        ],
        log_y=True,
    )


def separation(codes: np.ndarray, labels: np.ndarray) -> float:
    """Percent of codes [N, units] that have the class of most of their ten nearest neighbours."""
    distances = np.square(codes[:, None] - codes[None]).sum(2)
    np.fill_diagonal(distances, np.inf)
    count = min(NEIGHBOURS, len(codes) - 1)
    votes = labels[np.argsort(distances, axis=1)[:, :count]]
    winners = [np.bincount(row, minlength=1).argmax() for row in votes]
    return float(100 * np.mean(np.asarray(winners) == labels))


def _separated(found: Mapping[str, float]) -> list[Claim]:
    claims = []
    told = ", ".join(f"{name} {value:.0f} %" for name, value in found.items())
    if {"np", "bp"} <= found.keys():
        claims.append(Claim("NP's code separates digits better than BP's", found["np"] > found["bp"], told))
    if {"fa", "np"} <= found.keys():
        claims.append(
            Claim(
                "FA's code does not separate digits (here: half as well as NP's)", found["fa"] < found["np"] / 2, told
            )
        )
    return claims


def _codes(name: str, record: Record) -> Panel:
    codes, labels = np.asarray(record.arrays["codes"], dtype=float), np.asarray(record.arrays["labels"])
    lines = [
        Line(label=str(k), x=codes[labels == k, 0].tolist(), y=codes[labels == k, 1].tolist())
        for k in range(int(labels.max()) + 1)
    ]
    return Panel(title=f"b, {name}", x="unit 1", y="unit 2", lines=lines, kind="points")


def _scrambled(records: Mapping[str, Record]) -> list[Claim]:
    """Whether FA's reconstructions tell less of their images than those of other methods do."""
    found = {
        name: recognised(record.arrays["images"], record.arrays["reconstructions"]) for name, record in records.items()
    }
    others = {name: count for name, count in found.items() if not name.startswith("fa")}
    if "fa" not in found or not others:
        return []
    told = ", ".join(f"{name} {count}" for name, count in found.items())
    return [
        Claim(
            "FA's reconstructions are scrambled (here: fewer of them than of any other method's lie nearest to their own image)",
            found["fa"] < min(others.values()),
            f"of {SHOWN**2}: {told}",
        )
    ]


def recognised(images: Sequence[Sequence[float]], reconstructions: Sequence[Sequence[float]]) -> int:
    """How many reconstructions lie nearer to their own image than to any other, of two mosaics."""
    own, made = (_tiles(mosaic) for mosaic in (images, reconstructions))
    nearest = np.square(made[:, None] - own[None]).sum(2).argmin(1)
    return int((nearest == np.arange(len(own))).sum())


def _tiles(mosaic: Sequence[Sequence[float]]) -> np.ndarray:
    pixels = np.asarray(mosaic, dtype=float)
    height, width = (n // SHOWN for n in pixels.shape)
    return pixels.reshape(SHOWN, height, SHOWN, width).transpose(0, 2, 1, 3).reshape(SHOWN**2, -1)


def _reconstructions(records: Mapping[str, Record]) -> list[Panel]:
    first = next(iter(records.values()))
    images = {"images": first.arrays["images"]}
    images |= {name: record.arrays["reconstructions"] for name, record in records.items()}
    return [Panel(title=f"c, {name}", kind="image", image=image) for name, image in images.items()]

"""Published results that take seconds are what their commands give now, so that no page goes stale unseen."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from apical.papers import find
from apical.papers.reproduce import reproduce

RESULTS = Path(__file__).parents[2] / "docs" / "results"
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
# Ten seconds in all; conditions where all would take longer.
QUICK = {
    "akrout2019/theory": ("wm loss", "flops"),
    "amit2019/circuits": (),
    "amit2019/theorem1": (),
}
LONGER = (
    "akrout2019/theory",
    "amit2019/conservation",
    "amit2019/fig12",
    "amit2019/fig12-scalar",
    "amit2019/theorem2",
    "lillicrap2016/fig2a",
    "lillicrap2016/fig2b",
    "lillicrap2016/pseudoinverse",
    "lillicrap2016/scale-sweep",
)


@pytest.mark.parametrize(
    ("name", "only"), [*QUICK.items(), *(pytest.param(name, (), marks=pytest.mark.slow) for name in LONGER)]
)
def test_what_is_published_is_what_the_command_gives(name, only, tmp_path):
    kept = json.loads((RESULTS / f"{name}.json").read_text())
    assert (kept["scale"], kept["command"]) == (1, f"apical reproduce {name}")
    now = reproduce(find(name), tmp_path / "run", only=only)
    about = ("seeds", "lengths", "title", "source", "length", "readings")
    assert {key: now[key] for key in about} == {key: kept[key] for key in about}
    shows, there = now["shows"], kept["shows"]
    if not only:
        assert {key: len(value) for key, value in _listed(shows)} == {key: len(value) for key, value in _listed(there)}
    rows = {row["label"]: row for row in there["rows"]}
    for row in shows["rows"]:
        _same(row["ours"], rows[row["label"]]["ours"], row["label"])
    claims = {claim["text"]: claim for claim in there["claims"]}
    for claim in shows["claims"]:
        told = claims[claim["text"]]
        assert {**claim, "evidence": ""} == {**told, "evidence": ""}
        assert NUMBER.sub("#", claim["evidence"]) == NUMBER.sub("#", told["evidence"])
    lines = _lines(there)
    for label, line in _lines(shows).items():
        _same(line["y"], lines[label]["y"], label)


def _listed(shows):
    return ((key, value) for key, value in shows.items() if isinstance(value, list))


def _lines(shows):
    """By panel and label; the runs of an experiment may have panels of one title each, which are counted."""
    found, counted = {}, Counter()
    for panel in shows["panels"]:
        for line in panel["lines"]:
            label = panel["title"], panel["y"], line["label"], line["dashed"]
            found[*label, counted[label]] = line
            counted[label] += 1
    return found


def _same(ours, theirs, what):
    """Equal but for rounding, which grows while a network learns; what is left of a million times as much is rounding alone."""
    ours, theirs = (np.array(values, dtype=float) for values in (ours, theirs))
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-6 * np.nanmax(np.abs(theirs)), err_msg=str(what))

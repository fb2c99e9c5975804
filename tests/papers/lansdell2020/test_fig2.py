"""Figure 2: its rules, and its panels as views of one set of runs."""

from __future__ import annotations

import json

import pytest

from apical.papers import find
from apical.papers.reproduce import reproduce


def test_rates_for_sums_become_rates_for_means():
    rule = find("lansdell2020/fig2").rule("np, c = 0.001", 2_000_000)
    found = rule.hyperparameters
    assert (found["rate"], found["noise"], found["warmup"], found["solver"]) == (0.016, 0.001, 1000, "sgd")
    assert find("lansdell2020/fig2").rule("np ridge, c = 0.1", 10).hyperparameters["solver"] == "ridge"


def test_a_view_takes_conditions_from_the_whole(data, tmp_path, monkeypatch):
    monkeypatch.setattr("apical.papers.reproduce.images.load", lambda name: data)
    options = {"seeds": 2, "scale": 0.005, "data": "noise"}
    whole = reproduce(find("lansdell2020/fig2"), tmp_path / "whole", only=["bp", "fa", "np, c = 0.1"], **options)
    monkeypatch.setattr(type(find("lansdell2020/fig2")), "_run", None)
    view = find("lansdell2020/fig2d")
    part = reproduce(view, tmp_path / "part", only=["fa", "np, c = 0.1"], using=tmp_path / "whole", **options)
    rows = {row["label"]: row["ours"] for row in whole["shows"]["rows"]}
    assert part["shows"]["rows"]
    assert all(rows[row["label"]] == row["ours"] for row in part["shows"]["rows"])
    assert not any("relative error" in row["label"] for row in part["shows"]["rows"])
    with pytest.raises(ValueError, match="scale: 0\\.005 there, 0\\.01 asked"):
        reproduce(view, tmp_path / "other", using=tmp_path / "whole", **{**options, "scale": 0.01})
    with pytest.raises(ValueError, match="lansdell2020/fig2, whose runs are not those of lansdell2020/fig4a"):
        reproduce(find("lansdell2020/fig4a"), tmp_path / "other", using=tmp_path / "whole", **options)
    with pytest.raises(ValueError, match=r"using: .*nothing can't be read.*no config\.json"):
        reproduce(view, tmp_path / "other", using=tmp_path / "nothing", **options)
    assert not (tmp_path / "other").exists()
    assert json.loads((tmp_path / "part" / "config.json").read_text())["experiment"] == "lansdell2020/fig2d"

"""`apical benchmark`: its table, its file and its figure."""

from __future__ import annotations

import io
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from rich.console import Console

from apical.benchmark import BenchmarkConfig, Measurement, benchmark, run, training_step
from apical.benchmark.steps import PLAIN
from apical.benchmark.subjects import SUBJECTS
from apical.benchmark.timing import Timing
from apical.cli.benchmark import Benchmark, table


def test_table_shows_ratios_with_rules_as_rows(tiny):
    found = run(BenchmarkConfig(networks=("tiny", "small"), rules=("fa",), seconds=1e-9, repeats=1))
    out = io.StringIO()
    Console(file=out, width=120).print(table(found))
    text = out.getvalue()
    fa = next(line for line in text.splitlines() if line.split()[1:2] == ["fa"])
    assert "tiny, 4" in text
    assert "small, 3" in text
    assert text.count(" ms") == text.count(" MiB") == 2
    for m in (m for m in found if m.rule == "fa"):
        assert f"{m.timing.ratio:.2f} ({m.memory_ratio:.2f})" in fa


def test_table_keeps_names_whole_on_a_narrow_terminal():
    timing = Timing(1.0, 1.0, 1.0, 1.0, 3)
    found = [Measurement(name, 64, rule, timing, 1.0, 1.0) for name in SUBJECTS for rule in (PLAIN, "fa")]
    out = io.StringIO()
    Console(file=out, width=80).print(table(found))
    text = out.getvalue()
    assert "…" not in text
    header = [line.strip("┃\n").split("┃") for line in text.splitlines() if line.startswith("┃")]
    columns = ["".join(cell.strip() for cell in column) for column in zip(*header, strict=True)]
    assert [column.replace(" ", "") for column in columns[1:]] == [f"{name},64" for name in SUBJECTS]


def test_command_writes_figures_with_machine_versions_date_and_threads(tiny, tmp_path, capsys):
    config = BenchmarkConfig(networks=("tiny",), rules=("fa", "urfb:epsilon=0.5"), seconds=1e-9, repeats=1, threads=1)
    Benchmark(config, json=tmp_path / "figures" / "here.json").run()
    written = json.loads((tmp_path / "figures" / "here.json").read_text())
    assert set(written) >= {"machine", "threads", "date", "command", "versions", "config", "measurements"}
    assert written["missing"] == []
    assert written["threads"] == 1
    assert written["versions"]["torch"] == torch.__version__
    assert written["config"]["rules"] == ["fa", "urfb:epsilon=0.5"]
    assert [m["rule"] for m in written["measurements"]] == [PLAIN, "fa", "urfb:epsilon=0.5"]
    assert set(written["measurements"][1]["timing"]) == {"milliseconds", "ratio", "low", "high", "rounds"}
    assert not [path for path in (tmp_path / "figures").iterdir() if path.name != "here.json"]


def test_modes_are_columns_and_panels_and_what_is_missing_is_told(tiny, tmp_path, monkeypatch, capsys):
    def step_of(model, rule, x, y, *, mode, **options):
        if rule == "dfa":
            raise RuntimeError("no [memory] left")
        return training_step(model, rule, x, y, **options)

    monkeypatch.setattr(benchmark, "training_step", step_of)
    json_file, svg = tmp_path / "figures.json", tmp_path / "costs.svg"
    config = BenchmarkConfig(
        networks=("tiny",), rules=("fa", "dfa"), modes=("eager", "compiled"), seconds=1e-9, repeats=1
    )
    Benchmark(config, json=json_file, figure=svg).run()
    out, told = capsys.readouterr()
    assert "tiny, 4, compiled" in out.replace("\n", " ")
    assert out.count(" samples/s") == 2
    assert told.count("not timed: dfa on tiny") == 2
    assert "no [memory] left" in told
    missing = json.loads(json_file.read_text())["missing"]
    assert [(one["mode"], one["rule"]) for one in missing] == [("eager", "dfa"), ("compiled", "dfa")]
    assert all(f'id="{name}"' in svg.read_text() for name in ("tiny", "tiny, compiled", "tiny, compiled/fa"))


def test_command_refuses_a_folder_before_timing(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "run", lambda *a: pytest.fail("timed"))
    with pytest.raises(ValueError, match="is a folder; name a file"):
        Benchmark(json=tmp_path).run()


def test_figure_has_a_panel_per_network_and_a_dot_per_rule_at_its_ratio(tiny, tmp_path):
    json_file, svg, again = tmp_path / "figures.json", tmp_path / "costs.svg", tmp_path / "again.svg"
    config = BenchmarkConfig(networks=("tiny", "small"), rules=("bp", "fa"), seconds=0.01)
    Benchmark(config, json=json_file, figure=svg).run()
    root = ElementTree.fromstring(svg.read_text())
    namespace = {"svg": "http://www.w3.org/2000/svg"}
    panels = {name: root.find(f".//svg:g[@id='{name}']", namespace) for name in ("tiny", "small")}
    for name, title in (("tiny", "tiny, batch 4"), ("small", "small, batch 3")):
        assert title in [text.text for text in panels[name].iterfind(".//svg:text", namespace)]
    measured = {
        (m["network"], m["rule"]): m["timing"]["ratio"] for m in json.loads(json_file.read_text())["measurements"]
    }
    for name, panel in panels.items():
        dots = [panel.find(f".//svg:g[@id='{name}/{rule}']//svg:use", namespace) for rule in ("bp", "fa")]
        places = [float(dot.get("x")) for dot in dots]
        ratios = [measured[name, rule] for rule in ("bp", "fa")]
        assert len(set(panel.iterfind(".//svg:use", namespace))) == 2
        assert (places[0] < places[1]) == (ratios[0] < ratios[1]) or places[0] == places[1]
        words = [text.text for text in panel.iterfind(".//svg:text", namespace)]
        assert {f"{ratio:.2f}" for ratio in ratios} <= set(words)
    Benchmark(config, read=json_file, figure=again).run()
    assert again.read_text() == svg.read_text()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"figure": Path("costs.png")}, "ends in .svg"),
        ({"read": Path("figures.json")}, "goes with --figure"),
        ({"read": Path("missing.json"), "figure": Path("costs.svg")}, "can't be read"),
        ({"read": Path("list.json"), "figure": Path("costs.svg")}, "holds no figures"),
        ({"read": Path("empty.json"), "figure": Path("costs.svg")}, "holds no measurements"),
    ],
)
def test_a_figure_that_can_not_be_drawn_is_refused_before_timing(options, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("list.json").write_text("[]")
    Path("empty.json").write_text("{}")
    monkeypatch.setattr(benchmark, "run", lambda *a: pytest.fail("timed"))
    with pytest.raises(ValueError, match=match):
        Benchmark(BenchmarkConfig(), **options).run()
    assert not Path("costs.svg").exists()

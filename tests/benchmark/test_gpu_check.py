"""gpu-check: all checks pass on a CPU, with nothing but the packages it names; what harms one check leaves the others."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from benchmarks.gpu_check.supervisor import RefusedError, Report, run

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "gpu_check"

WORKER = """
    import json, os, sys, time

    def say(line):
        print(json.dumps(line), flush=True)

    names = ["good", "dies", "again", "hangs", "breaks", "long", "benchmark/cell", "benchmark/big"]
    least = {"long": 50.0, "benchmark/big": 70.0}
    limits = {"hangs": 0.3}
    say({"about": {"machine": "a toy"}, "checks": [[n, limits.get(n, 20.0), least.get(n, 0.1)] for n in names]})
    print("what libraries say", file=sys.stderr, flush=True)
    for name in sys.stdin:
        name = name.strip()
        if name == "dies":
            print("illegal memory access", file=sys.stderr, flush=True)
            os._exit(7)
        if name == "hangs":
            time.sleep(60)
        figure = {"measurements": [{"rule": "fa", "timing": {"ratio": 1.5}}], "missing": []} if "/" in name else 0.25
        ok = name != "breaks"
        say({"name": name, "ok": ok, "figure": figure if ok else None, "seconds": 0.1, "error": "", "usable": ok})
        if not ok:
            break
"""


def toy(tmp_path: Path, text: str = WORKER) -> list[str]:
    file = tmp_path / "worker.py"
    file.write_text(textwrap.dedent(text))
    return [sys.executable, str(file)]


def test_what_harms_a_check_leaves_the_others_and_every_record_is_written(tmp_path, capsys):
    report = Report(tmp_path / "check.json", {"device": "toy"})
    start = time.monotonic()
    run(toy(tmp_path), 60.0, (), report, lambda: time.monotonic() - start)
    assert time.monotonic() - start < 30
    written = json.loads((tmp_path / "check.json").read_text())
    ok = {record["name"]: record["ok"] for record in written["checks"]}
    # "long" needs more than the share of the time that is for correctness.
    assert ok == {
        "good": True, "dies": False, "again": True, "hangs": False, "breaks": False, "long": None,
        "benchmark/cell": True, "benchmark/big": None,
    }  # fmt: skip
    told = {record["name"]: record["error"] for record in written["checks"]}
    assert "illegal memory access" in told["dies"]
    assert told["hangs"] == "took longer than 0.3 s"
    assert "it needs 50 s" in told["long"]
    assert "it needs 70 s" in told["benchmark/big"]
    assert written["machine"] == "a toy"
    assert written["measurements"] == [{"rule": "fa", "timing": {"ratio": 1.5}}]
    assert written["complete"] is False  # The caller says when all is done.
    assert "fa 1.50" in capsys.readouterr().out


def test_checks_are_chosen_by_how_their_names_start(tmp_path):
    report = Report(None, {})
    run(toy(tmp_path), 60.0, ("go", "benchmark/c"), report, lambda: 0.0)
    assert [record["name"] for record in report.records] == ["good", "benchmark/cell"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import json; print(json.dumps({'refused': 'no GPU'}))", "no GPU"),
        ("import sys; sys.exit('no torch')", "could not be started: no torch"),
    ],
)
def test_a_machine_that_can_not_be_checked_is_refused(tmp_path, text, why):
    with pytest.raises(RefusedError, match=why):
        run(toy(tmp_path, text), 60.0, (), Report(None, {}), lambda: 0.0)


def needed(*names: str) -> set[str]:
    """Distributions that these ones need, and they themselves."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = re.split(r"[^\w.-]", todo.pop())[0].lower().replace("_", "-")
        if name not in found:
            found.add(name)
            try:
                required = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:  # for another platform
                continue
            todo += [one for one in required if "extra ==" not in one]
    return found


@pytest.mark.slow
def test_all_checks_pass_on_a_cpu_with_nothing_but_the_packages_that_it_names(tmp_path):
    listed = [line for line in (FOLDER / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert set(needed(*listed)) - needed("torch") <= {re.split("[>=]", line)[0] for line in listed}, "not all are named"
    allowed = needed("torch", *listed)
    site = tmp_path / "site"
    site.mkdir()
    for name in allowed:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found = importlib.metadata.distribution(name)
            for top in {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}:
                if not (site / top).exists():
                    (site / top).symlink_to(found.locate_file(top))
    assert not (site / "rich").exists()
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys\nsys.path[:] = [one for one in sys.path if 'site-packages' not in one] + [{str(site)!r}]\n"
    )
    result = tmp_path / "check.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.gpu_check", "--device", "cpu", "--tiny"),
            *("--seconds", "1500", "--json", str(result)),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT / "src")])},
        capture_output=True,
        text=True,
        timeout=1600,
    )
    assert result.exists(), done.stderr
    written = json.loads(result.read_text())
    failed = {record["name"]: record["error"] for record in written["checks"] if record["ok"] is False}
    assert not failed, failed
    assert written["complete"]
    assert done.returncode == 0
    assert {m["network"] for m in written["measurements"]} == {"tiny-mlp", "tiny-cnn", "tiny-vit", "tiny-gpt"}
    assert written["missing"] == []

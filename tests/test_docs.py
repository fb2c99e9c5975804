"""What a reader can type runs and prints what the pages show, and what the pages list exists."""

import importlib.util
import inspect
import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

import apical
from apical.papers import experiments
from apical.papers.reproduce import reproduce
from apical.plasticity import INITS, Phased
from apical.synapses.registry import SYNAPSES

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
RULES = sorted((ROOT / "docs" / "rules").glob("*.md"))
# A block of code, and the output that stands below it, if any.
EXAMPLE = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", re.S)
BLOCKS = [(page, *found) for page in PAGES for found in EXAMPLE.findall(page.read_text())]


def named(value):
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else ""


@pytest.mark.parametrize(("page", "code", "shown"), BLOCKS, ids=named)
def test_code_runs_and_prints_what_is_shown(page, code, shown, capsys):
    known = dict(SYNAPSES)
    torch.manual_seed(0)
    try:
        exec(compile(code, str(page), "exec"), {"__name__": "page"})
    finally:
        SYNAPSES.clear()
        SYNAPSES.update(known)
    printed = capsys.readouterr().out
    if shown:
        number = re.compile(r"\d+(?:\.\d+)?")
        assert number.sub("#", printed) == number.sub("#", shown), printed
        numbers, expected = ([float(one) for one in number.findall(text)] for text in (printed, shown))
        assert numbers == pytest.approx(expected, rel=0.1, abs=1), printed


def test_the_example_layer_learns_as_autograd_would():
    code = next(code for _, code, _ in BLOCKS if "ScaledSynapse" in code)
    known, names = dict(SYNAPSES), {"apical": apical, "nn": nn}
    try:
        exec(code, names)
        torch.manual_seed(0)
        plain = nn.Sequential(names["Scaled"](4, 5), nn.Tanh(), names["Scaled"](5, 3)).double()
        x = torch.randn(6, 4, dtype=torch.float64)
        plain(x).square().sum().backward()
        expected = [p.grad.clone() for p in plain.parameters()]
        plain.zero_grad()
        apical.attach(plain, "bp")
        plain(x).square().sum().backward()
        for p, grad in zip(plain.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, grad)
        apical.learner_of(plain).detach()
        learner = apical.attach(plain, apical.rule("wm", activation="linear", decay=1.0, batch=4096), example_input=x)
        for _ in range(60):
            learner.adapt(x, None, lambda outputs, targets: outputs.sum(1))
        assert apical.measures.relative_error(plain[2].weight, learner.synapses["2"].feedback) < 0.1
    finally:
        SYNAPSES.clear()
        SYNAPSES.update(known)


def test_the_example_experiment_runs(tmp_path):
    code = next(code for _, code, _ in BLOCKS if "class Regression" in code)
    names = {"apical": apical, "nn": nn, "torch": torch, "__name__": "page"}
    exec(code, names)
    outcome = reproduce(names["example"], tmp_path / "run", scale=0.1)
    assert [row["label"] for row in outcome["shows"]["rows"]] == ["bp", "fa"]
    assert len(outcome["shows"]["rows"][0]["ours"]) == 2


def test_every_rule_is_in_the_readme_and_every_init_in_the_docs():
    assert all(f"`{name}`" in README.read_text() for name in apical.rules())
    index = (ROOT / "docs" / "rules" / "README.md").read_text()
    assert all(f"`{name}`" in index for name in (*apical.rules(), *INITS))


def test_a_newcomer_reads_the_readme_in_minutes():
    text = README.read_text()
    assert len(text.split()) <= 700
    assert "make demo" in text
    assert "make test" in text


def test_tables_of_hyperparameters_are_those_of_the_rules():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "rules" / "tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    pages = [page.read_text() for page in RULES]
    assert [tables.written(page) for page in pages] == pages, "run: python docs/rules/tables.py"
    found = [name for page in pages for table in tables.TABLE.finditer(page) for name in table["names"].split()]
    assert sorted(found) == sorted(apical.rules())


def test_the_reference_has_every_public_name_with_its_signature():
    page = (ROOT / "docs" / "reference.md").read_text()
    sections = dict(re.findall(r"^### (\S+)\n(.*?)(?=^##|\Z)", page, re.S | re.M))
    assert sorted(sections) == sorted(apical.__all__)
    for name, text in sections.items():
        if signature := re.match(rf"\n`apical\.{name}\((.*)\)`\n", text):
            given = re.findall(r"(\w+)(?:=([^,]+|\(\)))?(?:, |$)", signature[1].replace("*, ", "").replace("**", ""))
            expected = inspect.signature(getattr(apical, name)).parameters.values()
            assert [(one, default) for one, default in given] == [
                (p.name, "" if p.default is p.empty else repr(p.default).replace("'", '"')) for p in expected
            ], name
        else:
            assert name in RETURNED or name.endswith("Synapse"), f"{name} needs its signature"


RETURNED = ("Learner", "Replicas", "AuditReport", "SynapseAlignment", "Synapse")  # made by apical, not by its users


def test_the_readme_counts_experiments_and_claims_as_the_results_do():
    claims, run = {}, Counter()
    for name, experiment in experiments().items():
        path = ROOT / "docs" / "results" / f"{name}.json"
        if path.exists():
            run[experiment.paper] += 1
            # Several figures may show one set of runs, and judge one statement; what is derived or ours does not count.
            for claim in json.loads(path.read_text())["shows"]["claims"]:
                if claim["kind"] == "paper":
                    claims[experiment.paper, experiment.runs, claim["text"]] = claim["holds"] is True
    rows = re.findall(r"\(docs/results/(\w+)\.md\) \| (\d+) \| (\d+) of (\d+) \|", README.read_text())
    assert rows == [
        (paper, str(count), str(sum(held)), str(len(held)))
        for paper, count in run.items()
        for held in [[holds for (of, *_), holds in claims.items() if of == paper]]
    ]


def test_the_table_of_step_times_is_that_of_the_file():
    kept = json.loads((ROOT / "benchmarks" / "results" / "rules.json").read_text())
    ratios = {}
    for one in kept["measurements"]:
        ratios.setdefault(one["rule"], []).append(f"{one['timing']['ratio']:.2f} ({one['memory_ratio']:.2f})")
    page = (ROOT / "docs" / "performance.md").read_text()
    assert all(f"\n| `{rule}` | {' | '.join(row)} |\n" in page for rule, row in ratios.items() if rule != "plain")
    phased = {name for name, one in apical.rules().items() if isinstance(one.plasticity, Phased)}
    plain = [float(cell.split()[0]) for rule, row in ratios.items() if rule not in {"plain", *phased} for cell in row]
    said = f"step without a learning phase takes {min(plain):.2f} to {max(plain):.2f} times"
    assert said in " ".join(README.read_text().split())


def heading(line):
    """What a heading is linked by."""
    return re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-")


def test_links_lead_somewhere():
    for page in [*PAGES, *(ROOT / "benchmarks").glob("*.md"), ROOT / "CHANGELOG.md"]:
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
        for target, _, place in re.findall(r"\]\(([^)#]*)(#([^)]+))?\)", text):
            if target.startswith("http"):
                continue
            path = page.parent / target if target else page
            assert path.exists(), (page.name, target)
            if place:
                headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
                assert place in map(heading, headings), (page.name, target, place)


def test_public_names_are_those_of_the_contract():
    for name in ("attach", "rule", "rules", "Rule", "audit", "alignment", "register_synapse"):
        assert callable(getattr(apical, name))
    assert sorted(apical.__all__) == apical.__all__

"""What a reader can type runs, and what the pages list exists."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import apical
from apical.papers.reproduce import reproduce
from apical.plasticity import INITS
from apical.synapses.registry import SYNAPSES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [(page, code) for page in PAGES for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.S)]


@pytest.mark.parametrize(("page", "code"), BLOCKS, ids=lambda value: value.name if isinstance(value, Path) else "")
def test_code_runs(page, code):
    known = dict(SYNAPSES)
    torch.manual_seed(0)
    try:
        exec(compile(code, str(page), "exec"), {"__name__": "page"})
    finally:
        SYNAPSES.clear()
        SYNAPSES.update(known)


def test_the_example_layer_learns_as_autograd_would():
    code = next(code for _, code in BLOCKS if "ScaledSynapse" in code)
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
    code = next(code for _, code in BLOCKS if "class Regression" in code)
    names = {"apical": apical, "nn": nn, "torch": torch, "__name__": "page"}
    exec(code, names)
    outcome = reproduce(names["example"], tmp_path / "run", scale=0.1)
    assert [row["label"] for row in outcome["shows"]["rows"]] == ["bp", "fa"]
    assert len(outcome["shows"]["rows"][0]["ours"]) == 2


def test_every_rule_is_in_the_readme_and_every_init_in_the_docs():
    readme = (ROOT / "README.md").read_text()
    assert all(f"`{name}`" in readme for name in apical.rules())
    page = (ROOT / "docs" / "rules.md").read_text()
    assert all(f"`{name}`" in page for name in (*apical.rules(), *INITS))
    index = (ROOT / "docs" / "rules" / "README.md").read_text()
    assert all(f"`{name}`" in index for name in apical.rules())


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), (page.name, target)


def test_public_names_are_those_of_the_contract():
    for name in ("attach", "rule", "rules", "Rule", "audit", "alignment", "register_synapse"):
        assert callable(getattr(apical, name))
    assert sorted(apical.__all__) == apical.__all__

"""ResNet-20 and ResNet-56 on CIFAR-10 by SGD: the benchmark's table, and three rules that it lacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from typing_extensions import override

import apical
from apical.papers.claims import Statement, judge
from apical.papers.classifiers.experiment import Entry, ImageExperiment, error_panels, errors_of
from apical.papers.classifiers.training import Recipe
from apical.papers.outcome import Outcome, Published, Row
from apical.papers.record import Record

PRINTED: Mapping[str, float] = {
    "resnet20, bp": 8.63,
    "resnet20, usf": 10.05,
    "resnet20, fa": 32.16,
    "resnet20, dfa": 45.94,
    "resnet56, bp": 8.3,
    "resnet56, usf": 8.2,
    "resnet56, fa": 34.88,
    "resnet56, dfa": 38.01,
}
"""Top-1 test error in % of Benchmarks.md, by SGD."""
RULES = ("bp", "kp", "wm", "urfb", "usf", "fa", "dfa")
NETWORKS = ("resnet20", "resnet56")
NEAR, FAR = 0.5, 10.0
"""Points of test error within which a rule is as good as BP, and beyond which FA and DFA are far from sign symmetry."""

SGD = Recipe(epochs=250, batch=128, rate=0.1, drops=(100, 150, 200), init=nn.init.xavier_uniform_)


def _entry(network: str, rule: str) -> Entry:
    drawn: dict[str, Any] = {"init": "glorot"} if rule in ("kp", "wm", "urfb", "fa", "dfa") else {}
    return Entry(
        network=network,
        rule=apical.rule(rule, **drawn),
        recipe=replace(SGD, rate=0.001 if rule == "dfa" else SGD.rate),
    )


def _compared(text: str, low: str, high: str, by: float) -> list[Statement]:
    """For each network: that the error of one rule is higher than that of another by more than so many points."""
    return [
        Statement(
            f"{network}: {text}",
            (f"test error, {network}, {low}", f"test error, {network}, {high}"),
            lambda less, more: more - less > by,
            lambda less, more: f"{less:.1f}% against {more:.1f}%",
            "ours",
        )
        for network in NETWORKS
    ]


STATEMENTS = (
    *_compared(f"KP comes to BP's test error [within {NEAR:g} points]", "kp", "bp", -NEAR),
    *_compared(f"WM comes to BP's test error [within {NEAR:g} points]", "wm", "bp", -NEAR),
    *_compared("uSF comes near BP's test error [within 2 points, as in the table]", "usf", "bp", -2.0),
    *_compared(f"FA stays far above uSF [more than {FAR:g} points, as in the table]", "usf", "fa", FAR),
    *_compared("DFA stays above FA, as in the table", "fa", "dfa", 0.0),
    *_compared("URFB is better than FA, whose feedback is fixed", "urfb", "fa", 0.0),
)


@dataclass(frozen=True, kw_only=True)
class Benchmark(ImageExperiment):
    """Every network under every rule, the table's numbers beside ours."""

    @override
    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        rows = []
        for name, record in records.items():
            theirs = Published(PRINTED[name], tag="T") if name in PRINTED else None
            rows.append(Row(f"{name}: test error", record.numbers["test error"], theirs, "%"))
            rows += [
                Row(f"{name}: {other}", record.curves[other].last, unit="%")
                for other in ("validation error", "train error")
            ]
        return Outcome(rows=rows, claims=judge(STATEMENTS, errors_of(records)), panels=error_panels(records))


CIFAR10 = Benchmark(
    name="biotorch/cifar10",
    title="Seven rules on CIFAR-10, ResNet-20 and ResNet-56",
    source="jsalbert/biotorch, Benchmarks.md and benchmark_configs, SGD",
    length="250 epochs",
    seeds=1,
    minutes=7500,
    data="uoft-cs/cifar10",
    readings=(
        "A third party's table, of one run each, and no result of a paper: every claim is counted as ours. The table has no KP, "
        "WM and URFB: they learn with its settings for BP; WM mirrors as many rows of noise as the minibatch has images after "
        "each, with the library's defaults, from feedback that is drawn like the others'.",
        "A tenth of the training images is held out as there (45 000 and 5000), but other ones; nothing is chosen by it, and "
        "test errors are those after the last epoch.",
        "Networks have batch normalization before the ReLU and 1x1 convolutions as shortcuts where shapes change.",
        "Weights and feedback are drawn by Glorot's uniform distribution (Xavier); DFA's feedback goes to each layer's input.",
        "Images are flipped, moved by up to 4 pixels, and normalized by mean and deviation of the training images.",
        "Weight decay is the optimizer's L2 on all parameters, feedback that learns with the weights included. A shortened run "
        "shortens the epochs of the drops in proportion.",
        "uSF's scale is sqrt(2/(fan in + fan out)), as in BioTorch.",
        "Products are made in bfloat16, weights and their steps in single precision. Seeds count from 0; theirs was 2021.",
    ),
    entries={f"{network}, {rule}": _entry(network, rule) for network in NETWORKS for rule in RULES},
    angles=False,
    validation=0.1,
)

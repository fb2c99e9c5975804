"""Figures 8, 9 and 11: networks whose positions share no weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn
from typing_extensions import override

import apical
from apical.data import ImageData
from apical.networks import untie
from apical.papers import vision
from apical.papers.amit2019.filters import mosaic, similarity
from apical.papers.amit2019.tied import FAR, correlation_panels, layer_names, much_above, named, within
from apical.papers.amit2019.training import (
    BATCH,
    EPOCHS,
    HELD_OUT,
    READINGS,
    Cifar,
    attached,
    correlations_of,
    example_of,
    split_up,
    tied,
    training_of,
)
from apical.papers.claims import Statement, judge
from apical.papers.experiment import Task, given
from apical.papers.outcome import Line, Outcome, Panel, Row
from apical.papers.record import Record

NETWORKS = ("simpnet", "deepnet_s")
RULES = ("bp-h", "urfb", "frfb")
FROZEN = "0.first"
FROZEN_AFTER = 100  # [P] epochs


@dataclass(frozen=True, kw_only=True)
class Untied(Cifar):
    """Networks that learn tied; then, started anew but for a first convolution that stays, untied.

    Args:
        shows: "errors", "filters", "correlations".
    """

    shows: tuple[str, ...]
    statements: tuple[Statement, ...]
    networks: tuple[str, ...] = NETWORKS
    rules: tuple[str, ...] = RULES

    @property
    @override
    def runs(self) -> str:
        return "amit2019/untied"

    @override
    def steps(self, data: ImageData | None) -> Mapping[str, int]:
        each = self.epochs * vision.with_data(given(data), BATCH, HELD_OUT)
        return {"tied": each, "untied": each}

    @override
    def trained(self, task: Task) -> Record:
        net, label = task.condition.split(", ")
        example, (train, watched) = example_of(task.data), split_up(task.data)
        learners = [attached(tied(net, task.data, seed), label, seed, example) for seed in task.seeds]
        model, training = training_of(learners, label, train, task, example)
        steps = task.lengths["tied"]
        synapses = apical.learner_of(model).synapses
        keep_after = min(steps, FROZEN_AFTER * training.per_epoch) if net == "deepnet_s" else None

        def keep(done: int) -> None:
            if done == keep_after:
                task.save("first", {"weights": list(synapses[FROZEN].weight.detach().chunk(len(task.seeds)))})

        errors = vision.run(task, training, steps, watched, name="tied", after=keep)
        kept = task.restore("first")
        first = [None] * len(task.seeds) if kept is None else kept["weights"]
        numbers = {"tied, test error": training.errors(task.data.test)}
        learners = [
            self._untied(net, label, task.data, seed, own, example) for seed, own in zip(task.seeds, first, strict=True)
        ]
        model, training = training_of(learners, label, train, task, example)
        names = layer_names(model)
        updated = {name: one for name, one in names.items() if net != "deepnet_s" or name != FROZEN}
        correlations = correlations_of(model, label, task.seeds, updated)
        found = vision.run(task, training, task.lengths["untied"], watched, more=correlations, name="untied")
        numbers["untied, test error"] = training.errors(task.data.test)
        curves = {f"tied, {name}": curve for name, curve in errors.items()}
        curves |= {f"untied, {name}" if name.endswith("error") else name: curve for name, curve in found.items()}
        arrays: dict[str, Any] = {}
        if net == "simpnet":
            weight = apical.learner_of(model).synapses[next(iter(names))].weight.detach()
            pairs = [similarity(one) for one in weight.chunk(len(task.seeds))]
            numbers["same map"], numbers["other map"] = ([float(v) for v in one] for one in zip(*pairs, strict=True))
            arrays["filters"] = mosaic(weight.chunk(len(task.seeds))[0])
        return Record(curves=curves, numbers=numbers, arrays=arrays)

    @staticmethod
    def _untied(
        net: str, label: str, data: ImageData, seed: int, first: Tensor | None, example: Tensor
    ) -> apical.Learner:
        """The learner of a network that starts anew, untied, with the same filters at all positions."""
        model = tied(net, data, seed + 10**3)
        if first is not None:
            frozen = model.get_submodule(FROZEN)
            assert isinstance(frozen, nn.Conv2d)
            frozen.weight.data.copy_(first)
            frozen.weight.requires_grad_(False)
        learner = attached(model, label, seed + 10**3, example)
        names = [name for name, one in model.named_modules() if isinstance(one, nn.Conv2d)]
        untie(learner, [name for name in names if first is None or name != FROZEN], example)
        return learner

    @override
    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        values: dict[str, Any] = {}
        rows = []
        for name, record in records.items():
            values |= {f"{name}, {key}": value for key, value in record.numbers.items()}
            ends = {key: one.last for key, one in record.curves.items() if key.startswith("correlation, ")}
            values |= {f"correlations, {name}": ends} if ends else {}
            if "errors" in self.shows:
                rows += [
                    Row(f"{name}, {kind}: test error", record.numbers[f"{kind}, test error"], unit="%")
                    for kind in ("tied", "untied")
                ]
            if "filters" in self.shows and "same map" in record.numbers:
                rows += [
                    Row(f"{name}: filter correlation, {key}", record.numbers[key]) for key in ("same map", "other map")
                ]
        return Outcome(rows=rows, claims=judge(self.statements, values), panels=self._panels(records))

    def _panels(self, records: Mapping[str, Record]) -> list[Panel]:
        panels = []
        for net in self.networks:
            own = {name.split(", ")[1]: one for name, one in records.items() if name.startswith(f"{net}, ")}
            if "errors" in self.shows and own:
                bars = [
                    Line(
                        label=kind,
                        x=list(own),
                        y=[vision.average(one.numbers[f"{kind}, test error"]) for one in own.values()],
                    )
                    for kind in ("tied", "untied")
                ]
                panels.append(Panel(title=f"{net}, test error", y="test error (%)", lines=bars, kind="bars", low=0))
            if "correlations" in self.shows:
                panels += correlation_panels(net, own)
            if "filters" in self.shows:
                panels += [
                    Panel(title=f"{rule}, filters", kind="image", image=one.arrays["filters"])
                    for rule, one in own.items()
                    if "filters" in one.arrays
                ]
        return panels


def _not_much_above(tied_error: Sequence[float], untied_error: Sequence[float]) -> bool:
    return within(tied_error, untied_error, 5) or vision.average(untied_error) < vision.average(tied_error)


def _errors(net: str, kind: str, *rules: str) -> tuple[str, ...]:
    return tuple(f"{net}, {rule}, {kind}, test error" for rule in rules)


STATEMENTS = (
    *(
        Statement(
            f"{net}: untied networks have slightly more error or as much (here: at most 5 points), under {rule}",
            (f"{net}, {rule}, tied, test error", f"{net}, {rule}, untied, test error"),
            _not_much_above,
            named("tied", "untied"),
        )
        for net in NETWORKS
        for rule in RULES
    ),
    *(
        Statement(
            f"{net}: the order of rules is kept untied (here: of BP with the hinge loss, URFB and FRFB)",
            (*_errors(net, "tied", *RULES), *_errors(net, "untied", *RULES)),
            lambda *found: bool(np.all(_order(found[:3]) == _order(found[3:]))),
            named(*(f"{kind} {rule}" for kind in ("tied", "untied") for rule in RULES)),
        )
        for net in NETWORKS
    ),
    *(
        Statement(
            f"{net}: untied URFB reaches about the error of tied BP (here: within 5 points of it)",
            (*_errors(net, "tied", "bp-h"), *_errors(net, "untied", "urfb")),
            _not_much_above,
            named("tied bp-h", "untied urfb"),
        )
        for net in NETWORKS
    ),
    Statement(
        f"FRFB is much worse in the deep network (here: more than {FAR:g} points above URFB)",
        _errors("deepnet_s", "untied", "urfb", "frfb"),
        much_above,
        named("untied urfb", "untied frfb"),
    ),
)


def _order(errors: Sequence[Sequence[float]]) -> np.ndarray:
    return np.argsort([vision.average(one) for one in errors])


FILTERS = tuple(
    Statement(
        f"Filters of one map remain similar at all positions, under {rule} (here: correlated by more than 0.5, and more than "
        "those of different maps)",
        (f"simpnet, {rule}, same map", f"simpnet, {rule}, other map"),
        lambda same, other: vision.average(same) > max(0.5, vision.average(other)),
        lambda same, other: f"{vision.average(same):.3f}; different maps {vision.average(other):.3f}",
    )
    for rule in RULES
)
ALIGNED = (
    Statement(
        "Some but not all layers reach a correlation close to 1 under URFB (here: above 0.9)",
        ("correlations, deepnet_s, urfb",),
        lambda ends: 0 < sum(vision.average(one) > 0.9 for one in ends.values()) < len(ends),
        lambda ends: ", ".join(f"{vision.average(one):.3f}" for one in ends.values()),
    ),
    Statement(
        "Correlations are not monotone in depth, under URFB",
        ("correlations, deepnet_s, urfb",),
        lambda ends: (
            [vision.average(one) for one in ends.values()]
            not in (sorted(means := [vision.average(one) for one in ends.values()]), sorted(means, reverse=True))
        ),
        lambda ends: ", ".join(f"{vision.average(one):.3f}" for one in ends.values()),
    ),
)
PROTOCOL = (
    "Untied networks start anew, with one filter of each map at all positions, and R alike, and learn with minibatches of 500; "
    "the released code makes them of convolutions, and takes 50, and the paper gives no other number than 500.",
    "deepnet_s keeps its first convolution from the tied network, after 100 epochs, or where that is shortened to fewer, after "
    "all; it does not learn on. deepnet_s is lost in the text and read from the released code.",
)


def _figure(name: str, title: str, minutes: float, **fields: Any) -> Untied:
    return Untied(
        name=f"amit2019/{name}",
        title=title,
        source=f"Figure {name.removeprefix('fig')}",
        length=f"{EPOCHS} epochs tied, {EPOCHS} untied",
        seeds=1,
        together=False,
        minutes=minutes,
        data="uoft-cs/cifar10",
        precisions=vision.PRECISIONS,
        readings=(*READINGS, *PROTOCOL),
        **fields,
    )


FIG8 = _figure(
    "fig8", "Filters of an untied network", 12000, shows=("filters",), networks=("simpnet",), statements=FILTERS
)
FIG9 = _figure("fig9", "Tied and untied networks, CIFAR-10", 24000, shows=("errors",), statements=STATEMENTS)
FIG11 = _figure(
    "fig11",
    "Correlation of W and R in the seven updated layers of a deep network",
    12000,
    shows=("correlations",),
    networks=("deepnet_s",),
    rules=("urfb", "frfb"),
    statements=ALIGNED,
)

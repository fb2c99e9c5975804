"""ResNet-18 and ResNet-50 on ImageNet (section 6, D.1 to D.3): test errors, angles, and normalization before the ReLU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from typing_extensions import override

import apical
from apical.data import ImageData
from apical.data.options import DataOptions
from apical.papers.akrout2019.residual import (
    TITLES,
    angle_panels,
    angle_rows,
    angle_statements,
    angles_of,
    error_statements,
)
from apical.papers.akrout2019.resnet20 import recipe
from apical.papers.claims import Statement, judge
from apical.papers.classifiers.experiment import Entry, ImageExperiment, error_panels, errors_of
from apical.papers.classifiers.training import Recipe
from apical.papers.experiment import given
from apical.papers.outcome import Outcome, Published, Row
from apical.papers.record import Record

BATCH, WORKERS = 2048, 32
AFTER = "-norm-after"
PRINTED: Mapping[str, Published] = {
    "resnet18-norm-after, wm": Published(30.2, 0.7),
    "resnet18-norm-after, kp": Published(29.2, 0.4),
    "resnet18-norm-after, fa": Published(97.4, 0.2),
    "resnet18-norm-after, usf": Published(39.2, 0.4),
    "resnet18-norm-after, bp": Published(30.1, 0.4),
    "resnet50-norm-after, wm": Published(23.4, 0.5),
    "resnet50-norm-after, kp": Published(23.9, 0.7),
    "resnet50-norm-after, fa": Published(98.9, 0.1),
    "resnet50-norm-after, usf": Published(33.8, 0.3),
    "resnet50-norm-after, bp": Published(22.9, 0.4),
    "resnet18, usf": Published(37.8, 0.4),
    "resnet50, usf": Published(32.6, 0.6),
}
"""Top-1 test error in %, with the standard error, of section 6."""
SIGNS = "steps of sign symmetry"


def entry(network: str, rule: str) -> Entry:
    """A network under a rule with the printed settings."""
    plain = recipe(batch=BATCH, workers=WORKERS)
    settings: dict[str, tuple[dict[str, Any], Recipe]] = {
        "wm": ({"batch": BATCH}, recipe(batch=BATCH, mirrored=2, workers=WORKERS)),
        "usf": ({}, replace(plain, rate=0.5, epochs=140)),
    }
    options, own = settings.get(rule, ({}, plain))
    length = SIGNS if rule == "usf" else "steps"
    return Entry(network=network, rule=apical.rule(rule, **options), recipe=own, length=length)


def entries(networks: Sequence[str], rules: Sequence[str] = tuple(TITLES)) -> dict[str, Entry]:
    """Every network under every rule.

    >>> list(entries(["resnet18"], ["bp", "wm"]))
    ['resnet18, bp', 'resnet18, wm']
    """
    return {f"{network}, {rule}": entry(network, rule) for network in networks for rule in rules}


@dataclass(frozen=True, kw_only=True)
class ImageNet(ImageExperiment):
    """Views of one set of runs, from images in ImageNet's layout that are read while networks learn.

    Args:
        pixels: of each side of an image. shows: which statements are judged: "errors", "angles" or "norm".
    """

    shows: str
    pixels: int = 224

    @property
    @override
    def runs(self) -> str:
        return "akrout2019/imagenet"

    @override
    def load(self, name: str | None) -> ImageData:
        wanted = DataOptions(stream=True, image_size=self.pixels, augment=self.augment, normalize=self.normalize)
        return wanted.applied(given(self.data) if name is None else name)

    @override
    def prepared(self, data: ImageData) -> ImageData:
        return data  # As it was loaded: parts are cut out of whole images while these are decoded.

    @override
    def steps(self, data: ImageData | None) -> Mapping[str, int]:
        # Of both lengths in every view, so that each can take the others' runs.
        per_epoch = next(iter(self.entries.values())).recipe.per_epoch(given(data))
        lengths = {one.length: one.recipe.epochs for one in (*entries(["resnet18"]).values(), *self.entries.values())}
        return {length: epochs * per_epoch for length, epochs in lengths.items()}

    @override
    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        epochs = {name: one.recipe.epochs for name, one in self.entries.items()}
        networks = dict.fromkeys(name.partition(",")[0] for name in self.entries)
        others = {name: record for name, record in records.items() if not name.endswith(", bp")}
        if self.shows == "angles":
            statements = [one for network in networks for one in angle_statements(network, "paper")]
            values = angles_of(others, epochs)
            return Outcome(rows=angle_rows(others), claims=judge(statements, values), panels=angle_panels(others))
        shown = [one for name in networks if name.endswith(AFTER) for one in error_statements(name, 1.0, "paper")]
        if self.shows == "norm":
            shown = [_swapped(name, rule) for name in networks if not name.endswith(AFTER) for rule in TITLES]
        rows = [
            Row(f"{name}: top-1 test error", one.numbers["test error"], PRINTED.get(name), "%")
            for name, one in records.items()
        ]
        return Outcome(rows=rows, claims=judge(shown, errors_of(records)), panels=error_panels(records))


def _swapped(network: str, rule: str) -> Statement:
    """What normalization before the ReLU does to a rule."""
    needs = (f"test error, {network}, {rule}", f"test error, {network}{AFTER}, {rule}")
    if rule == "usf":
        text, holds = "SS is better with normalization before the ReLU", lambda before, after: before < after
    else:
        text = f"{TITLES[rule]} is about as good with normalization before the ReLU [within 1 point]"
        holds = lambda before, after: abs(before - after) < 1  # noqa: E731
    return Statement(
        f"{network}: {text}", needs, holds, lambda before, after: f"{before:.1f}% against {after:.1f}% after it"
    )


READINGS = (
    "The base rate is not printed: 0.1 x 2048/256 = 0.8, as usual for this batch. Nor is the number of epochs: 90; SS has 140 at "
    "a rate of 0.5, as printed, with drops after the same epochs.",
    "The 32 workers' parts of a minibatch, 64 images each, pass one after the other in one process, or are shared by several: "
    "gradients are averaged over them, each part has batch statistics of its own, as at a worker, and running statistics are the "
    "workers' mean.",
    "WM: Gaussian noise of sd 1, rate 0.1, decay 0.5 times the rate, 2048 rows in all, at no more than 64 positions of a map; "
    "the two epochs of mirroring alone are a part of the 90, and drops come after the same epochs.",
    "KP's decay is the optimizer's L2 of 1e-4 on weights, feedback, biases and normalization, with momentum on all.",
    "SS is uSF with the scale sqrt(2/(fan in + fan out)); the paper does not say which variant it takes.",
    "Images are flipped, and parts of at least 8 % of the area are brought to 224 pixels; for testing the shorter side is "
    "brought to 256 and the middle cut out. The paper refers to another one for it.",
    "Products are made in bfloat16, weights and their steps in single precision; angles are measured in evaluation mode on the "
    "first 256 test images.",
    "'As good as BP' is within 1 point, which the printed numbers themselves differ by; 'near zero' under 5 degrees.",
    "The number of runs is not stated; one is made.",
)


def _view(name: str, title: str, source: str, shows: str, minutes: float, chosen: Mapping[str, Entry]) -> ImageNet:
    return ImageNet(
        name=f"akrout2019/{name}",
        title=title,
        source=source,
        length="90 epochs, sign symmetry 140",
        seeds=1,
        minutes=minutes,
        data="ILSVRC/imagenet-1k",
        readings=READINGS,
        together=False,
        entries=chosen,
        angles=True,
        augment="flip+resized-crop",
        normalize="imagenet",
        shows=shows,
    )


EPOCH_18, EPOCH_50 = 14e15 / 30e9 / 60, 31e15 / 30e9 / 60
"""Minutes of an epoch on two cores, by the operations that it takes."""

FIG3A = _view(
    "fig3a",
    "ResNet-18 on ImageNet under five rules",
    "Figure 3a, section 6",
    "errors",
    500 * EPOCH_18,
    entries([f"resnet18{AFTER}"]),
)
FIG3B = _view(
    "fig3b",
    "ResNet-50 on ImageNet under five rules",
    "Figure 3b, section 6",
    "errors",
    500 * EPOCH_50,
    entries([f"resnet50{AFTER}"]),
)
FIG4 = _view(
    "fig4",
    "Angles of every layer, ResNet-50 on ImageNet",
    "Figure 4, section 6",
    "angles",
    410 * EPOCH_50 + 90 * EPOCH_18,
    {**entries([f"resnet50{AFTER}"], ["wm", "kp", "usf", "fa"]), **entries([f"resnet18{AFTER}"], ["fa"])},
)
FIG5 = _view(
    "fig5",
    "Batch normalization before the ReLU instead of after it",
    "Figure 5, section 6",
    "norm",
    1000 * (EPOCH_50 + EPOCH_18),
    entries(["resnet18", "resnet50", f"resnet18{AFTER}", f"resnet50{AFTER}"]),
)

"""ImageNet's stand-in where it can't be had: ResNet-20 on CIFAR-10, by the paper's recipe, with the angles of figure 4."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from typing_extensions import override

import apical
from apical.papers.akrout2019.residual import (
    angle_panels,
    angle_rows,
    angle_statements,
    angles_of,
    error_statements,
)
from apical.papers.claims import judge
from apical.papers.classifiers.experiment import Entry, ImageExperiment, error_panels, errors_of
from apical.papers.classifiers.training import Recipe
from apical.papers.outcome import Outcome, Row
from apical.papers.record import Record

EPOCHS = 90  # [R]
DROPS = (32, 62, 82)
NETWORK = "resnet20-norm-after"


def recipe(*, batch: int, mirrored: int = 0, workers: int = 1) -> Recipe:
    """The printed recipe (D.1 to D.3), for a batch of this size.

    >>> recipe(batch=2048).rate, recipe(batch=2048, mirrored=2).rate_at(5)
    (0.8, 0.4)
    """
    rate = 0.1 * batch / 256  # [R] not printed
    return Recipe(
        epochs=EPOCHS,
        batch=batch,
        rate=rate,
        nesterov=True,
        mirrored=mirrored,
        warmup=6,
        drops=DROPS,
        workers=workers,
    )


@dataclass(frozen=True, kw_only=True)
class StandIn(ImageExperiment):
    """The five rules on one small network."""

    network: str = NETWORK

    @override
    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        named = {f"{self.network}, {rule}": record for rule, record in records.items()}
        epochs = {f"{self.network}, {rule}": one.recipe.epochs for rule, one in self.entries.items()}
        statements = [*error_statements(self.network, 0.5, "ours"), *angle_statements(self.network, "ours")]
        rows = [
            Row(f"{rule}: {name}", records[rule].curves[name].last, unit="%")
            for rule in records
            for name in ("test error", "train error")
        ]
        return Outcome(
            rows=[*rows, *angle_rows({rule: one for rule, one in records.items() if rule != "bp"})],
            claims=judge(statements, {**errors_of(named), **angles_of(named, epochs)}),
            panels=[*error_panels(records), *angle_panels({k: v for k, v in records.items() if k != "bp"})],
        )


PLAIN = recipe(batch=128)

FIG4_CIFAR10 = StandIn(
    name="akrout2019/fig4-cifar10",
    title="ImageNet's stand-in: errors and angles of five rules, ResNet-20 on CIFAR-10",
    source="Figures 3 and 4, section 6, in another setting",
    length="90 epochs",
    seeds=1,
    minutes=480,
    data="uoft-cs/cifar10",
    readings=(
        "Not in the paper, whose networks learn ImageNet: every claim is the paper's, judged in another setting, so that all are "
        "counted as ours. ResNet-20 has batch normalization after the ReLU, as most of the paper's runs.",
        "The recipe is that of fig3a, at a batch of 128 instead of 2048 and at a rate of 0.1 x 128/256 = 0.05, by the same rule. "
        "A shortened run shortens warm-up, mirroring and the epochs of the drops in proportion.",
        "WM mirrors with as many rows of noise as the minibatch has images, as the paper does with 2048, at no more than 64 "
        "positions of a map for each; after two epochs of mirroring alone, as a part of the same 90 epochs.",
        "KP's decay is the optimizer's L2 of 1e-4 on weights, feedback, biases and normalization, with momentum on all.",
        "SS is uSF with the scale sqrt(2/(fan in + fan out)), at the others' rate and length: the paper's 0.5 was found for "
        "ImageNet.",
        "Images are flipped, moved by up to 4 pixels, and normalized by mean and deviation of the training images; all 50 000 "
        "are trained on. The paper says nothing of CIFAR-10.",
        "Products are made in bfloat16, weights and their steps in single precision; angles are measured in single precision, in "
        "evaluation mode, on the first 256 test images.",
        "'Near zero' is under 5 degrees, 'much better' 20 points, 'better' 2 points, 'as good as BP' within 0.5 points.",
    ),
    entries={
        "bp": Entry(network=NETWORK, rule=apical.rule("bp"), recipe=PLAIN),
        "wm": Entry(network=NETWORK, rule=apical.rule("wm"), recipe=recipe(batch=128, mirrored=2)),
        "kp": Entry(network=NETWORK, rule=apical.rule("kp"), recipe=PLAIN),
        "usf": Entry(network=NETWORK, rule=apical.rule("usf"), recipe=PLAIN),
        "fa": Entry(network=NETWORK, rule=apical.rule("fa"), recipe=PLAIN),
    },
    angles=True,
)

"""How the released runs learn: the release's four settings, and two of them as the paper's text has them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import apical


@dataclass(frozen=True)
class Condition:
    """A rule with the settings of the release, or with those of the paper's text; its `str` is the condition's name.

    >>> str(Condition("kp", paper=True)), Condition("kp", paper=True).title
    ('kp, paper', "KP with the paper's settings")
    """

    rule: str
    paper: bool = False

    def __str__(self) -> str:
        return f"{self.rule}, paper" if self.paper else self.rule

    @property
    def title(self) -> str:
        """The condition's name in a sentence."""
        return self.rule.upper() + (" with the paper's settings" if self.paper else "")


CONDITIONS = (*map(Condition, ("bp", "fa", "kp", "wm")), Condition("kp", paper=True), Condition("wm", paper=True))


@dataclass(frozen=True)
class Setting:
    """The rule and the rates of a condition.

    Args:
        rule: with its hyperparameters. rate: of the weights. decay: L2 on weights, feedback and biases.
        slow_biases: whether the bias step is divided by the batch size a second time, as in the release.
        mirrored: how many epochs' number of mirror steps come before the first minibatch.
    """

    rule: apical.Rule
    rate: float
    decay: float = 0.0
    slow_biases: bool = True
    mirrored: int = 0


def settings(batch: int) -> dict[str, Setting]:
    """The setting of every condition, by its name, for minibatches of `batch` samples.

    >>> settings(128)["kp"].rate
    0.3
    """
    return {
        "bp": Setting(apical.rule("bp"), 0.2),  # [C]
        "fa": Setting(apical.rule("fa", init="akrout2019"), 0.2),  # [C]
        "kp": Setting(apical.rule("kp", init="akrout2019"), 0.3),  # [C] no decay; CONFLICT with the paper
        # [C] noise on +-0.05, summed over the batch, nothing subtracted, no decay; CONFLICT with the paper
        "wm": Setting(
            apical.rule(
                "wm",
                noise=0.05 / math.sqrt(3),
                distribution="uniform",
                activation="sigmoid",
                baseline=0.0,
                rate=0.01 * batch,
                decay=0.0,
                init="akrout2019",
            ),
            0.05,
            mirrored=1,
        ),
        "kp, paper": Setting(apical.rule("kp", init="akrout2019"), 0.3, decay=1e-4, slow_biases=False),  # [R] rate
        "wm, paper": Setting(  # [R] rate
            apical.rule("wm", activation="sigmoid", batch=2048, init="akrout2019"),
            0.2,
            slow_biases=False,
            mirrored=2,
        ),
    }

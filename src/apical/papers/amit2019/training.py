"""Section 4: saturated linear networks without biases on CIFAR-10, by plain SGD with one rate for all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from typing_extensions import override

import apical
from apical.data import ImageData
from apical.data.images import Split
from apical.losses import cross_entropy, hinge
from apical.measures.tensors import correlation
from apical.networks.amit2019 import amit2019_deepernet, amit2019_deepnet, amit2019_deepnet_s, amit2019_simpnet
from apical.papers import vision
from apical.papers.experiment import Experiment, Task, given
from apical.papers.record import Record
from apical.papers.vision import Recipe, Training

BATCH, RATE, EPOCHS = 500, 0.1, 1000  # [P]
HELD_OUT = 0.1  # [C]
RULES = ("bp", "bp-h", "urfb", "frfb", "urfb 50 %", "frfb 50 %")
"""Rules as the figures name them: "bp" with softmax, all others with the hinge loss; "50 %": half of the connections."""
NETWORKS: Mapping[str, Callable[..., nn.Sequential]] = {
    "simpnet": amit2019_simpnet,
    "deepnet": amit2019_deepnet,
    "deepernet": amit2019_deepernet,
    "deepnet_s": amit2019_deepnet_s,
}
READINGS = (
    "Networks, f with slope 1 and centred max pooling are those of the paper's text; the released code has slope 0.5 and windows "
    "that begin in the corner.",
    "The last tenth of the training images is held out, as the released code holds out 5000, and gives the validation errors. "
    "Rows are test errors after the last step.",
    "The training error is that of the minibatches as they are learned from, with dropout.",
    "The hinge loss weighs the other classes by 1/(C - 1), as the released code does on CIFAR-10; the paper prints no value.",
    "At 50 %, all layers are thinned but the last, in W and in R: released code.",
    "The paper gives no standard errors and, as far as the code shows, has one run of each.",
)


def rule_of(label: str) -> str:
    """The rule's name in the library.

    >>> [rule_of(one) for one in ("bp-h", "urfb 50 %")]
    ['bp', 'urfb']
    """
    name = label.partition(" ")[0]
    return "bp" if name == "bp-h" else name


def recipe(label: str) -> Recipe:
    """How a network learns by the rule of this label."""
    return Recipe(loss=cross_entropy if label == "bp" else hinge, batch=BATCH)


def attached(model: nn.Module, label: str, seed: int, example: Tensor) -> apical.Learner:
    """The learner of a network of a seed."""
    *_, last = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    half = {"": 0.5, last: 1.0} if label.endswith("50 %") else None
    return apical.attach(
        model,
        rule_of(label),
        example_input=example,
        generator=vision.feedback_stream(seed),
        connectivity=half,
    )


def training_of(
    learners: Sequence[apical.Learner], label: str, train: Split, task: Task, example: Tensor
) -> tuple[nn.Module, Training]:
    """The networks of some learners side by side, and their training."""
    model = vision.side_by_side(learners, example)
    optimizer = apical.LocalSGD(apical.learner_of(model), lr=RATE)
    return model, Training(model, optimizer, recipe(label), train, task.seeds, task.precision)


class Correlations:
    """Correlation of W with R in every layer that learns, of each copy.

    The first layer's R carries no signal and is kept nowhere. It is tracked here, as the figures show it: drawn like the others,
    fixed under "frfb", and under "urfb" moved as W is, so that R = R(0) + W - W(0).

    Args:
        model: attached. rule: of all layers. seeds: of the copies. layers: name of the synapse -> what to call it.
    """

    def __init__(self, model: nn.Module, rule: str, seeds: Sequence[int], layers: Mapping[str, str]) -> None:
        self.rule, self.layers = rule, layers
        self.synapses = apical.learner_of(model).synapses
        self.copies = len(seeds)
        self.tracked: dict[str, tuple[Tensor, Tensor]] = {}
        for name in layers:
            synapse = self.synapses[name]
            if synapse.feedback is None:
                shares = synapse.weight.detach().chunk(self.copies)
                drawn = [self._drawn(share, seed) for share, seed in zip(shares, seeds, strict=True)]
                self.tracked[name] = torch.cat(drawn), synapse.weight.detach().clone()

    @staticmethod
    def _drawn(like: Tensor, seed: int) -> Tensor:
        """R(0) of a layer [out, in, *kernel], or of one untied [out, h, w, in, *kernel], with a filter for all positions."""
        one = like[:, 0, 0] if like.dim() == 6 else like
        drawn = torch.empty_like(one, memory_format=torch.contiguous_format)
        nn.init.xavier_uniform_(drawn, generator=torch.Generator().manual_seed(seed + 2 * 10**6))
        return drawn[:, None, None].expand_as(like) if like.dim() == 6 else drawn

    def __call__(self) -> dict[str, list[float]]:
        """Name of the measure -> value of each copy."""
        found = {}
        for name, label in self.layers.items():
            synapse = self.synapses[name]
            W = synapse.weight.detach()
            if name in self.tracked:
                R, first = self.tracked[name]
                R = R + W - first if self.rule == "urfb" else R
            else:
                R = given(synapse.feedback, "feedback").detach()
            pairs = zip(W.chunk(self.copies), R.chunk(self.copies), strict=True)
            found[f"correlation, {label}"] = [correlation(w, r) for w, r in pairs]
        return found


def correlations_of(
    model: nn.Module, label: str, seeds: Sequence[int], layers: Mapping[str, str]
) -> Callable[[], dict[str, list[float]]]:
    """What measures `Correlations` where feedback is random; else nothing."""
    return Correlations(model, rule_of(label), seeds, layers) if label in ("urfb", "frfb") else dict


@dataclass(frozen=True, kw_only=True)
class Cifar(Experiment):
    """An experiment on CIFAR-10 with the paper's one recipe: networks by rules, each a condition "NETWORK, RULE".

    Args:
        networks: names. rules: labels. epochs: of one training.
    """

    networks: tuple[str, ...]
    rules: tuple[str, ...] = RULES
    epochs: int = EPOCHS

    @property
    @override
    def conditions(self) -> tuple[str, ...]:
        return tuple(f"{net}, {rule}" for net in self.networks for rule in self.rules)

    @override
    def run(self, task: Task) -> Record:
        with vision.repeatable(task.seeds[0]):
            return self.trained(task)

    def trained(self, task: Task) -> Record:
        """The record of a condition, under the seeds' random state."""
        raise NotImplementedError

    def steps(self, data: ImageData | None) -> Mapping[str, int]:
        """The number of minibatches."""
        return {"steps": self.epochs * vision.with_data(given(data), BATCH, HELD_OUT)}


def split_up(data: ImageData) -> tuple[Split, dict[str, Split]]:
    """The images to learn from, and those that errors are measured on along the training."""
    train, validation = vision.held_out(data.train, HELD_OUT)
    return train, {"validation": validation}


def tied(net: str, data: ImageData, seed: int) -> nn.Sequential:
    """The network of this name and seed, before learning."""
    return vision.seeded(seed, lambda: NETWORKS[net](data.shape, data.classes))


def example_of(data: ImageData) -> Tensor:
    """A batch of two images."""
    return data.train.batch(torch.arange(min(2, len(data.train))))[0]


def finite(values: Sequence[float]) -> list[float]:
    """The values that are numbers."""
    return [value for value in values if math.isfinite(value)]

"""The networks that are timed, each with its batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apical.losses import cross_entropy
from apical.networks import (
    gpt_124m,
    lansdell2020_cnn,
    mlp,
    parse_sizes,
    resnet18,
    resnet20,
    resnet50,
    vit_s16,
)


def next_tokens(outputs: Tensor, targets: Tensor) -> Tensor:
    """Softmax cross-entropy of outputs [N, T, vocabulary] on tokens [N, T], mean over positions: [N]."""
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape).mean(1)


@dataclass(frozen=True)
class Subject:
    """A network to time, with the shape of its inputs and its batch size.

    classes: values of its output. vocabulary: of a network on tokens, whose inputs and targets are [batch, *shape] of these;
    None: inputs are numbers.

    >>> subject = SUBJECTS["784-50-20-10"]
    >>> subject.shape, subject.batch
    ((784,), 32)
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int
    classes: int = 10
    vocabulary: int | None = None

    @property
    def criterion(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Gives losses [N] of outputs and targets."""
        return cross_entropy if self.vocabulary is None else next_tokens

    @property
    def unit(self) -> str:
        """What its batches are made of."""
        if self.vocabulary is not None:
            return "tokens"
        return "images" if len(self.shape) == 3 else "samples"

    def units(self, batch: int) -> int:
        """How many of them are in a batch of so many samples."""
        return batch if self.vocabulary is None else batch * self.shape[0]

    def draw(self, batch: int, device: str) -> tuple[Tensor, Tensor]:
        """A batch of noise and random targets, from PyTorch's global generator."""
        if self.vocabulary is not None:
            x, y = torch.randint(self.vocabulary, (2, batch, *self.shape), device=device)
            return x, y
        return torch.randn(batch, *self.shape, device=device), torch.randint(self.classes, (batch,), device=device)


def _sizes(text: str, batch: int) -> Subject:
    sizes = parse_sizes(text)
    return Subject(lambda: mlp(sizes), (sizes[0],), batch)


SUBJECTS: dict[str, Subject] = {
    "784-50-20-10": _sizes("784-50-20-10", 32),
    "784-1000-10": _sizes("784-1000-10", 64),
    "784-800-800-10": _sizes("784-800-800-10", 64),
    "3072-1000-1000-1000-10": _sizes("3072-1000-1000-1000-10", 128),
    "lansdell2020-cnn": Subject(lansdell2020_cnn, (3, 32, 32), 64),
    "resnet20": Subject(resnet20, (3, 32, 32), 64),
}
"""Name -> the networks that figures are quoted for on a CPU."""

LARGE: dict[str, Subject] = {
    "3072-8192x3-10": _sizes("3072-8192-8192-8192-10", 1024),
    "small-resnet18": Subject(lambda: resnet18(10, stem="small"), (3, 32, 32), 128),
    "resnet18": Subject(resnet18, (3, 224, 224), 192, 1000),
    "resnet50": Subject(resnet50, (3, 224, 224), 192, 1000),
    "vit-s16": Subject(vit_s16, (3, 224, 224), 192, 1000),
    "gpt-124m": Subject(gpt_124m, (1024,), 16, 50257, 50257),
}
"""Name -> networks of a GPU's size."""

"""The toy networks of the tests, batches for them, and what stands in for parts of the library."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from apical.phases.noisy_pass import Estimate

dynamo = pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning",
    "ignore:.*torch.jit.script_method:DeprecationWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf",
)
"""What Dynamo itself does while it traces any autograd.Function or hook, attached or not."""


def seed(n: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(n)


X = torch.randn(8, 4, generator=seed(5))
Y = torch.randint(3, (8,), generator=seed(6))
IMAGES = torch.randn(8, 2, 6, 6, generator=seed(7))
DOUBLES = torch.randn(8, 2, 6, 6, generator=seed(1), dtype=torch.float64)
CLASSES = torch.randint(3, (8,), generator=seed(2))


def chain(n: int = 0, **options) -> nn.Sequential:
    """A chain whose inner synapses keep shape, as the indirect rule wants it. BatchNorm: buffers; Dropout: randomness."""
    torch.manual_seed(n)
    return nn.Sequential(
        nn.Linear(4, 6, **options),
        nn.BatchNorm1d(6, **options),
        nn.Tanh(),
        nn.Dropout(0.3),
        nn.Linear(6, 6, **options),
        nn.Tanh(),
        nn.Linear(6, 3, **options),
    )


class Branching(nn.Module):
    """Convolutions with a residual sum, two branches that meet, and an embedding of a second input."""

    def __init__(self, n: int = 0) -> None:
        super().__init__()
        torch.manual_seed(n)
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
        self.left = nn.Conv2d(4, 3, 1)
        self.right = nn.Conv2d(4, 3, 3, padding=1)
        self.token = nn.Embedding(5, 6)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor, token: Tensor | None = None) -> Tensor:
        h = torch.relu(self.norm(self.stem(x)))
        h = torch.relu(h + self.block(h))
        h = torch.cat([self.left(h).mean((2, 3)), self.right(h).amax((2, 3))], 1)
        t = torch.zeros(len(x), dtype=torch.long) if token is None else token
        return self.head(torch.cat([torch.tanh(h), self.token(t)], 1))


def plain_chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))


def flat_chain(n: int | None = 0) -> nn.Sequential:
    """On images; inner synapses keep shape, as the indirect rule wants it. With None, the global seed decides."""
    if n is not None:
        torch.manual_seed(n)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(72, 9), nn.BatchNorm1d(9), nn.Tanh(), nn.Linear(9, 9), nn.Tanh(), nn.Linear(9, 3)
    ).double()


def convolutions() -> nn.Sequential:
    """Padding, groups, strides, transposed."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, stride=2, groups=2),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 4, 2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(36, 3),
    ).double()


def exactly(phase, places, c, distribution, calls=None) -> dict[tuple[str, int], Estimate]:
    """In place of `estimates`: what they are on average for small noise."""
    found: dict[tuple[str, int], Estimate] = {}
    phase.clean.true_signals(
        list(places), lambda place, call, signal: found.update({(place, call): Estimate(signal.clone())})
    )
    return {place: estimate for place, estimate in found.items() if calls is None or place in calls}


class ManyKinds(nn.Module):
    """Strided, grouped and dilated convolutions, batch and group norm, a shortcut, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.inner = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2)
        self.group = nn.GroupNorm(2, 4)
        self.down = nn.Conv2d(4, 6, 2, stride=2, padding_mode="circular")
        self.up = nn.ConvTranspose2d(6, 4, 2, groups=2)
        self.head = nn.Linear(4, 3)
        self.double()

    def forward(self, x):
        h = F.relu(self.norm(self.first(x)))
        h = h + torch.tanh(self.group(self.inner(h)))
        h = F.relu(self.up(F.relu(self.down(h))))
        return self.head(F.adaptive_avg_pool2d(h, 1).flatten(1))


class NormalizedLate(nn.Module):
    """Residual, normalized after its ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn, self.conv2 = (
            nn.Conv2d(4, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 4, 3, padding=1),
        )

    def forward(self, x):
        return torch.relu_(x + self.conv2(self.bn(torch.relu(self.conv1(x)))))


class ResidualNet(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.block = NormalizedLate()
        self.drop = nn.Dropout(0.25)
        self.head = nn.Linear(36, 3)
        self.checkpointed = False

    def forward(self, x):
        h = torch.tanh(self.norm(self.stem(x)))
        h = checkpoint(self.block, h, use_reentrant=False) if self.checkpointed else self.block(h)
        return self.head(self.drop(h.flatten(1)))


class ConvolutionParts(nn.Module):
    """Convolutions and a linear chain; its `run` is called for each part, so that tests can put checkpoints around them."""

    def __init__(self, run=None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
        self.third = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh())
        self.head = nn.Linear(4, 3)
        self.run = run or (lambda part, x: part(x))

    def forward(self, x: Tensor) -> Tensor:
        x = self.run(self.first, x)
        x = self.run(self.second, x)
        x = self.run(self.third, x)
        return self.head(x.mean((2, 3)))


class LinearParts(nn.Module):
    """Shape-keeping, so that the indirect rule takes it too."""

    def __init__(self, run=None, dtype=torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Linear(4, 6, dtype=dtype), nn.LayerNorm(6, dtype=dtype), nn.Tanh())
        self.second = nn.Sequential(nn.Linear(6, 6, dtype=dtype), nn.Tanh())
        self.third = nn.Sequential(nn.Linear(6, 6, dtype=dtype), nn.Tanh())
        self.head = nn.Linear(6, 3, dtype=dtype)
        self.run = run or (lambda part, x: part(x))

    def forward(self, x: Tensor) -> Tensor:
        for part in (self.first, self.second, self.third):
            x = self.run(part, x)
        return self.head(x)


def mlp(widths=(6, 8, 7, 4), nonlinearity=nn.Tanh, bias=True) -> nn.Sequential:
    layers = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [nn.Linear(n_in, n_out, bias=bias), nonlinearity()]
    return nn.Sequential(*layers[:-1]).double()


def cnn():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(4, 6, 3, stride=2, groups=2),
        nn.Tanh(),
        nn.ConvTranspose2d(6, 2, 2, stride=2),
        nn.Flatten(),
        nn.Linear(2 * 4 * 4, 4),
    ).double()


class ShortcutBlock(nn.Module):
    """Two convolutions with batch norm, and a shortcut, which is a convolution where the size changes."""

    def __init__(self, n_in, n_out, stride, groups, dilation):
        super().__init__()
        self.first = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(n_out)
        self.second = nn.Conv2d(n_out, n_out, 3, padding=dilation, dilation=dilation, groups=groups)
        self.second_norm = nn.BatchNorm2d(n_out)
        self.shortcut = nn.Conv2d(n_in, n_out, 1, stride, bias=False) if stride > 1 or n_in != n_out else nn.Identity()

    def forward(self, x):
        h = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(h)) + self.shortcut(x))


class ResidualBlocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular")
        self.norm = nn.BatchNorm2d(4)
        self.blocks = nn.Sequential(
            ShortcutBlock(4, 4, 1, 2, 2), ShortcutBlock(4, 8, 2, 4, 1), ShortcutBlock(8, 8, 1, 8, 2)
        )
        self.up = nn.ConvTranspose2d(8, 4, 2, 2, groups=2)
        self.head = nn.Linear(4, 4)

    def forward(self, x):
        h = self.blocks(F.max_pool2d(F.relu(self.norm(self.stem(x))), 2))
        return self.head(F.dropout(self.up(h), 0.0).mean(dim=(2, 3)))


class OverTime(nn.Module):
    """One synapse used at every step of a sequence."""

    def __init__(self):
        super().__init__()
        self.read, self.step, self.write = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 4)

    def forward(self, x):
        h = torch.zeros(len(x), 5, dtype=x.dtype)
        for t in range(x.shape[1]):
            h = torch.tanh(self.read(x[:, t]) + self.step(h))
        return self.write(h)


class TwoEyes(nn.Module):
    """Two synapses that see the data, one of them again further up."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 5), nn.Linear(3, 5)
        self.middle, self.top = nn.Linear(10, 6), nn.Linear(6 + 3, 4)

    def forward(self, x):
        both = torch.cat([torch.tanh(self.left(x[:, :3])), torch.relu(self.right(x[:, 3:]))], dim=1)
        return self.top(torch.cat([torch.tanh(self.middle(both)), x[:, :3]], dim=1))


class Words(nn.Module):
    """A language model in small: an embedding, and a head that may share its weights."""

    def __init__(self, embedding: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(9, 6) if embedding is None else embedding
        self.hidden, self.head = nn.Linear(6, 6), nn.Linear(6, 9, bias=False)

    def forward(self, word):
        return self.head(self.hidden(self.words(word)).tanh())

    def tie(self, way):
        if way == "to the embedding":
            self.head.weight = self.words.weight
        else:
            self.words.weight = self.head.weight


def tied_words(embedding: nn.Module | None = None) -> Words:
    model = Words(embedding)
    model.tie("to the embedding")
    return model.double()

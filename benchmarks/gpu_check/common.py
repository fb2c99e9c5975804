"""Where checks run, the networks and batches that they use, and how results are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import apical

RULES = tuple(apical.rules())
PHASED = ("wm", "np", "np-direct", "sg", "sg-direct", "reinforce")
"""Rules that learn in `Learner.adapt`."""
DRAWING = ("wm", "np", "np-direct", "reinforce")
"""Those of them that draw noise, each process its own."""
REDRAWN = ("brsf",)
"""Rules that draw feedback anew at every pass, in the weights' own precision."""
ALONE = ("np-direct", "sg-direct")
"""Rules that copies side by side refuse."""
CLASSES = 5
LIMIT = 45.0


class SkipError(Exception):
    """A check that can't be made here, and why."""


@dataclass(frozen=True)
class Where:
    """device: "cuda" or "cpu". tiny: sizes for a test of the checks themselves."""

    device: str
    tiny: bool

    def choose(self, tiny: int, full: int) -> int:
        """A size."""
        return tiny if self.tiny else full


@dataclass(frozen=True)
class Check:
    """A check: its name, what makes it and gives its figure, and the seconds that it may take and needs at least."""

    name: str
    make: Callable[[], Any]
    limit: float = LIMIT
    least: float = 2.0


def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
    """Losses [N]."""
    return F.cross_entropy(outputs, targets, reduction="none")


def batch(where: Where, dtype: torch.dtype = torch.float32, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Images [N, 3, 8, 8] and classes [N], the same on every device."""
    rows, source = where.choose(8, 64), torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 3, 8, 8, generator=source, dtype=torch.float64)
    y = torch.randint(CLASSES, (rows,), generator=source)
    return x.to(where.device, dtype), y.to(where.device)


def chain(where: Where) -> nn.Sequential:
    """Fully connected; its inner synapses keep shape, as the indirect rule wants it."""
    torch.manual_seed(0)
    width = where.choose(12, 256)
    ends = nn.Flatten(), nn.Linear(192, width), nn.Tanh()
    inner = nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()
    return nn.Sequential(*ends, *inner, nn.Linear(width, CLASSES))


class Convolutions(nn.Module):
    """Padding, groups, strides, transposed, batch normalization, a residual sum; smooth, so that rounding flips nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.inner = nn.Conv2d(width, width, 3, padding=1, groups=2)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.norm(self.stem(x)))
        h = torch.tanh(h + self.inner(h))
        h = torch.tanh(self.up(torch.tanh(self.down(h))))
        return self.head(h.mean((2, 3)))


def convolutions(where: Where) -> Convolutions:
    torch.manual_seed(0)
    return Convolutions(where.choose(4, 32))


def networks(rule: str) -> dict[str, Callable[[Where], nn.Module]]:
    """The networks that a rule takes."""
    return {"chain": chain} if rule == "ifa" else {"chain": chain, "convolutions": convolutions}


def attach(model: nn.Module, rule: str, x: Tensor, seed: int = 3) -> apical.Learner:
    return apical.attach(model, rule, example_input=x[:2], generator=torch.Generator().manual_seed(seed))


def gradients(
    model: nn.Module, x: Tensor, y: Tensor, call: Callable[[Tensor], Tensor] | None = None
) -> dict[str, Tensor]:
    """Gradients of one backward pass, without `adapt`."""
    model.zero_grad()
    criterion((call or model)(x), y).mean().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert sum(bool(g.any()) for g in found.values()) >= 2, "fewer than two parameters have a gradient"
    return found


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, n: int) -> None:
    """Steps of a training loop."""
    learner = apical.learner_of(model)
    for _ in range(n):
        criterion(model(x), y).mean().backward()
        learner.adapt(x, y, criterion)
        optimizer.step()
        optimizer.zero_grad()


def distance(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], most: float) -> float:
    """The largest ||found - expected|| / ||expected|| over tensors; an AssertionError if it is above `most`.

    Tensors far smaller than the largest are measured by a thousandth of that.
    """
    assert found.keys() == expected.keys(), f"not the same tensors: {sorted(set(found) ^ set(expected))}"
    norms = {name: float(value.double().norm()) for name, value in expected.items()}
    floor = 1e-3 * max(norms.values())
    worst = 0.0
    for name, value in expected.items():
        off = float((found[name].double().cpu() - value.double().cpu()).norm()) / max(norms[name], floor)
        assert off <= most, f"{name} is off by {off:.1e}, more than {most:.0e}"
        worst = max(worst, off)
    return worst


def state(model: nn.Module) -> dict[str, Tensor]:
    """The model's floating-point state."""
    return {name: value for name, value in model.state_dict().items() if value.is_floating_point()}

"""Networks that can be cut into stages, and what one process and several learn of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import apical
from apical.parallel import Pipeline, pipeline
from networks import seed

ROWS = (16, 16, 12)
"""Samples of the batches: of 8 microbatches, the last one has 4."""


def mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 3)
    )


class Residual(nn.Module):
    """Blocks with sums around them, which end where a direct signal enters (at=["first", "second"]), and a forward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.first, self.second = Block(), Block()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(torch.tanh(self.stem(x)) * self.scale)
        return self.head(self.second(h).mean((2, 3)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x + self.two(torch.relu(self.one(x))))


def convolutions() -> nn.Sequential:
    """Convolutions hear the output's error at every position; a frozen layer; the last stage begins behind a flattening."""
    net = nn.Sequential(
        *(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.Tanh(), nn.Flatten()),
        *(nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 3)),
    )
    net[2].requires_grad_(False)
    return net


def normalized() -> nn.Sequential:
    """Batch normalization between synapses; the example's batch is not seen by it."""
    return nn.Sequential(
        nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Tanh(), nn.Linear(9, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)
    )


MADE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict]] = {
    "mlp": (mlp, (6,), {}),
    "sparse": (mlp, (6,), {"connectivity": 0.6}),
    "mixed": (mlp, (6,), {}),
    "residual": (Residual, (2, 6, 6), {"at": ["first", "second"]}),
    "convolutions": (convolutions, (2, 6, 6), {}),
    "normalized": (normalized, (6,), {}),
}
SPLITS = {"residual": ["second"], "convolutions": ["5"], "normalized": ["3"]}


def made(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, list[tuple[Tensor, Tensor]], dict]:
    """A network, its batches, and options of `attach`."""
    make, shape, options = MADE[name]
    torch.manual_seed(0)
    batches = [(torch.randn(n, *shape).to(dtype), torch.randint(3, (n,))) for n in ROWS]
    torch.manual_seed(1)
    return make().to(dtype), batches, {"example_input": batches[0][0][:2], "generator": seed(2), **options}


def rule_of(name: str, rule: str) -> str | dict[str, str]:
    return {"": rule, "2": "shallow"} if name == "mixed" else rule


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01)


def alone(name: str, rule: str, dtype: torch.dtype = torch.float64, pieces: bool = False) -> dict[str, Tensor]:
    """What one process learns; in `pieces`, from microbatches, whose gradients are added up."""
    model, batches, options = made(name, dtype)
    apical.attach(model, rule_of(name, rule), **options)
    optimizer, criterion, losses = sgd(list(model.parameters())), nn.CrossEntropyLoss(), []
    for x, y in batches:
        optimizer.zero_grad()
        count = (8 if len(x) == 16 else 4) if pieces else 1
        parts = [(criterion(model(a), b) / count) for a, b in zip(x.chunk(count), y.chunk(count), strict=True)]
        for loss in parts:
            loss.backward()
        losses.append(torch.stack(parts).sum().detach())
        optimizer.step()
    return found_in(model, losses, batches[0][0])


def found_in(model: nn.Module, losses: list[Tensor], x: Tensor) -> dict[str, Tensor]:
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model.eval()
    with torch.no_grad():
        return {**state, "outputs": model(x), "losses": torch.stack(losses)}


def in_stages(name: str, rule: str, dtype: torch.dtype = torch.float64, **options: object) -> Pipeline:
    model, _, own = made(name, dtype)
    return pipeline(model, rule_of(name, rule), optimizer=sgd, **{"split": SPLITS.get(name), **own, **options})


def learn(run: Pipeline, batches: list[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
    for x, y in batches:
        yield run.step(x, y, nn.CrossEntropyLoss())


def staged(name: str, rule: str, dtype: torch.dtype = torch.float64, **options: object) -> dict[str, Tensor]:
    """What stages learn: the plain model's state, this stage's feedback, losses, and outputs of `evaluate`."""
    _, batches, _ = made(name, dtype)
    run = in_stages(name, rule, dtype, **options)
    losses = torch.stack(list(learn(run, batches)))
    outputs = run.evaluate(batches[0][0])
    own = {key: value.clone() for key, value in run.state_dict()["tensors"].items() if "feedback" in key}
    return {**run.gather().state_dict(), **own, "losses": losses, "outputs": outputs}

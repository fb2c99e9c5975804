"""Networks on endless streams of data, and how far what they learn is from a law."""

import torch

import apical
from networks import OverTime, ResidualBlocks, TwoEyes, cnn, mlp
from numeric import reference as ref

ROUNDING = 1e-10
HEBBIAN = ("kp", "matched", "urfb")  # the feedback takes the weights' own step
INPUTS = {
    mlp: (6,),
    cnn: (2, 5, 5),
    lambda: ResidualBlocks().double(): (2, 12, 12),
    lambda: OverTime().double(): (4, 3),
    lambda: TwoEyes().double(): (6,),
}


NETWORKS = dict(zip(("mlp", "cnn", "residual", "recurrent", "two eyes"), INPUTS.items(), strict=True))


def stream(shape, seed=0, rows=6):
    """An endless stream of inputs and targets."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield (
            torch.randn(rows, *shape, generator=generator, dtype=torch.float64),
            torch.randn(rows, 4, generator=generator, dtype=torch.float64),
        )


def step(net, batch, optimizer=None):
    x, y = batch
    if optimizer:
        optimizer.zero_grad()
    (0.5 * (net(x) - y).square().sum(dim=1)).mean().backward()
    if optimizer:
        optimizer.step()


def attach(net, rule, shape, seed=0, **hyperparameters):
    example = next(stream(shape))[0]
    return apical.attach(
        net,
        apical.rule(rule, **hyperparameters) if hyperparameters else rule,
        example_input=example,
        generator=torch.Generator().manual_seed(seed),
    )


def build(name, seed=0):
    make, shape = NETWORKS[name]
    torch.manual_seed(seed)
    return make(), shape


def with_feedback(learner):
    return {name: synapse for name, synapse in learner.synapses.items() if synapse.feedback is not None}


def weights(learner):
    return {name: ref.numbers(s.weight) for name, s in learner.synapses.items()}


def distance(found, expected):
    return max(ref.relative_error(found[name], value) for name, value in expected.items())

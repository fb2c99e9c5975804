"""Whether the seeds of a rule are trained together: only where results stay those of single runs, and it is faster."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from apical.attaching.attach import learner_of
from apical.comparison.config import CompareConfig
from apical.data import ImageData
from apical.distributed import started
from apical.replicas.optimizers import PROPORTIONAL
from apical.training.config import TrainConfig
from apical.training.options import optimizer_of, rule_of
from apical.training.setup import make
from apical.training.side_by_side import copies_of

ELEMENTWISE = (*PROPORTIONAL, torch.optim.ASGD, torch.optim.Rprop)
"""Optimizers that treat every entry on its own, so that copies do not meet in them."""

MOST_WORK = 20_000_000
"""Multiplications of a network's forward pass for a batch, beyond which copies are trained one by one.

See `benchmarks/replicas.py compare` and docs/performance.md: beyond it 3 copies in one pass gain a tenth to a fifth, for three
times the memory. Counted, not timed, so that every machine chooses alike.
"""


def chosen(config: CompareConfig, data: ImageData) -> list[str]:
    """The rules whose seeds are to be trained in one pass, as `config.replicas` has it.

    Raises:
        ValueError: if all are asked for, and some can't be; with every reason.
    """
    if config.replicas == "off" or (config.replicas == "auto" and config.seeds < 2):
        return []
    if config.replicas == "auto" and not pays(config.run(config.rules[0], config.first_seed), data):
        return []
    found = {rule: obstacle(config.run(rule, config.first_seed), config.seeds, data) for rule in config.rules}
    faults = [f"- {rule}: {reason}" for rule, reason in found.items() if reason is not None]
    if config.replicas == "on" and faults:
        raise ValueError(
            "replicas='on' asks for all seeds of every rule in one pass, and that can't be had:\n"
            + "\n".join(faults)
            + "\nGive replicas='auto', which trains those one by one"
        )
    return [rule for rule, reason in found.items() if reason is None]


def obstacle(config: TrainConfig, seeds: int, data: ImageData) -> str | None:
    """The reason why runs from several seeds can't be trained together with the results of single ones; None if they can."""
    optimizer = optimizer_of(config.optimizer)[0]
    if data.train.streamed:
        return "streamed images come in one order at a time"
    if len(data.shape) == 1:
        return "networks on text learn one by one"
    if started() > 1:
        return "there are several processes"
    if seeds < 2:
        return "there is one seed only"
    if config.precision not in ("32-true", "64-true"):
        return f"precision {config.precision} rounds, and scales gradients, for all copies alike"
    if optimizer not in ELEMENTWISE:
        return f"optimizer {optimizer.__name__} looks at more than one weight at a time, so copies would meet in it"
    if config.input_noise or config.activation_noise:
        return "input_noise and activation_noise are drawn for all copies alike"
    if config.clip is not None:
        return "clip looks at the gradients of all copies together"
    if config.ema or config.best_by or config.decayed != "all" or config.bias_rate != 1 or config.mirrored:
        return "ema, best_by, decayed, bias_rate and mirrored are for runs one by one"
    rule = rule_of(config.rule)
    try:
        models = [make(config, rule, config.seed + number, data)[0] for number in range(2)]
        copies_of(models, data)
    except ValueError as error:
        return str(error)
    if _draws(models[0], data):
        return "the network draws random numbers while it trains (dropout), for all copies alike"
    return None


def pays(config: TrainConfig, data: ImageData) -> bool:
    """True if several copies in one pass are faster than one after the other."""
    _, learner = make(config, rule_of("bp"), config.seed, data)
    with FlopCounterMode(display=False) as counter:
        _pass(learner.detach().eval(), data)
    # A multiplication and an addition each, for one of the samples.
    return counter.get_total_flops() / 4 * config.batch <= MOST_WORK


def _pass(model: nn.Module, data: ImageData) -> None:
    x, _ = data.train.batch(torch.arange(2) % len(data.train))
    with torch.no_grad():
        model(x.to(next(model.parameters()).dtype) if x.is_floating_point() else x)


def _draws(model: nn.Module, data: ImageData) -> bool:
    with torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        _pass(learner_of(model).detach().train(), data)
        return not torch.equal(before, torch.get_rng_state())

"""Networks that are noisy themselves: noise on their input, or on all their activities."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from apical.nested import Arguments, input_of, with_input
from apical.noise import check_noise


class NoisyInput(nn.Module):
    """A layer that adds noise to its input while training; in front of a network, a denoising baseline (lansdell2020: sd 0.3).

    x [N, ...] -> x + sd xi, unchanged in eval mode. Noise comes from PyTorch's global generator, as dropout's does.

    Args:
        sd: standard deviation of the noise.

    >>> x = torch.ones(1, 2)
    >>> NoisyInput(0.3).eval()(x)
    tensor([[1., 1.]])
    """

    def __init__(self, sd: float) -> None:
        super().__init__()
        check_noise("sd", sd)
        self.sd = sd

    @override
    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, torch.randn_like(x), alpha=self.sd) if self.training else x

    @override
    def extra_repr(self) -> str:
        return f"sd={self.sd}"


class NoisyActivations:
    """Noise on a network's activities while it trains: h + sd xi at the input of every layer with weights but the first.

    A baseline of lansdell2020, for any rule, with or without `attach`: h_l <- f(a_l) + c xi in the pass that is learned from.
    The network stays as it is otherwise; `remove` ends it. Noise comes from PyTorch's global generator, as dropout's does.

    Args:
        model: the network, changed in place. sd: standard deviation c of the noise.
        in_eval: whether activities are noisy in eval mode too, as in the paper's released code.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    >>> noise = NoisyActivations(net, 0.1)
    >>> x = torch.ones(1, 2)
    >>> bool(net(x) == net(x))
    False
    >>> noise.remove()
    >>> bool(net(x) == net(x))
    True
    """

    def __init__(self, model: nn.Module, sd: float, *, in_eval: bool = False) -> None:
        check_noise("sd", sd)
        self.sd, self.in_eval = sd, in_eval
        self._seen = False
        self._handles = [model.register_forward_pre_hook(self._start)]
        for module in model.modules():
            weight = module._parameters.get("weight")
            if weight is not None and weight.dim() > 1 and not isinstance(module, nn.Embedding | nn.EmbeddingBag):
                self._handles.append(module.register_forward_pre_hook(self._add, with_kwargs=True))

    def _start(self, module: nn.Module, args: tuple) -> None:
        self._seen = False

    def _add(self, module: nn.Module, args: tuple, kwargs: dict) -> Arguments | None:
        first, self._seen = not self._seen, True
        if first or not (module.training or self.in_eval):
            return None
        x = input_of(args, kwargs)
        return with_input(args, kwargs, torch.add(x, torch.randn_like(x), alpha=self.sd))

    def remove(self) -> None:
        """End the noise."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

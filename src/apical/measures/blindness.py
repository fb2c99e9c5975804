"""Where an audit would see nothing: the error there, or its way on to a layer that learns, is zero throughout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from apical.measures.trial import Trial, differ


def blind(trial: Trial, modules: Mapping[str, nn.Module]) -> list[str]:
    """Names of the modules where another signal back would not show.

    The signal tried is as large as the module's own error, and is put in its place. Where no update changes by it
    although some parameter lies on its way, a transport could not be told from none, so "nothing" would be no proof.
    """
    calls: dict[str, list[_Call]] = {name: [] for name in modules}
    handles = [modules[name].register_forward_hook(partial(_see, own), with_kwargs=True) for name, own in calls.items()]
    trial.afresh()
    total = trial.losses().sum()
    for handle in handles:
        handle.remove()
    if total.requires_grad:
        total.backward(retain_graph=True)
    # All scales first: signals that are put in place go by other calls.
    places = {name: [(call.inputs, call.scale) for call in own] for name, own in calls.items()}
    return [name for name, own in places.items() if _hidden(trial, own)]


def _hidden(trial: Trial, places: list[tuple[list[Tensor], float]]) -> bool:
    """Whether signals of the given scales have parameters to reach, but change no update there."""
    reached = False
    generator = torch.Generator().manual_seed(0)
    for inputs, scale in places:
        trial.learner.model.zero_grad()
        signals = [torch.randn(x.shape, generator=generator).to(x) * scale for x in inputs]
        torch.autograd.backward(inputs, signals, retain_graph=True)
        for name, change in trial.gradients().items():
            if change is None:
                continue
            reached, clean = True, trial.clean[name]
            clean = torch.zeros_like(change) if clean is None else clean
            if differ(clean, clean + change):
                return False
    return reached


@dataclass(eq=False)
class _Call:
    """One call of a module: the inputs that take a signal back, and the error at its output once that has come by."""

    inputs: list[Tensor]
    delta: Tensor | None = None

    @property
    def scale(self) -> float:
        """Largest value of the error; 1 where the rule sends none this way, because a phase of its own may."""
        if self.delta is None:
            return 1.0
        return float(self.delta.abs().max()) if self.delta.numel() else 0.0

    def hear(self, delta: Tensor) -> None:
        """Keep the error at the output; the output's own hook."""
        self.delta = delta


def _see(calls: list[_Call], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    inputs = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.requires_grad]
    if not inputs:
        return
    calls.append(_Call(inputs))
    if isinstance(output, Tensor) and output.requires_grad:
        output.register_hook(calls[-1].hear)

"""One scalar for all: every layer hears the change of the loss that noise has made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from apical.noise import Distribution, check_distribution, check_noise
from apical.pathways.base import Pathway
from apical.phases.noisy_pass import estimates
from apical.synapses.synapse import Synapse

if TYPE_CHECKING:
    from apical.phases.phase import Phase


@dataclass(frozen=True)
class Scalar(Pathway):
    """One scalar for all: signal (L~ - L) xi / c at the input of every synapse (reference 1.15; lillicrap2016, fast RL).

    A second pass adds noise c xi to the activity at every synapse's input but the data; its loss L~, sample by sample, is all
    that any layer hears. The synapses next to the output learn from their error. Hidden gradients are filled in by
    `Learner.adapt`, between ``backward`` and the optimizer's step.

    noise: c, the standard deviation. distribution: "gaussian", "uniform" or "rademacher".
    """

    name: ClassVar[str] = "scalar"
    adapts: ClassVar[bool] = True
    listens: ClassVar[bool] = True
    replicates: ClassVar[bool] = True
    broadcasts: ClassVar[str] = "one scalar per sample"
    noise: float = 0.01
    distribution: Distribution = "gaussian"

    def __post_init__(self) -> None:
        check_noise("noise", self.noise)
        check_distribution(self.distribution)

    @override
    def enter(self, synapse: Synapse, x: Tensor) -> tuple[Tensor, Tensor | None]:
        current = synapse.wiring.current
        if current is not None:
            number = current.count(synapse.label)
            if x.requires_grad:
                current.cuts[synapse.label, number] = x
        return x.detach(), None

    @override
    def adapt(self, phase: Phase) -> None:
        episode = phase.episode
        assert episode.scale is not None
        # Feedback of other rules below a cut learns as their weights do.
        parameters = [p for p in phase.learner.model.parameters() if p.requires_grad]
        if not episode.taken.cuts or not parameters or not phase.finite:
            return
        places = {site.name for site in phase.sites}
        found = estimates(phase, places, self.noise, self.distribution, calls=episode.taken.cuts)
        cuts = episode.cuts()
        own = [place for place in cuts if place in found]  # Others may have noise of their own.
        xs = [cuts[place] for place in own]
        signals = [(found[place].tensor * episode.scale).to(x.dtype) for place, x in zip(own, xs, strict=True)]
        # Not backward(): hooks of DistributedDataParallel expect one call per pass, and that has been.
        gradients = torch.autograd.grad(xs, parameters, signals, allow_unused=True)
        learned = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
        phase.average([g for _, g in learned])
        for parameter, gradient in learned:
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)

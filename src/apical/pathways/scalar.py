"""One scalar for all: every layer hears the change of the loss that noise has made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from apical.noise import Distribution, check_distribution, check_noise
from apical.pathways.base import Pathway
from apical.plasticity.base import Phased
from apical.synapses.exported import say
from apical.synapses.transformed import transforming

if TYPE_CHECKING:
    from apical.phases.phase import Phase
    from apical.synapses.synapse import Synapse


@dataclass(frozen=True)
class Scalar(Pathway, Phased):
    """One scalar for all: signal (L~ - L) xi / c at the input of every synapse (reference 1.15; lillicrap2016, fast RL).

    A second pass adds noise c xi to the activity at every synapse's input but the data; its loss L~, sample by sample, is all
    that any layer hears. The synapses next to the output learn from their error. Hidden gradients are filled in by
    `apical.Learner.adapt`, between ``backward`` and the optimizer's step.

    Args:
        noise: c, the standard deviation. distribution: "gaussian", "uniform" or "rademacher".

    Raises:
        ValueError: for noise that is no positive number, or an unknown distribution.

    >>> import apical
    >>> apical.rule("reinforce", noise=0.1).pathway.noise
    0.1
    """

    name: ClassVar[str] = "scalar"
    needs = "the pass before"
    broadcast = "one scalar per sample"
    noise: float = 0.01
    distribution: Distribution = "gaussian"

    def __post_init__(self) -> None:
        check_noise("noise", self.noise)
        check_distribution(self.distribution)

    @override
    def enter(self, synapse: Synapse, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if transforming():
            raise RuntimeError(
                f"gradients of hidden layers, as '{synapse.label}', are filled in by learner.adapt, which torch.func and "
                "forward-mode differentiation know nothing of; pass under torch.no_grad() for outputs and tangents, or detach "
                "the learner"
            )
        if torch.compiler.is_exporting():
            if synapse.training:
                say(self.name, synapse.plasticity.name, synapse.label)
        elif synapse.circuit.record is not None:
            synapse.circuit.record.cut(synapse, x)
        return x.detach(), None

    @override
    def adapt(self, phase: Phase) -> None:
        clean = phase.clean
        assert clean.scale is not None
        # Feedback of other rules below a cut learns as their weights do.
        parameters = [p for p in phase.learner.model.parameters() if p.requires_grad]
        if not clean.taken.cuts or not parameters or not phase.finite:
            return
        places = {site.name for site in phase.sites}
        found = phase.estimates(places, self.noise, self.distribution, clean.taken.cuts)
        cuts = clean.cuts()
        own = [place for place in cuts if place in found]  # Others may have noise of their own.
        xs = [cuts[place] for place in own]
        signals = [(found[place].tensor * clean.scale).to(x.dtype) for place, x in zip(own, xs, strict=True)]
        # Not backward(): hooks of DistributedDataParallel expect one call per pass, and that has been.
        with phase.learner.circuit.meant():
            gradients = torch.autograd.grad(xs, parameters, signals, allow_unused=True)
        learned = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
        phase.average([g for _, g in learned])
        for parameter, gradient in learned:
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)

"""How a teaching signal reaches a synapse. It enters at the synapse's input, the only place where pathways differ.

Layer-wise, the signal is delta B of the synapse itself. For the direct pathway every synapse takes ``x.detach()`` and leaves
``x`` as a tap; the network's output then passes through one broadcast node (see `wiring`) that tells every tap its error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from apical.noise import Distribution, check_distribution, check_noise
from apical.perturbation import estimates
from apical.synapse import Synapse
from apical.wiring import Tap, carry

if TYPE_CHECKING:
    from apical.phase import Phase


@dataclass(frozen=True)
class Pathway:
    """How a teaching signal reaches a synapse."""

    name: ClassVar[str]
    wired: ClassVar[bool] = False
    """Whether taps and a broadcast node are needed, and so `example_input`, which shows the taps' shapes."""
    adapts: ClassVar[bool] = False
    """Whether the signal is found in a phase of its own, `adapt`."""
    listens: ClassVar[bool] = False
    """Whether that phase wants to know what went through the synapses in the pass before."""
    replicates: ClassVar[bool] = False
    """Whether a phase that listens knows copies of a network side by side apart (see `apical.replicate`)."""
    broadcasts: ClassVar[str] = ""
    """What that phase sends to every synapse alike, in words."""
    chained: ClassVar[bool] = False
    """Whether the signal needs the synapses' outputs too, in the order of one chain."""

    def enter(self, synapse: Synapse, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The input as the synapse takes it, and what its backward keeps of the feedback (None: no signal goes back)."""
        raise NotImplementedError

    def adapt(self, phase: Phase) -> None:
        """Let the synapses at ``phase.sites`` learn from what their own phase finds."""
        raise NotImplementedError

    def signals(
        self,
        e: Tensor,
        taps: list[Tap],
        xs: Sequence[Tensor],
        feedbacks: Sequence[Tensor | None],
        weights: Sequence[Tensor],
    ) -> list[Tensor]:
        """For a chained pathway: the teaching signal at every tap.

        Args:
            e: the output's error [N, outputs]. taps: in the order of the forward pass.
            xs: each tap's activity, with its graph. feedbacks: each tap's D, or None. weights: of each tap's synapse.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class LayerWise(Pathway):
    """Signal delta B at the input of every synapse (reference 1.1, 1.3).

    track: keep feedback on synapses that no signal leaves, so that Hebbian feedback is learned there too (amit2019 fig. 10).
    """

    name: ClassVar[str] = "layer-wise"
    track: bool = False

    def enter(self, synapse: Synapse, x: Tensor) -> tuple[Tensor, Tensor | None]:  # noqa: D102
        if x.requires_grad:
            if not (synapse.sends_back or synapse.plasticity.available(synapse)):
                raise RuntimeError(
                    f"the input of '{synapse.label}' now requires a gradient, but its feedback was dropped because its first "
                    "input was data; attach with apical.rule(name, track=True) to keep it, or detach the input"
                )
            if synapse.plasticity.redraws:  # Else they would silently stay as they are.
                synapse.wiring.within(
                    synapse.label, "batchwise magnitudes are drawn with every pass of the whole model"
                )
            return x, synapse.plasticity.keeps(synapse)
        # Trainable feedback that is still there gets its gradient in any case: DDP waits for every parameter.
        return x, synapse.feedback if synapse.plasticity.trainable else None


@dataclass(frozen=True)
class NoPathway(Pathway):
    """No signal leaves any synapse: only those next to the output learn (lillicrap2016, shallow learning)."""

    name: ClassVar[str] = "none"

    def enter(self, synapse: Synapse, x: Tensor) -> tuple[Tensor, Tensor | None]:  # noqa: D102
        return x.detach(), None


@dataclass(frozen=True)
class Direct(Pathway):
    """Signal e D at the input of every synapse, from the output error e (nokland2016 eq. 8)."""

    name: ClassVar[str] = "direct"
    wired: ClassVar[bool] = True

    def enter(self, synapse: Synapse, x: Tensor) -> tuple[Tensor, Tensor | None]:  # noqa: D102
        synapse.wiring.tap(synapse, synapse.label, synapse.plasticity, x)
        return x.detach(), None


@dataclass(frozen=True)
class Indirect(Direct):
    """Signal e D at the input of the second synapse, then onward through the forward weights (nokland2016 eq. 9).

    Where something else that learns stands in front of the first synapse (normalization, an embedding), e D enters there.

    delta_l = (delta_{l-1} W_l^T) * f'(a_l): each synapse transmits the teaching signal as it transmits activity, so the
    layers between a synapse and the next one have to keep shape, and the synapses have to form one chain.
    """

    name: ClassVar[str] = "indirect"
    chained: ClassVar[bool] = True

    def enter(self, synapse: Synapse, x: Tensor) -> tuple[Tensor, Tensor | None]:  # noqa: D102
        x, feedback = super().enter(synapse, x)
        # The chain has to hold through frozen synapses as well.
        return x.requires_grad_(x.is_floating_point()), feedback

    def signals(self, e, taps, xs, feedbacks, weights):  # noqa: D102
        assert feedbacks[0] is not None
        signals = [carry(e, feedbacks[0], xs[0].shape, copies=taps[0].owner.copies)]  # type: ignore[arg-type]
        for here, x, weight, after in zip(taps, xs, weights, xs[1:], strict=False):
            # delta at the previous synapse's output: one local step of autograd over what lies between.
            # Before the first synapse there is none where something else that learns stands in front of it.
            delta = signals[-1]
            if here.before is not None:
                (delta,) = torch.autograd.grad(x, here.before, delta, retain_graph=True, allow_unused=True)
            if delta is None:
                raise RuntimeError(
                    f"the input of '{here.label}' does not come from the synapse called before it; use 'dfa'"
                )
            synapse = here.owner
            assert isinstance(synapse, Synapse)
            delta, geometry = synapse.prepare(delta)
            weight = weight if synapse.clean_weight is None else synapse.clean_weight
            signals.append(synapse.transmit(delta, weight.to(delta.dtype), None, geometry).view(after.shape))
        return signals


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

    def enter(self, synapse: Synapse, x: Tensor) -> tuple[Tensor, Tensor | None]:  # noqa: D102
        current = synapse.wiring.current
        if current is not None:
            number = current.count(synapse.label)
            if x.requires_grad:
                current.cuts[synapse.label, number] = x
        return x.detach(), None

    def adapt(self, phase: Phase) -> None:  # noqa: D102
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


PATHWAYS: dict[str, type[Pathway]] = {kind.name: kind for kind in (LayerWise, Direct, Indirect, Scalar, NoPathway)}

"""The noisy pass of a phase: activities changed on the way, and the gradients estimated from what that does to the loss."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from apical.nested import Arguments, input_of, with_input
from apical.noise import Distribution, channels_last

if TYPE_CHECKING:
    from apical.learner import Learner
    from apical.phases.clean_pass import CleanPass
    from apical.phases.layout import Criterion
    from apical.phases.phase import Phase


Place = tuple[str, int]
"""Where a teaching signal enters, and the number of the call there."""


@dataclass(frozen=True)
class Estimate:
    """A gradient at some activity [N, *features]: `values`, times `factors` where there are any.

    factors: one per sample [N, 1, ...]; of copies side by side, one per sample and feature [N, features, 1, ...].
    """

    values: Tensor
    factors: Tensor | None = None

    @property
    def tensor(self) -> Tensor:
        """The gradient in full [N, *features]."""
        return self.values if self.factors is None else self.values * self.factors.to(self.values.dtype)

    def taken_from(self, signal: Tensor, scale: float | Tensor = 1.0, *, own: bool = False) -> Tensor:
        """The difference signal - scale * estimate, in one pass over memory; own: into the signal's."""
        out = signal if own else None
        if isinstance(scale, Tensor):
            if self.factors is None:
                factors = scale.to(signal.dtype)
            else:  # In one launch.
                factors = torch.mul(self.factors, scale, out=torch.empty_like(self.factors, dtype=signal.dtype))
            return torch.addcmul(signal, self.values, factors, value=-1, out=out)
        if self.factors is None:
            return torch.sub(signal, self.values, alpha=scale, out=out)
        return torch.addcmul(signal, self.values, self.factors.to(signal.dtype), value=-scale, out=out)


def estimates(
    phase: Phase, places: Container[str], c: float, distribution: Distribution, calls: Container[Place] | None = None
) -> dict[Place, Estimate]:
    """The gradient at every call of the places, as one noisy pass estimates it: (L~ - L) xi / c.

    L is a sample's own loss; where losses depend on other samples too, it is the sum of all, at the price of more variance.

    Args:
        phase: whose batch passes again. places: where noise c xi is added, in all of them at once.
        c: standard deviation of the noise. calls: those that get noise; None: all.
    """
    clean = phase.clean
    rows = len(clean.losses)
    shapes = [phase.features(site) for site in phase.sites if site.name in places]
    sizes = [rows * shape.numel() for shape in shapes if shape is not None]
    supply = phase.supply(distribution, sizes)
    drawn: dict[Place, tuple[Tensor, Tensor | None]] = {}

    def add(place: str, call: int, activity: Tensor) -> Tensor | None:
        if place not in places or (calls is not None and (place, call) not in calls):
            return None
        if len(activity) != rows:
            raise RuntimeError(
                f"activity at '{place}' has {len(activity)} rows, but there are {rows} losses; a perturbation needs the batch in "
                "the first dimension throughout"
            )
        like = (activity,) if channels_last(activity) else ()
        values, signs = supply.take(activity.shape, *like)
        drawn[place, call] = values, signs
        noisy = (
            torch.add(activity, values, alpha=c) if signs is None else torch.addcmul(activity, values, signs, value=c)
        )
        return noisy.to(activity.dtype)

    # A difference of losses, which is small, so in full.
    change = (clean.perturbed(add) - clean.losses).to(phase.dtype) / c
    if coupled(clean, list(dict.fromkeys(place for place, _ in drawn))):
        # A sample's noise shows in other samples' losses too: only their sum has the whole gradient.
        change = change.sum(0, keepdim=True).expand_as(change)

    def estimate(values: Tensor, signs: Tensor | None) -> Estimate:
        own = change
        if change.dim() > 1:
            own = own.repeat_interleave(values.shape[1] // change.shape[1], dim=1)
        own = own.view(rows, own.shape[1] if own.dim() > 1 else 1, *[1] * (values.dim() - 2))
        return Estimate(values, own if signs is None else own * signs)

    return {place: estimate(*noise) for place, noise in drawn.items()}


Perturb = Callable[[str, int, Tensor], Tensor | None]
"""perturb(place, call, activity) -> what the pass goes on with instead, or None for no change."""


@contextmanager
def perturbing(learner: Learner, perturb: Perturb, places: list[str] | None = None) -> Iterator[None]:
    """While open, `perturb` sees the activity at every place a teaching signal enters: synapse inputs, outputs of blocks.

    Passes that other threads make meanwhile go by it.
    """
    counts: dict[str, int] = {}
    circuit = learner.circuit

    def changed(place: str, activity: Tensor) -> Tensor | None:
        number = counts[place] = counts.get(place, -1) + 1
        return perturb(place, number, activity)

    def before(place: str) -> Callable[..., Any]:
        # Without kwargs where another thread is about to call a hook that has just been removed.
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Arguments | None:
            if kwargs is None or not circuit.mine:
                return None
            found = changed(place, input_of(args, kwargs))
            return None if found is None else with_input(args, kwargs, found)

        return hook

    def after(place: str) -> Callable[..., Any]:
        return lambda module, args, output: changed(place, output) if circuit.mine else None

    wanted = [site.name for site in learner.phases.sites()] if places is None else places
    handles = [
        learner.synapses[p].register_forward_pre_hook(before(p), with_kwargs=True)
        for p in wanted
        if p not in learner.blocks
    ]
    handles += [learner.blocks[p].register_forward_hook(after(p)) for p in wanted if p in learner.blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def coupled(clean: CleanPass, places: list[str]) -> bool:
    """Whether losses of samples depend on what other samples have at the places: contrastive losses, nodes of a graph.

    Asked once for each criterion, by one backpropagation of half of the samples' losses: does it reach the other half? What
    batch normalizations in training mode share does not count, because noisy passes hold it.
    """
    recorder, rows = clean.learner.phases.recorder, len(clean.losses)
    assert recorder is not None
    kind = _kind(clean.criterion)
    if kind in recorder.coupled or rows < 2:
        return recorder.coupled.get(kind, False)
    # A random half, which parts pairs in whatever order they lie.
    half = torch.randperm(rows, generator=torch.Generator().manual_seed(0)) < rows // 2
    half = half.to(clean.losses.device)
    found = False

    def look(place: str, call: int, signal: Tensor) -> None:
        nonlocal found
        if not found and len(signal) == rows:
            others = signal[~half]
            # Not nan, which 0 times infinity gives as well.
            found = bool(((others != 0) & others.isfinite()).any())

    clean.true_signals(places, look, half.to(clean.losses.dtype).view(rows, *[1] * (clean.losses.dim() - 1)))
    recorder.coupled[kind] = found
    return found


def _kind(criterion: Criterion) -> object:
    """What tells a criterion from others, though a loop may make it anew for each batch."""
    while isinstance(criterion, partial):
        criterion = criterion.func
    return getattr(criterion, "__code__", type(criterion))

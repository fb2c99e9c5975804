"""One batch learned from again and again, each time with other weights poisoned: the experiment of an audit."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from apical.learner import Criterion, Learner
from apical.measures.conduction import Conducted, recorded
from apical.measures.poison import Poison, clean_passes
from apical.measures.replay import Again, losses_of
from apical.phases.isolation import Weights
from apical.plasticity import Phased
from apical.synapses.synapse import Synapse


class Trial:
    """What a learner learns from one batch, with and without poisoned weights.

    Attributes:
        learner: whose updates are compared.
        again: puts random state, statistics and feedback back to where they were (see `replaying`).
        weights: as they were; hooks may clip them in a pass.
        clean: parameter or "feedback of ..." -> its update without poison; None where there is none.
    """

    def __init__(
        self, learner: Learner, again: Again, weights: Weights, inputs: Any, targets: Any, criterion: Criterion
    ) -> None:
        self.learner, self.again, self.weights = learner, again, weights
        self._batch = inputs, targets, criterion
        self._rounding: dict[str, float] = {}
        """Of feedback, below which steps of it may differ by the order of sums alone."""
        self._conducted: Conducted = {}
        if learner.phases.learns:
            self.updates([])  # The first phase makes passes of its own.
        with recorded(one for one in learner.synapses.values() if not one.computed) as conducted:
            self.clean = self.updates([])
        self._conducted = conducted
        bad = [name for name, update in self.clean.items() if update is not None and not bool(update.isfinite().all())]
        if bad:
            raise ValueError(
                f"updates of {bad} are not finite even before the audit; audit a model and batch that can learn"
            )

    def afresh(self) -> None:
        """Put everything back to where it was, for another pass without poison."""
        self.weights.restore()
        self.again()

    def losses(self) -> Tensor:
        """Losses [N] of one more forward pass."""
        return losses_of(self.learner, *self._batch)

    def changes(self, poisons: list[Poison]) -> bool:
        """Whether any update differs from the clean one while `poisons` are applied."""
        updates, spared = self.updates(poisons), set[int]()
        for poison in poisons:
            if isinstance(poison.module, Synapse) and poison.module.computed:
                # What a weight is made of learns by the derivative of how it is made, which may read it.
                spared |= set(map(id, poison.module.parameters()))
        names = {name for name, p in self.learner.model.named_parameters() if id(p) in spared}

        def apart(clean: dict[str, Tensor | None]) -> bool:
            return any(
                differ(one, updates[name], self._rounding.get(name, 0.0))
                for name, one in clean.items()
                if name not in names
            )

        if not apart(self.clean):
            return False
        if any(one is not None and not bool(one.isfinite().all()) for one in updates.values()):
            return True
        # Clean values in the poison's place change what updates that are next to nothing have by rounding.
        return apart(self.updates([replace(poison, values="clean") for poison in poisons]))

    def updates(self, poisons: list[Poison]) -> dict[str, Tensor | None]:
        """Updates while `poisons` are applied: gradients of parameters, steps of feedback that learns in a phase."""
        self.learner.model.zero_grad()
        self.afresh()
        with ExitStack() as stack:
            for poison in poisons:
                if not poison.after_forward:
                    stack.enter_context(poison.applied(self._conducted))
            losses = self.losses()
            if not len(losses):
                raise ValueError("the batch is empty, so there is nothing to learn from; audit with a batch of samples")
            total = losses.sum()
            for poison in poisons:
                if poison.after_forward:
                    stack.enter_context(poison.applied())
            if total.requires_grad:
                total.backward()
            sites = [site for site in self.learner.phases.sites() if isinstance(site.plasticity, Phased)]
            before = [site.feedback.clone() for site in sites]
            if self.learner.phases.learns:
                with clean_passes(self.learner.model, poisons):
                    # Without `adapt` around it, which drops all gradients during a warmup.
                    self.learner.phases.learn(*self._batch)
        updates = self.gradients()
        for site, feedback in zip(sites, before, strict=True):
            name = f"feedback of {site.name}"
            updates[name] = site.feedback - feedback
            self._rounding.setdefault(name, torch.finfo(feedback.dtype).eps * float(feedback.abs().max()))
        self.afresh()
        return updates

    def gradients(self) -> dict[str, Tensor | None]:
        """Parameter -> the gradient that it has now, in full where it is sparse."""
        named = self.learner.model.named_parameters()
        return {name: None if p.grad is None else _full(p.grad.detach()) for name, p in named}


def _full(gradient: Tensor) -> Tensor:
    return gradient if gradient.layout == torch.strided else gradient.to_dense()


def differ(clean: Tensor | None, update: Tensor | None, rounding: float = 0.0) -> bool:
    """Whether `update` is another one than `clean`: by more than rounding, or by not being finite."""
    if clean is None or update is None:
        return clean is not update
    if not bool(update.isfinite().all()):
        return True
    # Far above the rounding of kernels that sum in varying order, far below the effect of another weight matrix.
    return bool((update - clean).abs().max() > 1e-4 * clean.abs().max() + rounding) if clean.numel() else False

"""What synapses bring in the backward pass, and how it moves their weights: the synapses' side of `LocalSGD`."""

from __future__ import annotations

import weakref
from collections import Counter
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from apical.optim.batched import Batched, pays
from apical.optim.ownership import Pass, claimed, made_within, refuse_infinite, refuse_processes, scaled
from apical.optim.shared_velocity import join, part
from apical.optim.site import Site
from apical.optim.spent import Spent, spendable, takers
from apical.pathways.checkpointing import recomputing
from apical.pathways.layer_wise import LayerWise
from apical.step_hooks.groups import follow
from apical.step_hooks.held import require_optimizer
from apical.synapses.storage import kept

if TYPE_CHECKING:
    from apical.learner import Learner
    from apical.optim.local_sgd import LocalSGD
    from apical.optim.shared_velocity import State
    from apical.optim.site import Plan
    from apical.synapses.synapse import Synapse

_rate = itemgetter("lr")


class Updates:
    """The synapses' side of `LocalSGD`. Small layers take no longer than the calls in here, so these are few."""

    def __init__(self, optimizer: LocalSGD, learner: Learner) -> None:
        # Weakly, so that an optimizer that the user has let go of is gone, and the weights' gradients are ordinary again.
        self._optimizer, self._learner = weakref.ref(optimizer), weakref.ref(learner)
        self.sites: dict[Synapse, Site] = {}
        self._groups: dict[int, dict[str, Any]] = {}
        self._seen: list[dict[str, Any]] = []
        self.meant = self.ordinary = False
        """Whether all goes by ordinary gradients, because losses are scaled."""
        self._held: set[int] = set()
        self._movable: list[nn.Parameter] = []
        """What may move, of all sites."""
        self._pass: Pass | None = None
        """The forward pass going on; it ends where a backward pass begins."""
        self._unread = self._looked = False
        """Whether a loss's gradient is yet to be looked at, and whether scalers were looked for."""
        self._plain = False
        """Whether weights move by rates alone in that backward pass: without momentum and decay."""
        self._state: State = {}
        """The optimizer's, as the newest backward pass has found it."""
        self._batched = Batched()
        self._batch: Batched | None = None
        """Where updates wait for others, in the newest backward pass; None: each is made when it comes."""
        self.open = False
        """Whether anything has come since the last step."""
        self._rates: list[Any] | None = None
        """Each group's learning rate, by which weights have moved since the last step; None while none has."""
        takers.add(self)
        self.settle()

    def settle(self) -> None:
        """See anew which synapses there are, and which of them share weights."""
        learner = self._learner()
        if learner is None:
            return
        self.waits, self._seen = learner.phases.learns, []
        self.sites = {synapse: self.sites.get(synapse) or Site(synapse) for synapse in learner.synapses.values()}
        self._owners = learner.owners
        self._rule = learner.name
        # Weights that several modules hold hear from all of them before they may move.
        held = [id(p) for module in learner.model.modules() for p in module._parameters.values() if p is not None]
        self.tied = {one for one, times in Counter(held).items() if times > 1}

    @property
    def optimizer(self) -> LocalSGD:
        """Whose updates these are."""
        optimizer = self._optimizer()
        if optimizer is None:
            raise RuntimeError(
                "the LocalSGD under which this forward pass was made is gone; keep it until after "
                "backward(), or make the pass anew"
            )
        return optimizer

    def see(self, x: Tensor) -> None:
        """An input by which a signal leaves, though a pathway cuts it."""
        optimizer = None if torch.compiler.is_compiling() else self._optimizer()
        if optimizer is None or recomputing():
            return
        if not self._seen:
            self._regroup(optimizer.param_groups)
        if self._pass is None:
            self._pass = Pass(self)
        self._pass.beyond = self._pass.beyond or not made_within(x, self.sites, self._held)

    def expect(self, synapse: Synapse, x: Tensor | None, learns: bool) -> Pass | None:
        """A call of `synapse` in a forward pass with a graph; None if its weights are to get an ordinary gradient.

        x: the input, if a signal leaves by it. learns: whether the weights do.
        """
        if torch.compiler.is_compiling():  # First: the compiler can't look into an optimizer's groups.
            return None
        optimizer = self._optimizer()
        if optimizer is None:
            return None
        groups = optimizer.param_groups
        # A state that is loaded brings groups of its own.
        if len(groups) != len(self._seen) or groups[0] is not self._seen[0]:
            self._regroup(groups)
        if self.ordinary or synapse.computed:  # Weights that are computed move by what they are made of.
            return None
        here = self._pass
        if here is None:
            here = self._pass = Pass(self)
        again = recomputing()
        if not (x is None or again or here.beyond):
            here.beyond = not made_within(x, self.sites, self._held)
        if not learns or id(synapse._parameters["weight"]) not in self._groups:
            return None
        if not again:
            self.sites[synapse].expected += 1
        return here

    def _regroup(self, groups: list[dict[str, Any]]) -> None:
        refuse_processes()  # In the first pass, for groups of processes that were made after the optimizer.
        held = {id(p): group for group in groups for p in group["params"]}
        self._held = set(held)
        found = {one: group for one, group in held.items() if one not in self.tied}
        for name, owner in self._owners.items():
            weight, feedback = owner._parameters.get("weight"), kept(owner, "feedback")
            if not isinstance(feedback, nn.Parameter) or not feedback.requires_grad or id(feedback) in held:
                continue
            if weight is None or id(weight) in held:
                require_optimizer(feedback, name, self._rule)
                # What moves in the backward pass leaves no gradient for an optimizer that the feedback has of its own.
                found.pop(id(weight), None)
        moved_along = follow(self.optimizer, self._owners, self._rule)
        found |= {id(feedback): groups[number] for feedback, number in moved_along.items()}
        self._seen, self._groups = list(groups), found
        for synapse, site in self.sites.items():
            # Feedback of other pathways has a gradient of its own.
            names = ("weight", "bias", "feedback") if isinstance(synapse.pathway, LayerWise) else ("weight", "bias")
            own = (synapse._parameters.get(name) for name in names)
            alone = id(synapse._parameters.get("weight")) in found  # Else all of it has an ordinary gradient.
            site.own = [p for p in own if alone and p is not None and id(p) in found]
            site.spends = [p for p in site.own if spendable(p)]
        self._movable = [p for site in self.sites.values() for p in site.own]
        for synapse in self.sites:
            join(self.optimizer.state, synapse._parameters.get("weight"), synapse._parameters.get("feedback"))

    def begin(self, beyond: bool) -> bool:
        """Whether weights move in the backward pass that has come to a forward pass's first synapse."""
        self._pass, self._unread = None, False
        optimizer = self.optimizer
        if optimizer.param_groups[0] is not self._seen[0]:
            self._regroup(optimizer.param_groups)
        self._state = optimizer.state
        self._batch = self._batched if self._movable and pays(self._movable[0]) else None
        if self.ordinary or (beyond and not self.meant) or claimed(self._movable):
            return False
        if not self._looked:
            self._looked, self.ordinary = True, scaled()
        self._unread = not self.ordinary
        self._plain = not (self.waits or self._batch or any(g["momentum"] or g["weight_decay"] for g in self._seen))
        return self._unread

    def plan(self, site: Site) -> Plan | None:
        """How C++ is to move a synapse in the backward pass going on: `read` first, where that is yet to be, then `moved`."""
        return site.plan(self._groups, self._state, self._unread) if self._plain else None

    def read(self, synapse: Synapse, delta: Tensor, bias: Tensor | None) -> None:
        """Raise a RuntimeError if the error at a synapse is not finite."""
        self._unread = False
        refuse_infinite(delta, bias, synapse.label)

    def moved(self, synapse: Synapse, bias: Tensor | None) -> None:
        """Take in that C++ has moved a synapse, its bias by the sum that is given."""
        site = self.sites[synapse]
        self.open = site.heard = site.done = True
        site.bias = bias
        site.expected -= 1
        self._move_by_rates()
        for parameter in site.spends:
            parameter.__class__ = Spent

    def _move_by_rates(self) -> None:
        if self._rates is None:
            self._rates = list(map(_rate, self._seen))

    def take(
        self, synapse: Synapse, x: Tensor, delta: Tensor, product: Tensor | None, bias: Tensor | None, feedback: bool
    ) -> Tensor | None:
        """One call's update, in the backward pass: its factors, and their product where it is made already.

        feedback: whether trainable feedback is to move by the same product. Returns the bias's gradient if it is to go the
        ordinary way.

        Raises:
            RuntimeError: if that would be a step by what is not finite.
        """
        if self._unread:
            self.read(synapse, delta, bias)
        site = self.sites[synapse]
        self.open = site.heard = True
        if bias is not None and id(synapse._parameters["bias"]) in self._groups:
            site.bias = bias if site.bias is None else site.bias + bias
            bias = None
        site.feedback |= feedback
        site.waiting.append((delta, x, product))
        site.expected -= 1
        if site.expected <= 0 and not self.waits:
            self._move_by_rates()
            site.apply(self._groups, self._state, self._batch)
            if self._batch is not None and self._batch.full:
                self._batch.flush(self._state)
            site.done = True
        for parameter in site.spends:
            parameter.__class__ = Spent
        return bias

    def close(self) -> None:
        """End a step: apply what waits."""
        if not self._seen:  # Compiled code does not come by `expect`.
            self._regroup(self.optimizer.param_groups)
        self._pass = None
        for number, rate in enumerate(self._rates or ()):
            if self._seen[number]["lr"] != rate:
                raise RuntimeError(
                    f"the learning rate of parameter group {number} has changed between backward() and step(), but LocalSGD has "
                    f"moved weights by {rate} already; change it before the backward pass"
                )
        for site in self.sites.values():
            if site.heard:
                for parameter in site.spends:
                    parameter.__class__ = nn.Parameter
                own = site.synapse._parameters
                weight, bias = own["weight"], own.get("bias")
                assert weight is not None
                if weight.grad is not None or (site.bias is not None and bias is not None and bias.grad is not None):
                    raise RuntimeError(
                        f"the weights of '{site.synapse.label}' got a gradient besides their synapse's own update (from a "
                        "penalty on weights, or DistributedDataParallel?), and LocalSGD can't add the two; use its "
                        "weight_decay, or torch.optim.SGD"
                    )
                if site.waiting:
                    with torch.no_grad():
                        site.apply(self._groups, self.optimizer.state, self._batch)
            site.reset()
        if self._batch is not None:
            with torch.no_grad():
                self._batch.flush(self.optimizer.state)
        self._rates, self._state, self.open = None, {}, False

    def drop(self) -> None:
        """Let go of what waits, without learning from it."""
        self._rates, self.open = None, False
        self._batched.clear()
        for site in self.sites.values():
            site.restore()
            site.reset()

    def discard(self) -> None:
        """Let go of what waits, as of gradients that no step is to be made of.

        Raises:
            RuntimeError: if weights have moved by such.
        """
        if self._rates is not None:
            label = next(site.synapse.label for site in self.sites.values() if site.done)
            raise RuntimeError(
                f"zero_grad() before step(), but LocalSGD has moved '{label}' in the backward pass already, so "
                "there is no gradient to drop; call step() after every backward pass. Where the pass was for another "
                "network or for inputs alone, take torch.autograd.grad, or requires_grad_(False) for the weights meanwhile"
            )
        for site in self.sites.values():
            if site.heard:
                site.restore()
                site.forget()
        self.open = False

    def names(self, parameter: nn.Parameter) -> str | None:
        """The synapse that has `parameter`; None: none of these."""
        own = (s.label for s in self.sites if any(p is parameter for p in s._parameters.values()))
        return next(own, None)

    def part(self) -> None:
        """Part the velocities of weights and feedback of which one is about to move by a gradient."""
        for synapse in self.sites:
            weight, feedback = synapse._parameters.get("weight"), synapse._parameters.get("feedback")
            if feedback is not None and (feedback.grad is not None or (weight is not None and weight.grad is not None)):
                part(self.optimizer.state, weight, feedback)

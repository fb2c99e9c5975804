"""What synapses bring in the backward pass, and how it moves their weights: the synapses' side of `LocalSGD`."""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from apical.optim.shared_velocity import join, part, shares
from apical.pathways.checkpointing import recomputing
from apical.plasticity.base import Trained
from apical.step_hooks import require_optimizer
from apical.synapses.storage import kept

if TYPE_CHECKING:
    from apical.learner import Learner
    from apical.optim.local_sgd import LocalSGD
    from apical.synapses.synapse import Synapse


_Update = tuple[Tensor, Tensor, Tensor | None]
"""One call's delta and x, and their product delta^T x where it is made already."""


@dataclass(slots=True, eq=False)
class _Site:
    """What a synapse has heard in this step: how many calls are to come, and what has come and waits."""

    synapse: Synapse
    expected: int = 0
    waiting: list[_Update] = field(default_factory=list)
    bias: Tensor | None = None
    feedback: bool = False
    heard: bool = False
    done: bool = False

    def reset(self) -> None:
        """Ready for the next step."""
        self.expected, self.bias, self.feedback, self.heard, self.done = 0, None, False, False, False
        self.waiting.clear()


class Updates:
    """The synapses' side of `LocalSGD`. Small layers take no longer than the calls in here, so these are few."""

    def __init__(self, optimizer: LocalSGD, learner: Learner) -> None:
        # Weakly, so that an optimizer that the user has let go of is gone, and the weights' gradients are ordinary again.
        self._optimizer, self._learner = weakref.ref(optimizer), weakref.ref(learner)
        self.sites: dict[Synapse, _Site] = {}
        self._groups: dict[int, dict[str, Any]] = {}
        self._seen: list[dict[str, Any]] = []
        self.settle()

    def settle(self) -> None:
        """See anew which synapses there are, and which of them share weights."""
        learner = self._learner()
        if learner is None:
            return
        self.waits, self._seen = learner.phases.learns, []
        self.sites = {synapse: self.sites.get(synapse) or _Site(synapse) for synapse in learner.synapses.values()}
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

    def expect(self, synapse: Synapse) -> Updates | None:
        """A call of `synapse` in a forward pass with a graph; None if its weights are to get an ordinary gradient."""
        if torch.compiler.is_compiling():  # First: the compiler can't look into an optimizer's groups.
            return None
        optimizer = self._optimizer()
        if optimizer is None:
            return None
        groups = optimizer.param_groups
        # A state that is loaded brings groups of its own.
        if len(groups) != len(self._seen) or groups[0] is not self._seen[0]:
            self._regroup(groups)
        if id(synapse._parameters["weight"]) not in self._groups:
            return None
        if not recomputing():
            self.sites[synapse].expected += 1
        return self

    def _regroup(self, groups: list[dict[str, Any]]) -> None:
        held = {id(p): group for group in groups for p in group["params"]}
        found = {one: group for one, group in held.items() if one not in self.tied}
        for name, owner in self._owners.items():
            weight, feedback = owner._parameters.get("weight"), kept(owner, "feedback")
            if not isinstance(feedback, nn.Parameter) or not feedback.requires_grad or id(feedback) in held:
                continue
            if weight is None or id(weight) in held:
                require_optimizer(feedback, name, self._rule)
                # What moves in the backward pass leaves no gradient for an optimizer that the feedback has of its own.
                found.pop(id(weight), None)
        self._seen, self._groups = list(groups), found
        for synapse in self.sites:
            join(self.optimizer.state, synapse._parameters.get("weight"), synapse._parameters.get("feedback"))

    def take(
        self,
        synapse: Synapse,
        x: Tensor,
        delta: Tensor,
        product: Tensor | None,
        bias: Tensor | None,
        feedback: bool,
    ) -> Tensor | None:
        """One call's update, in the backward pass: its factors, and their product where it is made already.

        feedback: whether trainable feedback is to move by the same product. Returns the bias's gradient if it is to go the
        ordinary way.
        """
        site = self.sites[synapse]
        if site.done:
            raise RuntimeError(
                f"'{synapse.label}' got a second backward pass before step(), but LocalSGD has applied the first one's update "
                "already; call step() after each, or accumulate gradients with torch.optim.SGD"
            )
        site.heard = True
        if bias is not None and id(synapse._parameters["bias"]) in self._groups:
            site.bias = bias if site.bias is None else site.bias + bias
            bias = None
        site.feedback |= feedback
        site.waiting.append((delta, x, product))
        site.expected -= 1
        if site.expected <= 0 and not self.waits:
            self._apply(site)
            site.done = True
        return bias

    def close(self) -> None:
        """End a step: apply what waits."""
        if not self._seen:  # Compiled code does not come by `expect`.
            self._regroup(self.optimizer.param_groups)
        for site in self.sites.values():
            if site.heard:
                own = site.synapse._parameters
                taken = [own["weight"]] if site.bias is None else [own["weight"], own["bias"]]
                if any(p is not None and p.grad is not None for p in taken):
                    raise RuntimeError(
                        f"the weights of '{site.synapse.label}' got a gradient besides their synapse's own update (from a "
                        "penalty on weights?), and LocalSGD can't add the two; use its weight_decay, or torch.optim.SGD"
                    )
                if site.waiting:
                    with torch.no_grad():
                        self._apply(site)
            site.reset()

    def drop(self) -> None:
        """Let go of what waits, without learning from it."""
        for site in self.sites.values():
            site.reset()

    def _apply(self, site: _Site) -> None:
        synapse, waiting = site.synapse, site.waiting
        own = synapse._parameters
        weight, feedback = own["weight"], own.get("feedback")
        assert weight is not None
        delta, x, product = waiting[0]
        if feedback is not None and not (site.feedback and id(feedback) in self._groups):
            part(self.optimizer.state, weight, feedback)  # It stands still in this step.
            feedback = None
        forth = back = None
        if synapse.sparse:
            forth, back = synapse._buffers.get("weight_mask"), synapse._buffers.get("feedback_mask")
        together = feedback is not None and forth is back and self._shares(synapse, weight, feedback)
        if (feedback is not None and not together) or len(waiting) > 1 or weight.dtype != delta.dtype:
            # In full, where it is needed more than once.
            made = [synapse.hebbian(a, d) if p is None else p for d, a, p in waiting]
            product = sum(made[1:], made[0]).to(weight.dtype)
        waiting.clear()
        if feedback is not None and not together:
            part(self.optimizer.state, weight, feedback)
            increment = synapse.connection.increment
            own_product = None if increment is None else increment(product)
            if own_product is not None:
                self._move(feedback, synapse, delta, x, own_product, back)
        self._move(weight, synapse, delta, x, product, forth)
        if feedback is not None and together:
            state = self.optimizer.state
            velocity = state[feedback]["momentum_buffer"] = state[weight]["momentum_buffer"]
            feedback.add_(velocity, alpha=-self._groups[id(feedback)]["lr"])
        if site.bias is not None:
            bias = own["bias"]
            assert bias is not None
            self._move(
                bias, synapse, delta, x, site.bias if site.bias.dtype == bias.dtype else site.bias.to(bias.dtype)
            )

    def _shares(self, synapse: Synapse, weight: nn.Parameter, feedback: nn.Parameter) -> bool:
        """Whether weights and trainable feedback move by one velocity."""
        plasticity = synapse.plasticity
        return (
            isinstance(plasticity, Trained)
            and plasticity.follows_weights
            and shares(self.optimizer.state, weight, feedback, self._groups[id(weight)], self._groups[id(feedback)])
        )

    def part(self) -> None:
        """Part the velocities of weights and feedback of which one is about to move by a gradient."""
        for synapse in self.sites:
            weight, feedback = synapse._parameters.get("weight"), synapse._parameters.get("feedback")
            if feedback is not None and (feedback.grad is not None or (weight is not None and weight.grad is not None)):
                part(self.optimizer.state, weight, feedback)

    def _move(
        self,
        parameter: nn.Parameter,
        synapse: Synapse,
        delta: Tensor,
        x: Tensor,
        product: Tensor | None,
        mask: Tensor | None = None,
    ) -> None:
        group = self._groups[id(parameter)]
        lr, m, decay = group["lr"], group["momentum"], group["weight_decay"]
        # In place, so that autograd tells if something else in the graph still needs the weights as they were.
        if not m:
            _add(parameter, 1 - lr * decay, synapse, delta, x, product, -lr, mask)
            return
        state = self.optimizer.state[parameter]
        velocity = state.get("momentum_buffer")
        if velocity is None:
            velocity = state["momentum_buffer"] = torch.empty_like(parameter)
            _add(velocity, 0, synapse, delta, x, product, 1, mask)
            if decay:
                velocity.add_(parameter, alpha=decay)
            parameter.add_(velocity, alpha=-lr * (1 + m) if group["nesterov"] else -lr)
            return
        if group["nesterov"]:
            # g + m v_new = (1 + m) v_new - m v_old, without keeping g: the old velocity's share goes first.
            parameter.add_(velocity, alpha=lr * m)
            _add(velocity, m * (1 - lr * decay), synapse, delta, x, product, 1, mask)
            if decay:
                velocity.add_(parameter, alpha=decay)
            parameter.add_(velocity, alpha=-lr * (1 + m))
            return
        keep = 1 - group["dampening"]
        _add(velocity, m, synapse, delta, x, product, keep, mask)
        if decay:
            velocity.add_(parameter, alpha=decay * keep)
        parameter.add_(velocity, alpha=-lr)


def _add(
    target: Tensor,
    beta: float,
    synapse: Synapse,
    delta: Tensor,
    x: Tensor,
    product: Tensor | None,
    alpha: float,
    mask: Tensor | None,
) -> None:
    """Make `target` beta times itself plus alpha times the product delta^T x, where the mask has ones."""
    if product is None:
        synapse.add_hebbian(target, x, delta, beta, alpha)
    elif beta == 0:
        torch.mul(product, alpha, out=target)
    elif alpha == 1:
        torch.add(product, target, alpha=beta, out=target)
    else:
        if beta != 1:
            target.mul_(beta)
        target.add_(product, alpha=alpha)
    if mask is not None:
        target.mul_(mask)

"""SGD whose updates happen inside the backward pass, where a synapse knows all that its update needs (design section 6)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer
from torch.optim.sgd import sgd

if TYPE_CHECKING:
    from apical.learner import Learner
    from apical.synapse import Synapse


class LocalSGD(Optimizer):
    """Stochastic gradient descent that applies each synapse's update the moment it is known; no gradient is ever stored.

    Equal to `torch.optim.SGD` with the same arguments, step for step. ``loss.backward()`` changes the weights and biases of
    synapses (and layer-wise Hebbian feedback, by the same product); ``step()`` moves everything else (normalization) and
    closes the step, so that schedulers work as usual. For rules with a phase of their own, which compare passes under one
    set of weights, the updates wait for ``step()``; their factors are kept, not their product.

    What it can't do, because there is no gradient to wait for: several backward passes per step (refused), clipping by a
    global norm, gradient scaling, and DistributedDataParallel (refused). Use `torch.optim.SGD` there.

    Args:
        learner: what `apical.attach` returned.
        lr: learning rate. momentum, dampening, weight_decay, nesterov: as in `torch.optim.SGD`.
        params: parameters or groups of them, with options of their own, as for `torch.optim.SGD`. None: all of the model's.

    Raises:
        ValueError: for a value out of range. RuntimeError: under torch.distributed with several processes.
    """

    def __init__(
        self,
        learner: Learner,
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        *,
        dampening: float = 0.0,
        nesterov: bool = False,
        params: Any = None,
    ) -> None:
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be a number of at least 0, got {value!r}")
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError(f"nesterov needs a momentum above 0 and no dampening, got {momentum!r} and {dampening!r}")
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            raise RuntimeError(
                "LocalSGD applies updates before they could be averaged over processes; use torch.optim.SGD under "
                "DistributedDataParallel"
            )
        if not hasattr(learner, "synapses"):
            raise TypeError(f"learner must be what apical.attach returns, got {type(learner).__name__}")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(learner.model.parameters() if params is None else params, defaults)
        self._updates = Updates(self, learner, waits=learner._adapts)
        learner._wiring.local = self._updates

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients that parameters outside synapses got."""
        if not set_to_none:
            super().zero_grad(set_to_none=False)
            return
        # The base class's way takes as long as a small layer's product.
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad = None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move all that has not been moved in the backward pass, and close the step."""
        if self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks:
            return _with_hooks(self, closure)
        return self._step(closure)

    # The base class would wrap it in a profiler's record and in hooks, which take as long as three small layers' updates.
    step.hooked = True  # type: ignore[attr-defined]

    def _step(self, closure: Callable[[], Any] | None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._updates.close()
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            if moved:
                self._ordinary(moved, group)
        return loss

    @torch.no_grad()
    def _ordinary(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        buffers = [self.state[p].get("momentum_buffer") for p in parameters]
        sgd(
            parameters,
            [p.grad for p in parameters],  # type: ignore[misc]
            buffers,
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=False,
        )
        if group["momentum"]:
            for parameter, buffer in zip(parameters, buffers, strict=True):
                self.state[parameter]["momentum_buffer"] = buffer


_with_hooks = Optimizer.profile_hook_step(LocalSGD._step)


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

    def __init__(self, optimizer: LocalSGD, learner: Learner, *, waits: bool) -> None:
        self.optimizer, self.waits = optimizer, waits
        self.paused = False
        self.sites: dict[Synapse, _Site] = {synapse: _Site(synapse) for synapse in learner.synapses.values()}
        self._groups: dict[int, dict[str, Any]] = {}
        self._seen: list[dict[str, Any]] = []
        # Weights that several modules hold hear from all of them before they may move.
        held = [id(p) for module in learner.model.modules() for p in module._parameters.values() if p is not None]
        self.tied = {one for one, times in Counter(held).items() if times > 1}

    def expect(self, synapse: Synapse) -> Updates | None:
        """A call of `synapse` in a forward pass with a graph; None if its weights are to get an ordinary gradient."""
        groups = self.optimizer.param_groups
        # A state that is loaded brings groups of its own.
        if len(groups) != len(self._seen) or groups[0] is not self._seen[0]:
            self._seen = list(groups)
            self._groups = {id(p): group for group in groups for p in group["params"] if id(p) not in self.tied}
        if self.paused or id(synapse._parameters["weight"]) not in self._groups or torch.compiler.is_compiling():
            return None
        if torch._C._current_graph_task_id() == -1:  # Else activation checkpointing computes a pass anew.
            self.sites[synapse].expected += 1
        return self

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
        moves = feedback is not None and site.feedback and id(feedback) in self._groups
        forth = back = None
        if synapse.connectivity is not None:
            forth, back = synapse._buffers.get("weight_mask"), synapse._buffers.get("feedback_mask")
        together = moves and forth is back and self._together(synapse, delta)
        if (moves and not together) or len(waiting) > 1 or weight.dtype != delta.dtype:
            # In full, where it is needed more than once.
            made = [synapse.hebbian(a, d) if p is None else p for d, a, p in waiting]
            product = sum(made[1:], made[0]).to(weight.dtype)
        waiting.clear()
        if moves and not together:
            increment = synapse.plasticity.increment(product)
            if increment is not None:
                self._move(feedback, synapse, delta, x, increment, back)  # type: ignore[arg-type]
        self._move(weight, synapse, delta, x, product, forth)
        if together:
            state = self.optimizer.state
            velocity = state[feedback]["momentum_buffer"] = state[weight]["momentum_buffer"]  # type: ignore[index]
            feedback.add_(velocity, alpha=-self._groups[id(feedback)]["lr"])  # type: ignore[union-attr]
        if site.bias is not None:
            bias = own["bias"]
            assert bias is not None
            self._move(
                bias, synapse, delta, x, site.bias if site.bias.dtype == bias.dtype else site.bias.to(bias.dtype)
            )

    def _together(self, synapse: Synapse, delta: Tensor) -> bool:
        """Whether weights and trainable feedback have one velocity: the same sum of products, kept once."""
        weight, feedback = synapse._parameters["weight"], synapse._parameters["feedback"]
        one, other = self._groups[id(weight)], self._groups[id(feedback)]
        if not (one["momentum"] or other["momentum"]):
            return False
        mine, its = self.optimizer.state[weight], self.optimizer.state[feedback]  # type: ignore[index]
        velocity, another = mine.get("momentum_buffer"), its.get("momentum_buffer")
        none = delta[:0]  # Whether the product would be taken as it is; which one does not matter.
        alike = (
            one["momentum"] == other["momentum"]
            and one["dampening"] == other["dampening"]
            and not (one["weight_decay"] or other["weight_decay"] or one["nesterov"] or other["nesterov"])
            and synapse.plasticity.increment(none) is none
        )
        if velocity is not another:
            return False
        if velocity is not None and not alike:
            its["momentum_buffer"] = velocity.clone()
        return alike

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


@contextmanager
def ordinary(learner: Learner) -> Iterator[None]:
    """While open, backward passes give gradients and move nothing."""
    local = learner._wiring.local
    if local is None:
        yield
        return
    paused, local.paused = local.paused, True
    try:
        yield
    finally:
        local.paused = paused

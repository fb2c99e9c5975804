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
        waits = any(rule.pathway.adapts or rule.plasticity.adapts for rule in learner.rules.values())
        self._updates = Updates(self, learner, waits=waits)
        learner._wiring.local = self._updates

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move all that has not been moved in the backward pass, and close the step."""
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


@dataclass
class _Pending:
    """What a synapse has heard in this step: calls to come, and what has come and waits."""

    expected: int = 0
    waiting: list[_Product] = field(default_factory=list)
    bias: Tensor | None = None
    feedback: bool = False
    done: bool = False


class Updates:
    """The synapses' side of `LocalSGD`."""

    def __init__(self, optimizer: LocalSGD, learner: Learner, *, waits: bool) -> None:
        self.optimizer, self.waits = optimizer, waits
        self.paused = False
        self.pending: dict[Synapse, _Pending] = {}
        self.groups: dict[int, dict[str, Any]] = {}
        # Weights that several modules hold hear from all of them before they may move.
        held = [id(p) for module in learner.model.modules() for p in module._parameters.values() if p is not None]
        self.tied = {one for one, times in Counter(held).items() if times > 1}

    def expect(self, synapse: Synapse) -> Updates | None:
        """A call of `synapse` in a forward pass with a graph; None if its weights are to get an ordinary gradient."""
        if self.paused or torch.compiler.is_compiling() or self._group(synapse._parameters["weight"]) is None:
            return None
        if torch._C._current_graph_task_id() == -1:  # Else activation checkpointing computes a pass anew.
            self.pending.setdefault(synapse, _Pending()).expected += 1
        return self

    def _group(self, parameter: nn.Parameter | None) -> dict[str, Any] | None:
        if id(parameter) not in self.groups:
            groups = self.optimizer.param_groups
            self.groups = {id(p): group for group in groups for p in group["params"] if id(p) not in self.tied}
        return self.groups.get(id(parameter))

    def take(
        self,
        synapse: Synapse,
        x: Tensor,
        delta: Tensor,
        product: Tensor | None,
        bias: Tensor | None,
        *,
        feedback: bool,
    ) -> Tensor | None:
        """One call's update, in the backward pass: its factors, and their product where it is made already.

        Returns the bias's gradient if it is to go the ordinary way.
        """
        pending = self.pending.setdefault(synapse, _Pending())
        if pending.done:
            raise RuntimeError(
                f"'{synapse.label}' got a second backward pass before step(), but LocalSGD has applied the first one's update "
                "already; call step() after each, or accumulate gradients with torch.optim.SGD"
            )
        pending.waiting.append(_Product(delta, x, product))
        pending.feedback |= feedback
        if bias is not None and self._group(synapse._parameters["bias"]) is not None:
            pending.bias = bias if pending.bias is None else pending.bias + bias
            bias = None
        pending.expected -= 1
        if pending.expected <= 0 and not self.waits:
            self._apply(synapse, pending)
            pending.done = True
        return bias

    def close(self) -> None:
        """End a step: apply what waits."""
        for synapse, pending in self.pending.items():
            beside = [synapse.weight.grad, None if pending.bias is None else synapse.bias.grad]  # type: ignore[union-attr]
            if any(grad is not None for grad in beside) and (pending.done or pending.waiting):
                raise RuntimeError(
                    f"the weights of '{synapse.label}' got a gradient besides their synapse's own update (from a penalty on "
                    "weights?), and LocalSGD can't add the two; use its weight_decay, or torch.optim.SGD"
                )
            if pending.waiting:
                self._apply(synapse, pending)
        self.pending.clear()

    def drop(self) -> None:
        """Let go of what waits, without learning from it."""
        self.pending.clear()

    def _apply(self, synapse: Synapse, pending: _Pending) -> None:
        waiting, pending.waiting = pending.waiting, []
        weight, feedback = synapse.weight, synapse._parameters.get("feedback")
        moves = feedback if pending.feedback and feedback is not None and self._group(feedback) is not None else None
        product = waiting[0]
        if len(waiting) > 1 or moves is not None or weight.dtype != product.dtype:
            # In full, where it is needed more than once.
            total = product.tensor if len(waiting) == 1 else sum(one.tensor for one in waiting)
            product = _Product.of(total.to(weight.dtype))  # type: ignore[union-attr]
        if moves is not None:
            own = synapse.plasticity.increment(product.tensor)
            if own is not None:
                self._move(moves, _Product.of(own))
        self._move(weight, product)
        if pending.bias is not None:
            own_bias = synapse._parameters["bias"]
            assert own_bias is not None
            self._move(own_bias, _Product.of(pending.bias.to(own_bias.dtype)))

    def _move(self, parameter: nn.Parameter, product: _Product) -> None:
        group = self._group(parameter)
        assert group is not None
        lr, m, decay = group["lr"], group["momentum"], group["weight_decay"]
        # In place, so that autograd tells if something else in the graph still needs the weights as they were.
        value = parameter
        if not m:
            product.into(value, 1 - lr * decay, -lr)
            return
        state = self.optimizer.state[parameter]
        velocity = state.get("momentum_buffer")
        if velocity is None:
            velocity = state["momentum_buffer"] = torch.empty_like(value)
            product.into(velocity, 0, 1)
            if decay:
                velocity.add_(value, alpha=decay)
            value.add_(velocity, alpha=-lr * (1 + m) if group["nesterov"] else -lr)
            return
        if group["nesterov"]:
            # g + m v_new = (1 + m) v_new - m v_old, without keeping g: the old velocity's share goes first.
            value.add_(velocity, alpha=lr * m)
            product.into(velocity, m * (1 - lr * decay), 1)
            if decay:
                velocity.add_(value, alpha=decay)
            value.add_(velocity, alpha=-lr * (1 + m))
            return
        keep = 1 - group["dampening"]
        product.into(velocity, m, keep)
        if decay:
            velocity.add_(value, alpha=decay * keep)
        value.add_(velocity, alpha=-lr)


class _Product:
    """delta^T x of one call of a synapse; made only where it has to be."""

    def __init__(self, delta: Tensor, x: Tensor, made: Tensor | None) -> None:
        self.factors = (delta, x) if made is None else None
        self.made = made

    @classmethod
    def of(cls, tensor: Tensor) -> _Product:
        """A product that is made already."""
        return cls(tensor, tensor, tensor)

    @property
    def dtype(self) -> torch.dtype:
        """Of the factors."""
        return self.factors[0].dtype if self.made is None else self.made.dtype  # type: ignore[index]

    @property
    def tensor(self) -> Tensor:
        """In full, shaped like the weights."""
        if self.made is None:
            assert self.factors is not None
            delta, x = self.factors
            self.made = torch.mm(delta.t(), x)
        return self.made

    def into(self, target: Tensor, beta: float, alpha: float) -> None:
        """Make `target` beta times itself plus alpha times the product."""
        if self.made is None:
            assert self.factors is not None
            delta, x = self.factors
            target.addmm_(delta.t(), x, beta=beta, alpha=alpha)
        elif beta == 0:
            torch.mul(self.made, alpha, out=target)
        else:
            if beta != 1:
                target.mul_(beta)
            target.add_(self.made, alpha=alpha)


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

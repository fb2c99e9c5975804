"""SGD whose updates happen inside the backward pass, where a synapse knows all that its update needs (design section 6)."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.sgd import sgd

from apical.checks import number
from apical.learner import Learner, as_learner
from apical.optim.ownership import refuse_processes
from apical.optim.updates import Updates
from apical.step_hooks import missed
from apical.step_hooks.everywhere import others


class LocalSGD(Optimizer):
    """Stochastic gradient descent that applies each synapse's update the moment it is known; no gradient is ever stored.

    Equal to `torch.optim.SGD` with the same arguments, step for step. ``loss.backward()`` changes the weights and biases of
    synapses (and layer-wise Hebbian feedback, by the same product); ``step()`` moves everything else (normalization) and
    closes the step, so that schedulers work as usual. For rules with a phase of their own, which compare passes under one
    set of weights, the updates wait for ``step()``; their factors are kept, not their product.

    Weights move only in a backward pass that is theirs. Under torch.autograd.grad, for a signal that leaves the network to what
    this optimizer doesn't move (a generator, an image under attack), for parameters with hooks, and with a GradScaler, gradients
    go the ordinary way, and `step()` moves by them.

    What it can't do, because there is no gradient to wait for, is refused: several backward passes per step, clipping by
    PyTorch's functions, a GradScaler that comes after weights have moved, a loss that is not finite (on the CPU), and
    DistributedDataParallel. Use `torch.optim.SGD` there.

    Args:
        learner: what `apical.attach` returned.
        lr: learning rate. momentum, dampening, weight_decay, nesterov: as in `torch.optim.SGD`.
        params: parameters or groups of them, with options of their own, as for `torch.optim.SGD`. None: all of the model's.

    Raises:
        ValueError: for a value out of range. TypeError: for anything else than a learner, as the model.
        RuntimeError: under torch.distributed with several processes, here or, if they meet later, in the first forward pass.

    >>> import apical, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    >>> optimizer = apical.LocalSGD(apical.attach(net, "kp"), lr=0.1, momentum=0.9)
    >>> net(torch.randn(8, 4)).square().mean().backward()  # the weights have moved by now
    >>> optimizer.step()
    >>> net[0].weight.grad is None
    True
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
            number(name, value, least=0)
        number("dampening", dampening)  # Of either sign, as in torch.optim.SGD.
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError(f"nesterov needs a momentum above 0 and no dampening, got {momentum!r} and {dampening!r}")
        refuse_processes()
        as_learner(learner)
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(learner.model.parameters() if params is None else params, defaults)
        self._connect(learner)

    def _connect(self, learner: Learner) -> None:
        # Synapses reach this optimizer, and must not reach the learner by it: that keeps graphs, which hold synapses.
        self._learner = weakref.ref(learner)
        self._updates = Updates(self, learner)
        learner.circuit.updater = self._updates

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "learner": self._learner()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        own = {name: value for name, value in state.items() if name != "learner"}
        super().__setstate__(own)
        if state.get("learner") is not None:  # Else a state dict is loaded.
            self._connect(state["learner"])

    def state_dict(self) -> dict[str, Any]:
        """As `torch.optim.SGD` has it, a velocity for each: the one that weights and feedback may share stands in it twice."""
        state = super().state_dict()
        seen = set()
        for key, own in state["state"].items():
            velocity = own.get("momentum_buffer")
            if velocity is not None and id(velocity) in seen:
                state["state"][key] = {**own, "momentum_buffer": velocity.clone()}
            seen.add(id(velocity))
        return state

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients that parameters outside synapses got, and what waits for `step()`.

        Raises:
            RuntimeError: if weights have moved in a backward pass that no `step()` has closed: that can't be undone.
        """
        if self._updates.open:
            self._updates.discard()
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
        if self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks or others() or missed.waiting():
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
        moved = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        if any(moved):
            self._updates.part()
        for parameters, group in zip(moved, self.param_groups, strict=True):
            if parameters:
                self._ordinary(parameters, group)
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

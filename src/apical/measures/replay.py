"""Passing one batch through a model several times under equal conditions, and leaving no trace of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from apical.composites import lent
from apical.learner import Criterion, Learner
from apical.nested import pick, run
from apical.phases.isolation import preserved
from apical.phases.layout import as_one_network
from apical.phases.module_state import Held
from apical.plasticity import Phased
from apical.plasticity.base import redrawn
from apical.synapses.synapse import Synapse

Again = Callable[[], None]
"""again(): puts all that a pass changes back to where it was, for the next one under equal conditions."""


def require_whole(learner: Learner, what: str) -> None:
    """Raise a RuntimeError if the model's weights lie in shards, so that they can't be measured."""
    learner.circuit.require_whole(
        what,
        "gather them (torch.distributed.checkpoint.state_dict.get_model_state_dict with full_state_dict=True) and load them into "
        "a model that is attached alike, to measure that one",
    )


@contextmanager
def replaying(learner: Learner, batch: Any = (), *, phases: bool = False) -> Iterator[Again]:
    """While open, passes may be made at will; afterwards everything but weights is as before.

    Held are the global and the learner's random state, what modules hold besides parameters, redrawn feedback, the batch and
    `.grad`. The function given out puts all but the gradients back at once, so that two passes can be compared.

    Args:
        learner: whose model passes. batch: what passes through it: tensors, or containers of them.
        phases: whether passes inside are recorded for `Learner.adapt`, and feedback that it changes is put back as
            well.

    Raises:
        ValueError: if the learner holds several copies side by side.
    """
    model = learner.model
    stored = [(s, dict(s._buffers)) for s in learner.synapses.values() if redrawn(s.plasticity) is not None]
    learned = [Held(b) for owner in _adapting(learner) if phases for b in owner._buffers.values() if b is not None]
    adapted, drawn = learner.adapted, learner.generator.get_state()
    with (
        preserved(model, gradients=True, also=batch) as before,
        learner.phases.unheard(paused=not phases),
        as_one_network(learner),
        learner.circuit.ordinary(),
    ):

        def again() -> None:
            before.restore()
            for feedback in learned:
                feedback.restore()
            learner.phases.adapted = adapted
            for synapse, buffers_then in stored:
                synapse._buffers.update(buffers_then)
            learner.generator.set_state(drawn)

        try:
            yield again
        finally:
            again()


@contextmanager
def alone(learner: Learner) -> Iterator[None]:
    """While open, no other thread may call the model, whose weights are not its own meanwhile."""
    circuit = learner.circuit

    def refuse(module: nn.Module, args: Any) -> None:
        if circuit.busy and not circuit.mine:
            raise RuntimeError(
                f"{type(module).__name__} was called while another thread audits the model, with other numbers in place of its "
                "weights; audit when no other thread calls it"
            )

    with learner.phases.unheard():
        modules = {learner.model, *learner.synapses.values()}
        handles = [module.register_forward_pre_hook(refuse) for module in modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _adapting(learner: Learner) -> list[nn.Module]:
    return [site.owner for site in learner.phases.sites() if isinstance(site.plasticity, Phased)]


def losses_of(learner: Learner, inputs: Any, targets: Any, criterion: Criterion) -> Tensor:
    """Per-sample losses [N] of the model on a batch.

    Raises:
        ValueError: if the criterion does not give one loss per sample.
    """
    output = pick(run(learner.model, inputs), learner.output)
    return learner.layout.judge(criterion, output, targets)


def owners_of_weights(learner: Learner) -> dict[str, nn.Module]:
    """Name -> module, for every module with parameters of its own besides feedback; the root is called "(model)"."""
    # What computes a synapse's weights is part of it.
    inner = tuple(f"{name}.parametrizations.".lstrip(".") for name, one in learner.synapses.items() if one.computed)
    named = ((name, module) for name, module in learner.model.named_modules() if not name.startswith(inner))
    return {name or "(model)": module for name, module in named if own_parameters(learner, module)}


def own_parameters(learner: Learner, module: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of one module itself, without the feedback of a synapse or of a block named in ``at=``."""
    if isinstance(module, Synapse) and module.computed:
        return {name: p for name, p in module.named_parameters() if name != "feedback"}
    fed = isinstance(module, Synapse) or module in learner.blocks.values()
    others = lent(module) | ({"feedback"} if fed else set())
    return {name: p for name, p in module._parameters.items() if p is not None and name not in others}

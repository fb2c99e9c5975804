"""Alignment of a learner's teaching signals and feedback weights with those of backpropagation (reference 1.22)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from apical.learner import Criterion, Learner, as_attached
from apical.measures import tensors
from apical.measures.replay import losses_of, replaying, require_whole
from apical.nested import input_of
from apical.pathways import FromOutput
from apical.phases.conditions import backpropagating
from apical.phases.isolation import weights_preserved
from apical.synapses.storage import PROJECTION, form_of, kept
from apical.synapses.synapse import Synapse


@dataclass(frozen=True)
class SynapseAlignment:
    """Alignment of one synapse with backpropagation, by the measures of the papers.

    A measure is None where it is not defined: no feedback, or none of the weight's shape; no error.

    Attributes:
        matrix_angle: of W to B, in degrees.
        delta_angle: of the rule's error at the synapse's output to that of backpropagation through the whole
            network, in degrees, averaged over samples (akrout2019).
        layer_angle: of the rule's own error carried back by B to the same error carried back by W, in degrees,
            averaged over samples (lansdell2020).
        relative_error: ||W - B|| / ||W||.
        sign_congruence: fraction of equal signs, 0 to 1.
        correlation: Pearson's, over all entries.

    Connections that don't exist (see `apical.Connectivity`) are entries of zero like others. Where an error is seen through few
    directions (``rank=``), both angles of errors are of what is then sent back, and measures of matrices of B as a whole.

    >>> SynapseAlignment(90.0, None, None, 1.4, 0.5, 0.0).asdict()["matrix_angle"]
    90.0
    """

    matrix_angle: float | None
    delta_angle: float | None
    layer_angle: float | None
    relative_error: float | None
    sign_congruence: float | None
    correlation: float | None

    def asdict(self) -> dict[str, float | None]:
        """Name -> value, for JSON."""
        return dataclasses.asdict(self)


@dataclass
class _Call:
    """One call of a synapse: shape of its input, whether a signal goes on from there, and the error at its output."""

    shape: torch.Size
    sends: bool
    edge: GradientEdge | None
    """The output's place in the graph, which stays when an activation function changes the output in place."""
    delta: Tensor | None = None


def alignment(learner: Learner, inputs: Any, targets: Any, criterion: Criterion) -> dict[str, SynapseAlignment]:
    """Alignment of every synapse on one batch, in the model's present mode.

    It shows whether a rule's feedback has come to teach what backpropagation would. Nothing is changed by it.

    Args:
        learner: what `attach` returned.
        inputs: a batch, as the model takes it. targets: as the criterion takes them.
        criterion: criterion(outputs, targets) -> losses [N], one per sample; outputs are the model's, or what `attach`
            was told to pick of them.

    Returns:
        Module name -> `SynapseAlignment`, in the model's order.

    Raises:
        ValueError: if the criterion does not give one loss per sample, or the learner is detached.
        TypeError: for anything else than a learner, as the model.

    >>> import apical, torch
    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    >>> learner = apical.attach(model, "fa")
    >>> x, y = torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    >>> found = apical.alignment(learner, x, y, nn.CrossEntropyLoss(reduction="none"))
    >>> list(found), found["2"].delta_angle  # the last layer's error is the output's own
    (['0', '2'], 0.0)
    """
    as_attached(learner)
    require_whole(learner, "apical.alignment")
    with weights_preserved(learner.model), replaying(learner, (inputs, targets)) as again, torch.enable_grad():
        calls = _deltas(learner, inputs, targets, criterion)
        again()
        with backpropagating(learner):
            reference = _deltas(learner, inputs, targets, criterion)
        again()
        result = {}
        for name, synapse in learner.synapses.items():
            pairs = zip(calls[name], reference[name], strict=True)
            result[name] = SynapseAlignment(
                delta_angle=_mean_angle([(ours.delta, theirs.delta) for ours, theirs in pairs]),
                layer_angle=_layer_angle(synapse, calls[name]),
                **_matrix_measures(synapse),
            )
    return result


def _deltas(learner: Learner, inputs: Any, targets: Any, criterion: Criterion) -> dict[str, list[_Call]]:
    """Every synapse's calls in one pass, with the error at the output of each."""
    seen: dict[str, list[_Call]] = {name: [] for name in learner.synapses}

    def look(synapse: Synapse, args: tuple[Any, ...], *rest: Any) -> None:
        if not learner.circuit.mine:
            return  # Another thread's, which may call it without kwargs once it is removed.
        kwargs, output = rest
        x = input_of(args, kwargs)
        edge = get_gradient_edge(output) if output.requires_grad else None
        seen[synapse.label].append(_Call(x.shape, x.requires_grad, edge))

    handles = [synapse.register_forward_hook(look, with_kwargs=True) for synapse in learner.synapses.values()]
    try:
        losses = losses_of(learner, inputs, targets, criterion)
    finally:
        for handle in handles:
            handle.remove()
    reached = [(call, call.edge) for calls in seen.values() for call in calls if call.edge is not None]
    # In a frozen network no synapse's output has an error.
    if reached:
        errors = torch.autograd.grad(losses.sum(), [edge for _, edge in reached], allow_unused=True)
        for (call, _), delta in zip(reached, errors, strict=True):
            call.delta, call.edge = delta, None
    return seen


def _mean_angle(pairs: list[tuple[Tensor | None, Tensor | None]]) -> float | None:
    """Mean angle over samples, in degrees; calls on the same samples are one vector."""
    rows: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for a, b in pairs:
        if a is not None and b is not None:
            a, b = _rows(a), _rows(b)
            rows.setdefault(len(a), []).append((a, b))
    if not rows:
        return None
    sides = [[torch.cat(side, dim=1) for side in zip(*calls, strict=True)] for calls in rows.values()]
    return _defined(float(torch.cat([tensors.angles(a, b) for a, b in sides]).nanmean()))


def _layer_angle(synapse: Synapse, calls: list[_Call]) -> float | None:
    feedback = synapse.feedback
    if feedback is None or feedback.shape != synapse.weight_now.shape or isinstance(synapse.pathway, FromOutput):
        return None
    with torch.no_grad():
        if synapse.subspace is not None:
            feedback = synapse.subspace.seen(synapse, feedback)
        return _mean_angle(
            [
                (
                    synapse.feed_back(call.delta, feedback.to(call.delta.dtype), call.shape),
                    synapse.feed_back(call.delta, synapse.weight_now.to(call.delta.dtype), call.shape),
                )
                for call in calls
                if call.sends and call.delta is not None
            ]
        )


def _matrix_measures(synapse: Synapse) -> dict[str, float | None]:
    W, B, form = synapse.weight_now, synapse.feedback, form_of(synapse)
    if B is not None and form is not None and (form.outputs, *form.features) == W.shape:
        B = form.in_full(synapse.plasticity.keeps(synapse), kept(synapse, PROJECTION))
    elif form is not None:
        B = None
    functions = {
        "matrix_angle": tensors.angle,
        "relative_error": tensors.relative_error,
        "sign_congruence": tensors.sign_congruence,
        "correlation": tensors.correlation,
    }
    if B is None or B.shape != W.shape:
        return dict.fromkeys(functions)
    return {name: _defined(function(W, B)) for name, function in functions.items()}


def _rows(t: Tensor) -> Tensor:
    return t.flatten(1) if t.dim() > 1 else t.reshape(1, -1)


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value

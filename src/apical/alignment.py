"""How well a learner's teaching signals and feedback weights align with backpropagation's (reference 1.22)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from apical import measures
from apical.arguments import input_of
from apical.learner import Criterion, Learner
from apical.replay import backpropagating, losses_of, replaying
from apical.synapse import Synapse


@dataclass(frozen=True)
class SynapseAlignment:
    """Alignment at one synapse; None where a measure is not defined (no feedback, or none of the weight's shape; no error).

    Attributes:
        matrix_angle: of W to B, in degrees.
        delta_angle: of the rule's error at the synapse's output to that of backpropagation through the whole
            network, in degrees, averaged over samples (akrout2019).
        layer_angle: of the rule's own error carried back by B to the same error carried back by W, in degrees,
            averaged over samples (lansdell2020).
        relative_error: ||W - B|| / ||W||.
        sign_congruence: fraction of equal signs, 0 to 1.
        correlation: Pearson's, over all entries.

    Connections that don't exist (see `apical.Connectivity`) are entries of zero like others.
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
class _Seen:
    """A synapse's calls in one forward pass."""

    inputs: list[Tensor]
    outputs: list[Tensor]


def alignment(learner: Learner, inputs: Any, targets: Any, criterion: Criterion) -> dict[str, SynapseAlignment]:
    """Measure every synapse on one batch, in the model's present mode. Nothing is changed by it.

    Args:
        learner: what `attach` returned.
        inputs: a batch, as the model takes it. targets: as the criterion takes them.
        criterion: criterion(outputs, targets) -> losses [N], one per sample.

    Returns:
        Module name -> `SynapseAlignment`, in the model's order.

    Raises:
        ValueError: if the criterion does not give one loss per sample, or the learner is detached.
    """
    if not learner.synapses:
        raise ValueError("the learner is detached, so its model has no synapses to measure; call apical.attach again")
    with replaying(learner) as again, torch.enable_grad():
        seen, deltas = _deltas(learner, inputs, targets, criterion)
        again()
        with backpropagating(learner):
            _, reference = _deltas(learner, inputs, targets, criterion)
        again()
        result = {}
        for name, synapse in learner.synapses.items():
            result[name] = SynapseAlignment(
                delta_angle=_mean_angle(deltas[name], reference[name]),
                layer_angle=_layer_angle(synapse, seen[name], deltas[name]),
                **_matrix_measures(synapse),
            )
    return result


def _deltas(
    learner: Learner, inputs: Any, targets: Any, criterion: Criterion
) -> tuple[dict[str, _Seen], dict[str, list[Tensor | None]]]:
    """Every synapse's calls, and the error at the output of each."""
    seen = {name: _Seen([], []) for name in learner.synapses}

    def look(synapse: Synapse, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        if output.requires_grad:
            seen[synapse.label].inputs.append(input_of(args, kwargs))
            seen[synapse.label].outputs.append(output)

    handles = [synapse.register_forward_hook(look, with_kwargs=True) for synapse in learner.synapses.values()]
    try:
        losses = losses_of(learner, inputs, targets, criterion)
        outputs = [output for calls in seen.values() for output in calls.outputs]
        # In a frozen network no synapse's output has an error.
        errors = torch.autograd.grad(losses.sum(), outputs, allow_unused=True) if outputs else ()
        found: Iterator[Tensor | None] = iter(errors)
    finally:
        for handle in handles:
            handle.remove()
    return seen, {name: [next(found) for _ in calls.outputs] for name, calls in seen.items()}


def _mean_angle(ours: list[Tensor | None], theirs: list[Tensor | None]) -> float | None:
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    if not pairs:
        return None
    a, b = (torch.cat([_rows(t) for t in side], dim=1) for side in zip(*pairs, strict=True))
    return _defined(float(measures.angles(a, b).nanmean()))


def _layer_angle(synapse: Synapse, seen: _Seen, deltas: list[Tensor | None]) -> float | None:
    feedback = synapse.feedback
    if feedback is None or feedback.shape != synapse.weight.shape or synapse.pathway.wired:
        return None
    carried = []
    with torch.no_grad():
        for x, delta in zip(seen.inputs, deltas, strict=True):
            if delta is None or not x.requires_grad:
                continue
            x, geometry = synapse.prepare(x)
            carried.append(
                [synapse.feed_back(delta, b.to(delta.dtype), x.shape, geometry) for b in (feedback, synapse.weight)]
            )
    return _mean_angle([b for b, _ in carried], [w for _, w in carried])


def _matrix_measures(synapse: Synapse) -> dict[str, float | None]:
    W, B = synapse.weight, synapse.feedback
    functions = {
        "matrix_angle": measures.angle,
        "relative_error": measures.relative_error,
        "sign_congruence": measures.sign_congruence,
        "correlation": measures.correlation,
    }
    if B is None or B.shape != W.shape:
        return dict.fromkeys(functions)
    return {name: _defined(function(W, B)) for name, function in functions.items()}


def _rows(t: Tensor) -> Tensor:
    return t.flatten(1) if t.dim() > 1 else t.reshape(1, -1)


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value

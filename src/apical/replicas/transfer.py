"""Bringing one learner to where another is, between a network and copies of it side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from apical.attaching.attach import attach
from apical.attaching.by_module import Rules
from apical.learner import Learner
from apical.pathways import FromOutput


def attach_like(
    learner: Learner,
    model: nn.Module,
    rule: Rules | Sequence[Rules],
    example: Any,
    generator: torch.Generator | Sequence[torch.Generator],
) -> Learner:
    """Attach `model`, of the same structure, as `learner` is attached to its own."""
    return attach(
        model,
        rule,
        example_input=example,
        at=list(learner.blocks) or None,
        generator=generator,
        output=learner.output,
        connectivity=dict(learner.connectivity),
    )


def catch_up(learner: Learner, other: Learner, width: Callable[[int], int]) -> None:
    """Copy the progress of `other` to `learner`: dropped feedback, number of `adapt` calls, known shapes of activities.

    One of them is of a single network, the other of copies side by side; `width` converts a number of units of `other`'s model
    into that of `learner`'s.
    """

    def alike(shape: torch.Size) -> torch.Size:
        return torch.Size([width(shape[0]), *shape[1:]])

    silence_like(learner, other)
    learner.phases.adapted, learner.followed = other.adapted, other.followed
    learner.phases.features = {
        tuple(map(alike, key)): {name: alike(shape) for name, shape in met.items()}
        for key, met in other.phases.features.items()
    }


def silence_like(learner: Learner, other: Learner) -> None:
    """Drop the feedback that `other`, of a network of the same structure, has found to be without use."""
    for name, synapse in other.synapses.items():
        mine = learner.synapses[name]
        if mine.sends_back and not (synapse.sends_back or isinstance(synapse.pathway, FromOutput)):
            mine.silence()

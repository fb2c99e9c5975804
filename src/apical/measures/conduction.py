"""The weights that a synapse's own products are made of, product by product.

They need not be those that it holds: hooks around a forward pass may quantise or clip them for as long as it takes. So an audit
records what the clean pass was made of, and makes the passes with poisoned weights of the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from apical.synapses.synapse import Geometry, Synapse

Conducted = Mapping[str, list[Tensor | None]]
"""Label of a synapse -> the weights of each of its products, in order; None where they were those that it held."""


@contextmanager
def recorded(synapses: Iterable[Synapse]) -> Iterator[Conducted]:
    """While open, what products are made of is noted in the mapping given out."""
    found: dict[str, list[Tensor | None]] = {}
    with ExitStack() as stack:
        for synapse in synapses:
            note = _note(synapse.weight.detach().clone(), found.setdefault(synapse.label, []))
            stack.enter_context(_made_of(synapse, note))
        yield found


def _note(before: Tensor, taken: list[Tensor | None]) -> Callable[[Tensor], Tensor]:
    def note(weight: Tensor) -> Tensor:
        taken.append(None if torch.equal(weight, before.to(weight.dtype)) else weight.detach().clone())
        return weight

    return note


@contextmanager
def repeated(synapse: Synapse, clean: Tensor, conducted: Conducted) -> Iterator[Callable[[], Tensor]]:
    """While open, products are made of what was recorded, or of `clean`, whatever the weights have become.

    The function given out tells what the next product is made of.
    """
    waiting = list(reversed(conducted.get(synapse.label, ())))

    def coming() -> Tensor:
        found = waiting[-1] if waiting else None
        return clean if found is None else found

    def again(weight: Tensor) -> Tensor:
        found = coming().to(weight.dtype)
        if waiting:
            waiting.pop()
        return found

    with _made_of(synapse, again):
        yield coming


@contextmanager
def _made_of(synapse: Synapse, take: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While open, the synapse's own products are made of take(its weight).

    The two methods that read weights for it are replaced on the instance, so that a synapse need not know of audits.
    """
    held, transmit, infer = synapse.weight, synapse.transmit, synapse.infer

    def transmit_own(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry = ()) -> Tensor:
        # A copy in another precision is the layer's own too; anything else was computed, or is feedback.
        own = weight is held or weight is synapse._parameters.get("weight") or weight.dtype != held.dtype
        return transmit(x, take(weight) if own else weight, bias, geometry)

    def infer_own(input: Tensor, *args: Any) -> Tensor:
        # The plain layer's own pass, so that autocast and borders are as without an audit.
        now = synapse.weight
        synapse._parameters["weight"] = nn.Parameter(take(now), requires_grad=False)
        try:
            return infer(input, *args)
        finally:
            synapse._parameters["weight"] = now

    before = dict(vars(synapse))
    vars(synapse).update(transmit=transmit_own, infer=infer_own)
    try:
        yield
    finally:
        for name in ("transmit", "infer"):
            del vars(synapse)[name]
            if name in before:
                vars(synapse)[name] = before[name]

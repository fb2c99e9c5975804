"""What is kept of direct feedback that is made of less than D, some of it for all taps together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from apical.pathways.factored.form import Form
from apical.per_copy import Streams
from apical.plasticity.base import Plasticity
from apical.plasticity.initialization import fill_by, law_of
from apical.synapses.storage import PROJECTION, SEED, keep, weight_of


class Common:
    """What the taps of a learner have in common, drawn once: projections P, and matrices of which each takes a part.

    Args:
        forms: of all taps. generator: the learner's. held: held(name, shape), what taps had before that were attached already.
    """

    def __init__(
        self, forms: Iterable[Form], generator: torch.Generator, held: Callable[[str, torch.Size], Tensor | None]
    ) -> None:
        self.generator, self.held = generator, held
        self.sources = generator.own if isinstance(generator, Streams) else (generator,)
        self._widest: dict[int, int] = {}
        for form in (one for one in forms if one.shared):
            k = form.shape[0]
            self._widest[k] = max(self._widest.get(k, 0), form.fans[0])
        self._drawn: dict[tuple[str, torch.Size], Tensor] = {}

    def prepare(self, owner: nn.Module, plasticity: Plasticity, form: Form) -> None:
        """Store what the owner keeps for its feedback."""
        if form.rank:
            shape = torch.Size([form.copies * form.outputs, form.rank])
            keep(owner, PROJECTION, self._once(PROJECTION, shape, owner, lambda source: _projection(form, source)))
        if form.seeded:
            keep(
                owner, SEED, self._placed(owner, [torch.randint(2**62, (1,), generator=one) for one in self.sources], 0)
            )
        elif form.shared:
            k = form.shape[0]
            kind, own = law_of(form.init)[0], torch.Size([k, self._widest[k]])
            shape = torch.Size([k, form.copies * self._widest[k]])

            def unit(source: torch.Generator) -> Tensor:
                return fill_by(kind, 1.0, torch.empty(own, device=source.device), source)

            keep(owner, "feedback", self._once("feedback", shape, owner, unit))
        else:
            plasticity.prepare(owner, form.shape, self.generator)

    def _once(
        self, name: str, shape: torch.Size, owner: nn.Module, draw: Callable[[torch.Generator], Tensor]
    ) -> Tensor:
        found = self._drawn.get((name, shape))
        if found is None:
            drawn = self._placed(owner, [draw(one) for one in self.sources], 0 if name == PROJECTION else 1)
            before = self.held(name, shape)
            found = self._drawn[name, shape] = drawn if before is None else before
        return found

    def _placed(self, owner: nn.Module, drawn: list[Tensor], dimension: int) -> Tensor:
        """One tensor of what each copy has drawn, where the owner's weights are; in their dtype, if it is no whole number."""
        weight = weight_of(owner)
        like = next(owner.parameters(), None) if weight is None else weight
        found = torch.cat(drawn, dimension)
        return (
            found if like is None else found.to(like.device, like.dtype if found.is_floating_point() else found.dtype)
        )


def _projection(form: Form, source: torch.Generator) -> Tensor:
    """P [outputs, rank] of one network: orthogonal columns, so scaled that P P^T is the identity in the mean."""
    assert form.rank is not None
    drawn = torch.randn(form.outputs, form.rank, dtype=torch.float64, generator=source, device=source.device)
    return torch.linalg.qr(drawn).Q.mul_(math.sqrt(form.outputs / form.rank))

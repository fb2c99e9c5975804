"""Sign symmetry: feedback that knows the signs of the weights and not their magnitudes (reference 1.6)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from apical.checks import number
from apical.per_copy import PER_COPY, PerCopy, spread
from apical.plasticity.base import Computed
from apical.plasticity.initialization import Init, draw_for
from apical.synapses.storage import keep, kept, weight_of
from apical.synapses.synapse import Synapse


@dataclass(frozen=True)
class Signs(Computed):
    """B = magnitude * sign(W), with the signs W has at each step (Liao et al. 2016; akrout2019 'SS').

    Args:
        magnitudes: "uniform", one number `scale` for the whole synapse (uSF); "fixed", |M| drawn once (frSF); or "batchwise",
            |M| drawn anew before every forward pass of the whole model (brSF). Processes of one training draw alike if their
            generators were seeded alike.
        scale: of "uniform": a number (Liao: 1), or None for sqrt(2 / (fan in + fan out)), as BioTorch does.
        init: how M is drawn: a name in `apical.plasticity.INITS` or a function that fills a tensor. Not from the weights:
            magnitudes would be carried over.

    Raises:
        ValueError: for values that can't be, or that don't go together.

    >>> import apical
    >>> apical.rule("usf", scale=0.1).plasticity.magnitudes
    'uniform'
    """

    name: ClassVar[str] = "signs"
    pathways: ClassVar[frozenset[str]] = frozenset({"layer-wise"})
    magnitudes: Literal["uniform", "fixed", "batchwise"] = field(default="uniform", metadata={"settled_by_name": True})
    scale: float | None = field(default=None, metadata=PER_COPY)
    init: Init = field(default="amit2019", metadata=PER_COPY)

    def __post_init__(self) -> None:
        if self.magnitudes not in ("uniform", "fixed", "batchwise"):
            raise ValueError(f"magnitudes must be 'uniform', 'fixed' or 'batchwise', got {self.magnitudes!r}")
        if self.scale is not None:
            number("scale", self.scale, above=0, otherwise="; None takes sqrt(2 / (fan in + fan out))")
            if self.magnitudes != "uniform":
                raise ValueError(f"scale belongs to uniform magnitudes; {self.magnitudes} ones are drawn by init")
        if self.init == "weights":
            raise ValueError("init='weights' would carry magnitudes of the weights; give another init to a sign rule")

    @override
    def prepare(self, owner: nn.Module, shape: torch.Size, generator: torch.Generator) -> None:
        if self.magnitudes != "uniform":
            keep(owner, "magnitudes", self._drawn(owner, shape, generator))

    def _drawn(self, owner: nn.Module, shape: torch.Size, generator: torch.Generator) -> Tensor:
        return draw_for(owner, self.init, shape, generator, mirror=False).abs_()

    @override
    def keeps(self, owner: nn.Module) -> Tensor:
        weight = _weight(owner).detach()
        # Batchwise magnitudes are those of the forward pass, and may be drawn anew before its backward.
        return _times(torch.sign(weight), kept(owner, "magnitudes")) if self.redraws else weight

    @override
    def resolve(self, owner: nn.Module, found: Tensor, out: Tensor | None = None) -> Tensor:
        if self.redraws:
            return found
        signs = torch.sign(found, out=out)
        if isinstance(self.scale, PerCopy):
            return signs.mul_(spread(PerCopy(_scale(owner, one) for one in self.scale), signs))
        return signs if self.magnitudes == "uniform" else _times(signs, kept(owner, "magnitudes"))

    @property
    @override
    def signs(self) -> bool:
        return self.magnitudes == "uniform" and not isinstance(self.scale, PerCopy)

    @override
    def gain(self, owner: nn.Module) -> float:
        if self.magnitudes != "uniform" or isinstance(self.scale, PerCopy):
            return 1.0
        return _scale(owner, self.scale)

    @property
    @override
    def redraws(self) -> bool:
        return self.magnitudes == "batchwise"

    @override
    def redraw(self, owner: nn.Module, generator: torch.Generator) -> None:
        # Drawn for every synapse, so that the stream does not depend on which ones a signal leaves.
        magnitudes = self._drawn(owner, _weight(owner).shape, generator)
        if kept(owner, "magnitudes") is not None:
            keep(owner, "magnitudes", magnitudes)


def _times(signs: Tensor, magnitudes: Tensor | None) -> Tensor:
    assert magnitudes is not None, "a signal goes back, so magnitudes were kept"
    return signs.mul_(magnitudes)


def _weight(owner: nn.Module) -> Tensor:
    weight = weight_of(owner)
    assert weight is not None
    return weight


def _scale(owner: nn.Module, given: float | None) -> float:
    assert isinstance(owner, Synapse)
    return given if given is not None else (2 / sum(owner.fans())) ** 0.5

"""Sign symmetry: feedback that knows the signs of the weights and not their magnitudes (reference 1.6)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from apical.per_copy import PER_COPY, PerCopy, spread
from apical.plasticity.base import Plasticity, keep_buffer
from apical.plasticity.initialization import Init, draw_for


@dataclass(frozen=True)
class Signs(Plasticity):
    """B = magnitude * sign(W), with the signs W has at each step (Liao et al. 2016; akrout2019 'SS').

    magnitudes: "uniform", one number `scale` for the whole synapse (uSF); "fixed", |M| drawn once (frSF); or
        "batchwise", |M| drawn anew before every forward pass of the whole model (brSF). Processes of one training
        draw alike if their generators were seeded alike.
    scale: of "uniform": a number (Liao: 1), or None for sqrt(2 / (fan in + fan out)), as BioTorch does.
    init: how M is drawn: a name in `INITS` or a function that fills a tensor. Not from the weights: magnitudes
        would be carried over.
    """

    name: ClassVar[str] = "signs"
    pathways: ClassVar[frozenset[str]] = frozenset({"layer-wise"})
    names: ClassVar[tuple[str, ...]] = ("magnitudes",)
    magnitudes: Literal["uniform", "fixed", "batchwise"] = field(default="uniform", metadata={"settled_by_name": True})
    scale: float | None = field(default=None, metadata=PER_COPY)
    init: Init = field(default="amit2019", metadata=PER_COPY)

    def __post_init__(self) -> None:
        if self.magnitudes not in ("uniform", "fixed", "batchwise"):
            raise ValueError(f"magnitudes must be 'uniform', 'fixed' or 'batchwise', got {self.magnitudes!r}")
        if self.scale is not None and not (isinstance(self.scale, int | float) and 0 < self.scale < float("inf")):
            raise ValueError(f"scale must be a positive number or None, got {self.scale!r}")
        if self.scale is not None and self.magnitudes != "uniform":
            raise ValueError(f"scale belongs to uniform magnitudes; {self.magnitudes} ones are drawn by init")
        if self.init == "weights":
            raise ValueError("init='weights' would carry magnitudes of the weights; give another init to a sign rule")

    @property
    def computes(self) -> bool:  # type: ignore[override]
        """Signs are taken in the backward; with batchwise magnitudes in the forward, whose own draw they need."""
        return not self.redraws

    @property
    def redraws(self) -> bool:  # type: ignore[override]
        """True for batchwise magnitudes."""
        return self.magnitudes == "batchwise"

    @override
    def prepare(self, owner: nn.Module, shape: torch.Size, generator: torch.Generator) -> None:
        if self.magnitudes != "uniform":
            keep_buffer(owner, "magnitudes", draw_for(owner, self.init, shape, generator, mirror=False).abs_())

    @override
    def keeps(self, owner: nn.Module) -> Tensor:
        weight: Tensor = owner._parameters["weight"].detach()  # type: ignore[union-attr]
        return torch.sign(weight).mul_(owner._buffers["magnitudes"]) if self.redraws else weight  # type: ignore[arg-type]

    @override
    def resolve(self, owner: nn.Module, kept: Tensor, out: Tensor | None = None) -> Tensor:
        if self.redraws:
            return kept
        signs = torch.sign(kept, out=out)
        if isinstance(self.scale, PerCopy):
            return signs.mul_(spread(PerCopy(self._scale(owner, one) for one in self.scale), signs))
        return signs if self.magnitudes == "uniform" else signs.mul_(owner._buffers["magnitudes"])  # type: ignore[arg-type]

    @override
    def gain(self, owner: nn.Module) -> float:
        if self.magnitudes != "uniform" or isinstance(self.scale, PerCopy):
            return 1.0
        return self._scale(owner, self.scale)

    @staticmethod
    def _scale(owner: nn.Module, given: float | None) -> float:
        return given if given is not None else (2 / sum(owner.fans())) ** 0.5  # type: ignore[operator]

    @override
    def available(self, owner: nn.Module) -> bool:
        return self.magnitudes == "uniform" or super().available(owner)

    @override
    def redraw(self, owner: nn.Module, generator: torch.Generator) -> None:
        # Drawn for every synapse, so that the stream does not depend on which ones a signal leaves.
        shape: torch.Size = owner.weight.shape  # type: ignore[assignment, union-attr]
        magnitudes = draw_for(owner, self.init, shape, generator, mirror=False).abs_()
        if owner._buffers.get("magnitudes") is not None:
            keep_buffer(owner, "magnitudes", magnitudes)

"""The synapse: the bilinear part of a layer, with forward weights W and feedback weights B.

Three operations define a kind of synapse, and every rule is written in them (reference 1.0, batches of rows):

- ``transmit(x, W, b)``: the layer itself, y = x W^T + b;
- ``feed_back(delta, B)``: the teaching signal at the layer's input, delta B;
- ``hebbian(x, delta)``: the product of activities before and after the synapse, delta^T x, shaped like W.

To add a kind, subclass `Synapse` together with the plain module, give it these three, and call `register_synapse`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from apical.synapses.function import SynapseFunction, apply
from apical.synapses.masks import MASKS

if TYPE_CHECKING:
    from apical.attaching.connectivity import Connectivity
    from apical.pathways.base import Pathway
    from apical.pathways.taps import Wiring
    from apical.plasticity import Plasticity


Geometry = tuple[Any, ...]
"""What one call of a layer fixes besides its weights, e.g. a convolution's stride and padding."""


class Synapse(nn.Module):
    """A layer whose backward pass reads `feedback` instead of its weights.

    Made by `apical.attach`, which swaps the class of a plain layer in place; parameters keep identity and name.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    pathway: Pathway
    plasticity: Plasticity
    wiring: Wiring
    label: str
    sends_back: bool = True
    """False where no teaching signal ever leaves the synapse, because its input is data."""
    large: bool = False
    """Whether results of the weights' size are worth keeping memory for (see `recycle`)."""
    fuses: ClassVar[bool] = False
    """Whether `add_hebbian` adds the product of two-dimensional activities in place."""
    rows: ClassVar[bool] = False
    """Whether signals are rows times the feedback (of each copy), delta B, so that ridge regression can solve for it."""
    copies: int = 1
    """How many networks lie side by side in the channels (see `replicate`)."""
    connectivity: Connectivity | None = None
    """Fractions of the connections that exist, or None where all do; `weight_mask` and `feedback_mask` say which."""
    plain: ClassVar[type[nn.Module]]
    unit_dim: ClassVar[int] = -1
    """Dimension of inputs and outputs that counts units (channels); all but it and the batch share the weights."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not vars(cls).keys().isdisjoint(("hebbian", "respond")) and "add_hebbian" not in vars(cls):
            cls.fuses = False  # What the parent adds is another product.

    @property
    def feedback(self) -> Tensor | None:
        """Feedback weights as the next backward will use them.

        Shape: the weight's for layer-wise rules, [outputs, *input features] for direct rules; None where never used.
        """
        return self.plasticity.weight(self) if self.sends_back else None

    @feedback.setter
    def feedback(self, value: Tensor) -> None:
        current = self.feedback
        if current is None:
            raise ValueError(f"synapse '{self.label}' has no feedback weights to set: no teaching signal leaves it")
        if not isinstance(value, Tensor):
            raise TypeError(f"feedback of '{self.label}' must be a tensor, got {value!r}")
        if value.shape != current.shape:
            raise ValueError(f"feedback of '{self.label}' has shape {list(current.shape)}, got {list(value.shape)}")
        mask = self._buffers.get("feedback_mask")
        self.plasticity.store(self, value if mask is None else value.detach().to(mask.device) * mask)

    def __setattr__(self, name: str, value: Any) -> None:
        # nn.Module would register a Parameter under this name instead of handing it to the property.
        if name == "feedback":
            Synapse.feedback.__set__(self, value)
        else:
            super().__setattr__(name, value)

    def forward(self, input: Tensor, *args: Any) -> Tensor:
        """What the plain layer computes; a graph built here carries the rule."""
        if not torch.is_grad_enabled():
            if self.pathway.wired or self.wiring.current is not None:
                self.wiring.enter_without_graph(self, input)
            return self.infer(input, *args)
        own = self._parameters  # Read directly: nn.Module's attribute access is slow enough to show on small layers.
        weight, bias = own.get("weight"), own.get("bias")
        if weight is None or (bias is None and "bias" not in own):
            self._refuse_computed()
        x, feedback = self.pathway.enter(self, input)
        x, geometry = self.prepare(x, *args)
        return apply(SynapseFunction)(x, weight, bias, feedback, self, geometry)  # type: ignore[return-value]

    def _refuse_computed(self) -> None:
        for name in ("weight", "bias"):
            if name not in self._parameters and isinstance(getattr(self, name, None), Tensor):
                raise RuntimeError(
                    f"the {name} of '{self.label}' is a parameter no longer: pruning, weight normalization or another "
                    "parametrization that was put on it after attach computes it anew for every forward pass, where no rule can "
                    "learn; take that off again (for sparse weights, attach with connectivity=...)"
                )

    def infer(self, input: Tensor, *args: Any) -> Tensor:
        """The plain layer's forward pass, where no graph is built."""
        return super().forward(input, *args)

    def prepare(self, x: Tensor, *args: Any) -> tuple[Tensor, Geometry]:
        """Input as `transmit` takes it, and the call's geometry. Differentiable, and free of weights."""
        return x, ()

    def transmit(self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry = ()) -> Tensor:
        """The bilinear map of the layer: y = x W^T + b in the sense of its kind."""
        raise NotImplementedError

    def conduct(self, x: Tensor, geometry: Geometry = (), *, bias: bool = True) -> Tensor:
        """What the synapse makes of x, without a graph: `transmit` with its own weights."""
        own = self._parameters.get("bias") if bias else None
        return self.transmit(x, self.weight.to(x.dtype), None if own is None else own.to(x.dtype), geometry)

    def unbordered(self, features: torch.Size, positions: int | None = None) -> tuple[torch.Size, Geometry]:
        """Features of an input like one of `features`, and a geometry, with which every weight meets equally many values.

        positions: at most as many places that share the weights, where there are several.
        """
        return features, ()

    def pairs(self, x: Tensor, y: Tensor) -> int:
        """How many pairs of activities `hebbian` sums for every weight, without borders."""
        return y.numel() // y.shape[self.unit_dim]

    def feed_back(self, delta: Tensor, feedback: Tensor, shape: torch.Size, geometry: Geometry = ()) -> Tensor:
        """Teaching signal at the synapse's input (of `shape`): delta B in the sense of its kind."""
        raise NotImplementedError

    def hebbian(self, x: Tensor, delta: Tensor, geometry: Geometry = ()) -> Tensor:
        """Sum over the batch (and positions) of delta^T x, shaped like the weight."""
        raise NotImplementedError

    def add_hebbian(self, target: Tensor, x: Tensor, delta: Tensor, beta: float, alpha: float) -> None:
        """Make `target` beta times itself plus alpha times `hebbian` of two-dimensional activities."""
        raise NotImplementedError

    def respond(
        self,
        x: Tensor | None,
        delta: Tensor,
        feedback: Tensor | None,
        shape: torch.Size,
        geometry: Geometry,
        need_weight: bool,
        need_bias: bool,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """One backward step: (signal at the input, hebbian product, bias sum), each None where not needed.

        A kind overrides this where one kernel does all three.
        """
        signal = None if feedback is None else self.feed_back(delta, feedback, shape, geometry)
        product = self.hebbian(x, delta, geometry) if need_weight and x is not None else None
        bias = None
        if need_bias:
            bias = delta.sum(0) if delta.dim() == 2 else delta.reshape(-1, delta.shape[-1]).sum(0)
        return signal, product, bias

    def thin(self, product: Tensor | None, own: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Updates of the weights and of trainable feedback, each with nothing where its connection doesn't exist."""
        forth, back = self._buffers.get("weight_mask"), self._buffers.get("feedback_mask")
        if own is not None and back is not None:
            own = torch.mul(own, back, out=self.memory("increment", own) if self.large else None)
        elif own is product and own is not None and forth is not None:
            own = own.clone()
        if product is not None and forth is not None:
            product = product.mul_(forth)
        return product, own

    def memory(self, use: str, like: Tensor) -> Tensor | None:
        """Memory to write a large result of a backward pass to, or None to let PyTorch find some."""
        return self.wiring.memory.take(f"{self.label}:{use}", like)

    def fans(self) -> tuple[int, int]:
        """(fan in, fan out) of the weights, kernel positions included."""
        outward, inward, *kernel = self.weight.shape
        return inward * math.prod(kernel), outward // self.copies * math.prod(kernel)

    def extra_repr(self) -> str:
        """The plain layer's description, with how its feedback is carried and learned."""
        thinned = "" if self.connectivity is None else f", {self.connectivity}"
        return f"{super().extra_repr()}, pathway={self.pathway.name}, plasticity={self.plasticity.name}{thinned}"

    def _load_from_state_dict(
        self,
        state_dict: dict,
        prefix: str,
        local_metadata: dict,
        strict: bool,
        missing_keys: list,
        unexpected_keys: list,
        errors: list,
    ) -> None:
        """A plain model's state carries no feedback and no masks; taking it leaves this synapse's own as they are."""
        own = (
            self.plasticity.names
            if self.connectivity is None
            else (
                *self.plasticity.names,
                *(name for name in MASKS if name in self._buffers),
            )
        )
        dropped = {prefix + name for name in own if prefix + name in state_dict and _stored(self, name) is None}
        kept = {key: value for key, value in state_dict.items() if key not in dropped} if dropped else state_dict
        missing: list[str] = []
        for name in MASKS if self.connectivity is not None else ():
            mask, given = self._buffers.get(name), state_dict.get(prefix + name)
            if mask is not None and given is not None and given.shape == mask.shape:
                # First, because feedback that is assigned is thinned at once.
                self._buffers[name] = given.to(mask, copy=True)
        super()._load_from_state_dict(kept, prefix, local_metadata, strict, missing, unexpected_keys, errors)
        missing_keys += [key for key in missing if key.removeprefix(prefix) not in own]
        if self.connectivity is not None:
            if (mask := self._buffers.get("weight_mask")) is not None:
                with torch.no_grad():
                    self.weight.mul_(mask)
            self.plasticity.thin(self)


def _stored(module: nn.Module, name: str) -> Tensor | None:
    tensor = module._parameters.get(name)
    return module._buffers.get(name) if tensor is None else tensor

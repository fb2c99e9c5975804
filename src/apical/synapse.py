"""The synapse: the bilinear part of a layer, with forward weights W and feedback weights B.

Three operations define a kind of synapse, and every rule is written in them (reference 1.0, batches of rows):

- ``transmit(x, W, b)``: the layer itself, y = x W^T + b;
- ``feed_back(delta, B)``: the teaching signal at the layer's input, delta B;
- ``hebbian(x, delta)``: the product of activities before and after the synapse, delta^T x, shaped like W.

To add a kind, subclass `Synapse` together with the plain module, give it these three, and call `register_synapse`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from apical.product import affine, product

if TYPE_CHECKING:
    from apical.pathway import Pathway
    from apical.plasticity import Plasticity
    from apical.wiring import Wiring

Geometry = tuple[Any, ...]
"""What one call of a layer fixes besides its weights, e.g. a convolution's stride and padding."""


class _Learn(torch.autograd.Function):
    """Forward: transmit. Backward: feed_back for the input, hebbian for the weights and for Hebbian feedback."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        feedback: Tensor | None,
        synapse: Synapse,
        geometry: Geometry,
    ) -> Tensor:
        if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
            # Cast by hand: autocast's own cache would keep casts that were made without a graph.
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        need_x, need_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if need_weight else None, feedback if need_x else None)
        current = synapse.wiring.current
        ctx.call = current.call(synapse.label) if current is not None and synapse.plasticity.listens else None
        local = synapse.wiring.local
        ctx.local = local.expect(synapse) if local is not None and need_weight else None
        ctx.synapse, ctx.geometry, ctx.shape = synapse, geometry, x.shape
        return synapse.transmit(x, weight if synapse.clean_weight is None else synapse.clean_weight, bias, geometry)

    # Not `once_differentiable`: its wrapper takes as long as a small layer's product.
    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "create_graph=True asks for the gradient of an update, but a rule's update is no gradient of a loss; "
                "detach the learner for second derivatives"
            )
        x, feedback = ctx.saved_tensors
        need_x, need_weight, need_bias, need_feedback = ctx.needs_input_grad[:4]
        synapse: Synapse = ctx.synapse
        gain = 1.0
        if need_x and feedback is not None:
            plasticity = synapse.plasticity
            if plasticity.computes:
                memory = synapse.memory("feedback", feedback) if synapse.large else None
                feedback, gain = plasticity.resolve(synapse, feedback, memory), plasticity.gain(synapse)
            if feedback.dtype != delta.dtype:
                feedback = feedback.to(delta.dtype)
        local = ctx.local
        # A product that can be added to the weights in place is not made here.
        makes = need_weight and (local is None or not (synapse.fuses and delta.dim() == 2))
        signal, product, bias = synapse.respond(
            x, delta, feedback if need_x else None, ctx.shape, ctx.geometry, makes, need_bias
        )
        if gain != 1 and signal is not None:
            signal = signal.mul_(gain)
        if local is not None:
            # After the signal, which belongs to the weights as they were.
            bias = local.take(synapse, x, delta, product, bias, need_feedback)
            product = None
        if ctx.call is not None:
            # Aliases, so that counts of who holds the memory tell of anybody else.
            ctx.call.hear(delta, None if signal is None else signal.detach(), ctx.geometry)
        # Feedback follows the weights: it stands still where they are frozen.
        own = synapse.plasticity.increment(product) if need_feedback and need_weight else None
        if (
            own is not None
            and own is product
            and synapse.large
            and (memory := synapse.memory("increment", own)) is not None
        ):
            # Autograd would copy a gradient that two parameters share; into fresh memory, at that.
            own = memory.copy_(own)
        return signal, product, bias, own, None, None


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
    copies: int = 1
    """How many networks lie side by side in the channels (see `replicate`)."""
    clean_weight: Tensor | None = None
    """While `apical.audit` has poisoned `weight`, the values that only `transmit` may read."""
    plain: ClassVar[type[nn.Module]]
    unit_dim: ClassVar[int] = -1
    """Dimension of inputs and outputs that counts units (channels); all but it and the batch share the weights."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "hebbian" in vars(cls) and "add_hebbian" not in vars(cls):
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
        self.plasticity.store(self, value)

    def __setattr__(self, name: str, value: Any) -> None:
        # nn.Module would register a Parameter under this name instead of handing it to the property.
        if name == "feedback":
            Synapse.feedback.__set__(self, value)
        else:
            super().__setattr__(name, value)

    def forward(self, input: Tensor, *args: Any) -> Tensor:
        """What the plain layer computes; a graph built here carries the rule."""
        if not torch.is_grad_enabled():
            if self.pathway.wired:
                self.wiring.refuse_without_graph(self.label, input)
            if self.clean_weight is not None:
                return self.conduct(*self.prepare(input, *args))
            return self.infer(input, *args)
        x, feedback = self.pathway.enter(self, input)
        x, geometry = self.prepare(x, *args)
        own = self._parameters  # Read directly: nn.Module's attribute access is slow enough to show on small layers.
        return _Learn.apply(x, own["weight"], own["bias"], feedback, self, geometry)  # type: ignore[return-value]

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
        weight = self._parameters["weight"] if self.clean_weight is None else self.clean_weight
        own = self._parameters["bias"] if bias else None
        return self.transmit(x, weight.to(x.dtype), None if own is None else own.to(x.dtype), geometry)  # type: ignore[union-attr]

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
        bias = delta.reshape(-1, delta.shape[-1]).sum(0) if need_bias else None
        return signal, product, bias

    def memory(self, use: str, like: Tensor) -> Tensor | None:
        """Memory to write a large result of a backward pass to, or None to let PyTorch find some."""
        return self.wiring.memory.take(f"{self.label}:{use}", like)

    def fans(self) -> tuple[int, int]:
        """(fan in, fan out) of the weights, kernel positions included."""
        outward, inward, *kernel = self.weight.shape
        return inward * math.prod(kernel), outward // self.copies * math.prod(kernel)

    def extra_repr(self) -> str:
        """The plain layer's description, with how its feedback is carried and learned."""
        return f"{super().extra_repr()}, pathway={self.pathway.name}, plasticity={self.plasticity.name}"

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
        """A plain model's state carries no feedback; taking it leaves this synapse's feedback as it is."""
        own = self.plasticity.names
        dropped = {prefix + name for name in own if prefix + name in state_dict and _stored(self, name) is None}
        kept = {key: value for key, value in state_dict.items() if key not in dropped} if dropped else state_dict
        missing: list[str] = []
        super()._load_from_state_dict(kept, prefix, local_metadata, strict, missing, unexpected_keys, errors)
        missing_keys += [key for key in missing if key.removeprefix(prefix) not in own]


def _stored(module: nn.Module, name: str) -> Tensor | None:
    tensor = module._parameters.get(name)
    return module._buffers.get(name) if tensor is None else tensor


def _at_most(extents: Sequence[int], positions: int | None) -> list[int]:
    """Extents of a smaller map of the same proportions with at most so many positions."""
    if positions is None or math.prod(extents) <= positions:
        return list(extents)
    share = (positions / math.prod(extents)) ** (1 / len(extents))
    return [max(1, int(extent * share)) for extent in extents]


class LinearSynapse(Synapse, nn.Linear):
    """`nn.Linear` with any leading dimensions: x [*, in], y [*, out], W and B [out, in]."""

    plain = nn.Linear
    fuses = True

    def infer(self, input: Tensor, *args: Any) -> Tensor:  # noqa: D102
        # To the last bit what a pass with a graph gives: node perturbation compares the two.
        return self.transmit(input, self.weight, self.bias)

    def transmit(self, x: Float[Tensor, "*n i"], weight, bias, geometry=()) -> Float[Tensor, "*n o"]:  # noqa: D102
        return affine(x, weight, bias)

    def feed_back(self, delta: Float[Tensor, "*n o"], feedback, shape, geometry=()) -> Float[Tensor, "*n i"]:  # noqa: D102
        return product(delta, feedback) if delta.dim() == 2 else torch.matmul(delta, feedback)

    def add_hebbian(self, target, x, delta, beta, alpha):  # noqa: D102
        target.addmm_(delta.t(), x, beta=beta, alpha=alpha)

    def hebbian(self, x: Float[Tensor, "*n i"], delta: Float[Tensor, "*n o"], geometry=()) -> Float[Tensor, "o i"]:  # noqa: D102
        if x.dim() != 2:
            x, delta = x.reshape(-1, x.shape[-1]), delta.reshape(-1, delta.shape[-1])
        if not self.large:
            return product(delta.t(), x)
        return torch.mm(delta.t(), x, out=self.memory("product", self.weight) if x.dtype == self.weight.dtype else None)


class _ConvolutionSynapse(Synapse):
    """All convolutions: one call of ATen's backward, with B where backpropagation puts W, does all three products."""

    spatial: ClassVar[int]
    unit_dim = 1
    padding: str | tuple[int, ...]
    padding_mode: str
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    _reversed_padding_repeated_twice: list[int]

    def forward(self, input: Tensor, *args: Any) -> Tensor:
        if input.dim() == self.spatial + 1 and torch.is_grad_enabled():
            return super().forward(input.unsqueeze(0), *args).squeeze(0)
        return super().forward(input, *args)

    def prepare(self, x: Tensor, *args: Any) -> tuple[Tensor, Geometry]:
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode), (0,) * self.spatial
        elif padding == "valid":
            padding = (0,) * self.spatial
        elif padding == "same":
            total = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            if any(t % 2 for t in total):
                x = F.pad(x, self._reversed_padding_repeated_twice)
                total = [0] * self.spatial
            padding = tuple(t // 2 for t in total)
        return x, (self.stride, padding, self.dilation, False, (0,) * self.spatial, self.groups)

    def unbordered(self, features: torch.Size, positions: int | None = None) -> tuple[torch.Size, Geometry]:
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        extents = _at_most(self._positions(features, spans), positions)
        zeros = (0,) * self.spatial
        geometry = (self.stride, zeros, self.dilation, False, zeros, self.groups)
        inputs = [(n - 1) * s + span for n, s, span in zip(extents, self.stride, spans, strict=True)]
        return torch.Size([features[0], *inputs]), geometry

    def _positions(self, features: torch.Size, spans: list[int]) -> list[int]:
        """Output positions for an input of `features`."""
        padding = self.padding
        if padding == "same":
            padding = [(span - 1) / 2 for span in spans]
        elif padding == "valid":
            padding = [0] * self.spatial
        sizes = zip(features[1:], padding, spans, self.stride, strict=True)
        return [int(n + 2 * p - span) // s + 1 for n, p, span, s in sizes]  # type: ignore[operator]

    def transmit(self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry = ()) -> Tensor:
        if not geometry:
            x, geometry = self.prepare(x)
        return torch.convolution(x, weight, bias, *geometry)

    def feed_back(self, delta: Tensor, feedback: Tensor, shape: torch.Size, geometry: Geometry = ()) -> Tensor:
        if not geometry:
            # `shape` is that of the layer's own input: go back through its padding as well.
            with torch.enable_grad():
                x = delta.new_zeros(shape).requires_grad_()
                padded, geometry = self.prepare(x)
            signal = self.feed_back(delta, feedback, padded.shape, geometry)
            return torch.autograd.grad(padded, x, signal)[0] if padded is not x else signal
        signal, _, _ = self.respond(None, delta, feedback, shape, geometry, False, False)
        assert signal is not None
        return signal

    def hebbian(self, x: Tensor, delta: Tensor, geometry: Geometry = ()) -> Tensor:
        if not geometry:
            x, geometry = self.prepare(x)
        _, product, _ = self.respond(x, delta, None, x.shape, geometry, True, False)
        assert product is not None
        return product

    def respond(self, x, delta, feedback, shape, geometry, need_weight, need_bias):
        if not (need_weight or need_bias or feedback is not None):
            return None, None, None
        # Only shapes are read where a product is masked out, so an empty tensor stands in for x or B.
        if x is None:
            x = delta.new_empty(shape)
        absent = feedback is None
        if absent:
            feedback = torch.empty_like(self.weight, dtype=delta.dtype)
        signal, product, bias = torch.ops.aten.convolution_backward(
            delta, x, feedback, [delta.shape[1]], *geometry, [not absent, need_weight, need_bias]
        )
        return (None if absent else signal), (product if need_weight else None), (bias if need_bias else None)


class Conv1dSynapse(_ConvolutionSynapse, nn.Conv1d):
    """`nn.Conv1d`: x [N, in, L], W and B [out, in / groups, k]."""

    plain, spatial = nn.Conv1d, 1


class Conv2dSynapse(_ConvolutionSynapse, nn.Conv2d):
    """`nn.Conv2d`: x [N, in, H, W], W and B [out, in / groups, kh, kw]."""

    plain, spatial = nn.Conv2d, 2


class Conv3dSynapse(_ConvolutionSynapse, nn.Conv3d):
    """`nn.Conv3d`: x [N, in, D, H, W], W and B [out, in / groups, kd, kh, kw]."""

    plain, spatial = nn.Conv3d, 3


class _ConvolutionTransposeSynapse(_ConvolutionSynapse):
    _output_padding: Callable[..., list[int]]

    def prepare(self, x: Tensor, *args: Any) -> tuple[Tensor, Geometry]:
        output_size = args[0] if args else None
        output_padding = self._output_padding(
            x, output_size, self.stride, self.padding, self.kernel_size, self.spatial, self.dilation
        )
        return x, (self.stride, self.padding, self.dilation, True, tuple(output_padding), self.groups)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size is None:
            return super().forward(input)
        # With or without the channels in front, as the plain layer takes it.
        return super().forward(input, output_size[-self.spatial :] if torch.is_grad_enabled() else output_size)

    def fans(self) -> tuple[int, int]:
        inward, outward = super().fans()
        return outward, inward

    def unbordered(self, features: torch.Size, positions: int | None = None) -> tuple[torch.Size, Geometry]:
        # Nothing is cut off the output, so every input position meets the whole kernel.
        extents = _at_most(features[1:], positions)
        zeros = (0,) * self.spatial
        return torch.Size([features[0], *extents]), (self.stride, zeros, self.dilation, True, zeros, self.groups)

    def pairs(self, x: Tensor, y: Tensor) -> int:
        return x.numel() // x.shape[self.unit_dim]


class ConvTranspose1dSynapse(_ConvolutionTransposeSynapse, nn.ConvTranspose1d):
    """`nn.ConvTranspose1d`: x [N, in, L], W and B [in, out / groups, k]."""

    plain, spatial = nn.ConvTranspose1d, 1


class ConvTranspose2dSynapse(_ConvolutionTransposeSynapse, nn.ConvTranspose2d):
    """`nn.ConvTranspose2d`: x [N, in, H, W], W and B [in, out / groups, kh, kw]."""

    plain, spatial = nn.ConvTranspose2d, 2


class ConvTranspose3dSynapse(_ConvolutionTransposeSynapse, nn.ConvTranspose3d):
    """`nn.ConvTranspose3d`: x [N, in, D, H, W], W and B [in, out / groups, kd, kh, kw]."""

    plain, spatial = nn.ConvTranspose3d, 3

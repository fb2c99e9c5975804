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
from typing_extensions import override

from apical.step_hooks.masks import like
from apical.synapses import native
from apical.synapses.function import SynapseFunction, apply
from apical.synapses.storage import (
    MASKS,
    Keeper,
    check_feedback,
    check_mask,
    form_of,
    kept,
    refuse_computed,
    retire,
    sharding,
    weight_of,
)
from apical.synapses.ties import feedback_is_shared
from apical.synapses.transformed import transforming

if TYPE_CHECKING:
    from apical.pathways.base import Pathway
    from apical.pathways.subspace import Subspace
    from apical.plasticity.base import Plasticity
    from apical.synapses.circuit import Circuit, Connection, WholePass

_AS_PLAIN = "make a plain model for it: apical.learner_of(copy.deepcopy(model)).detach()"

Geometry = tuple[Any, ...]
"""What one call of a layer fixes besides its weights, e.g. a convolution's stride and padding."""


class Synapse(Keeper):
    """A layer whose backward pass reads `feedback` instead of its weights.

    `apical.attach` makes it by swapping the class of a plain layer in place; parameters keep identity and name.

    Attributes:
        weight, bias: the plain layer's. pathway: how its teaching signal arrives. plasticity: how its feedback comes to be.
        connection: the plasticity's answers for this synapse. circuit: what all synapses of a learner share.
        whole_pass: the passes of the whole model that its signal depends on; None where its own error is enough.
        label: name of the module. copies: networks side by side in it (see `apical.replicate`). large: whether memory is reused.
        sends_back: False where no teaching signal ever leaves the synapse, because its input is data.
        subspace: the few directions through which its error is seen from below (see `apical.LayerWise`); None: all.
        derived: whether its input is made in the model, so that nobody else can ask for a gradient of a leaf there.
        sparse: whether some connections don't exist; the buffers `weight_mask` and `feedback_mask` say which.
        sentinel: whether it looks, in every pass that learns, if the model was changed after `attach`.

    >>> import apical, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    >>> synapse = apical.attach(net, "fa").synapses["2"]
    >>> synapse.feedback.shape == synapse.weight.shape
    True
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    pathway: Pathway
    plasticity: Plasticity
    connection: Connection
    circuit: Circuit
    label: str
    whole_pass: WholePass | None = None
    subspace: Subspace | None = None
    sends_back: bool = True
    derived: bool = False
    large: bool = False
    sparse: bool = False
    sentinel: bool = False
    native: Any = None
    """What the compiled node has to know (see `apical.synapses.native`); False where it can't do what this synapse does."""
    copies: int = 1
    plain: ClassVar[type[nn.Module]]
    fuses: ClassVar[bool] = False
    """Whether `add_hebbian` adds the product of two-dimensional activities in place."""
    kernel: ClassVar[str | None] = None
    """"linear" or "convolution", for the compiled node; None: not for that."""
    rows: ClassVar[bool] = False
    """Whether each sample's signal is one row times B, as in linear layers, so that ridge regression can find B."""
    computed: ClassVar[bool] = False
    """Whether the layer computes its weights anew in every pass."""
    inward_first: ClassVar[bool] = False
    """Whether weights are stored [in, out], unlike `nn.Linear`'s."""
    unit_dim: ClassVar[int | None] = -1
    """Dimension that counts units (channels), the others sharing the weights; None: each activity has weights of its own."""
    output_dim: ClassVar[int | None] = None
    """Dimension of the weights that counts outputs (of a group), if `respond` takes errors with fewer of them; else None."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "kernel" not in vars(cls) and not vars(cls).keys().isdisjoint(native.OPERATIONS):
            cls.kernel = None
        if "output_dim" not in vars(cls) and not vars(cls).keys().isdisjoint(("feed_back", "respond")):
            cls.output_dim = None
        if not vars(cls).keys().isdisjoint(("hebbian", "respond")) and "add_hebbian" not in vars(cls):
            cls.fuses = False  # What the parent adds is another product.

    @property
    def weight_now(self) -> Tensor:
        """The weights as they are, or as the newest pass computed them."""
        return weight_of(self)  # type: ignore[return-value]

    @property
    def projection(self) -> Tensor | None:
        """P [groups r, out / groups] of its `subspace`, with orthonormal rows for each group."""
        return kept(self, "projection")

    @property
    def feedback(self) -> Tensor | None:
        """Feedback weights of the next backward pass: shaped as the weights, or direct [outputs, *features] or less, or None."""
        found, form = self.plasticity.keeps(self) if self.sends_back else None, form_of(self)
        if found is None or self.connection.resolve is None:
            return found if found is None or form is None else form.weights(found, self.weight_now.dtype)
        found, gain = self.resolved(found, reuse=False), self.connection.gain
        return found if gain == 1 else found * gain

    @feedback.setter
    def feedback(self, value: Tensor) -> None:
        check_feedback(self.label, value, self.feedback)
        assign = self.connection.assign
        if assign is None:
            raise ValueError(
                f"feedback of plasticity '{self.plasticity.name}' is computed from the weights; it can't be set"
            )
        mask = self._buffers.get("feedback_mask")
        assign(self, value if mask is None else value.detach().to(mask.device) * like(mask, value))

    def __setattr__(self, name: str, value: Any) -> None:
        # nn.Module would register a Parameter under this name instead of handing it to the property.
        if name == "feedback":
            if sharding(self, name, value):
                self._parameters[name] = value
            else:
                Synapse.feedback.__set__(self, value)
            return
        if name == "qconfig":  # By which torch.ao.quantization marks every module, before it replaces the plain layers.
            raise RuntimeError(f"quantization does not know '{self.label}', a synapse; {_AS_PLAIN}")
        if name in MASKS:
            check_mask(self, name, value)
        sharded = name == "weight" and sharding(self, name, value)
        super().__setattr__(name, value)
        if name in native.TOLD:
            native.tell(self, name, value)
        if name == "plasticity":
            self.connection = value.connection(self)
        elif name == "weight" and "circuit" in vars(self):
            self.circuit.settle(self, sharded)

    def __prepare_scriptable__(self) -> Synapse:  # Of which torch.jit.script asks what is to be compiled in its place.
        raise RuntimeError(
            f"torch.jit.script can't compile '{self.label}', a synapse, whose rule is Python; {_AS_PLAIN}"
        )

    def silence(self, *, copied: bool = False) -> None:
        """Use no feedback, unless another synapse does: no signal ever leaves this one (see `retire`)."""
        if not feedback_is_shared(self, self.circuit.synapses):
            self.sends_back = False
            retire(self, copied=copied)

    def forward(self, input: Tensor, *args: Any) -> Tensor:
        """The plain layer's output; a graph built here carries the rule."""
        thinned = self.disconnect() if self.sparse else None
        if not torch.is_grad_enabled():
            if self.whole_pass is not None:
                self.whole_pass.call_without_graph(self, input)
            if self.circuit.record is not None:
                self.circuit.record.call_without_graph(self, input)
            if thinned is not None:
                return self.conduct(*self.prepare(input, *args), weight=thinned)
            return self.infer(input, *args)
        circuit, compiling = self.circuit, torch.compiler.is_compiling()
        if self.sentinel and (circuit.suspected or not compiling):
            circuit.look()
        own = self._parameters  # Read directly: nn.Module's attribute access is slow enough to show on small layers.
        weight, bias = own.get("weight"), own.get("bias")
        if circuit.busy and not circuit.mine:
            circuit.refuse("a pass with gradients came to", self.label)
        if weight is None or (bias is None and "bias" not in own):
            refuse_computed(self)
        x, feedback = self.pathway.enter(self, input)
        weight = weight if thinned is None else thinned
        x, geometry = self.prepare(x, *args)
        if not compiling and self.native is not False:
            y = native.call(self, x, weight, bias, feedback, geometry)  # type: ignore[arg-type]
            if y is not None:
                return y
        return apply(SynapseFunction, True)(x, weight, bias, feedback, self, geometry)  # type: ignore[return-value]

    def infer(self, input: Tensor, *args: Any) -> Tensor:
        """The plain layer's forward pass, where no graph is built."""
        return super().forward(input, *args)

    def prepare(self, x: Tensor, *args: Any) -> tuple[Tensor, Geometry]:
        """The input as `transmit` takes it, and the call's geometry. Differentiable, and free of weights."""
        return x, ()

    def transmit(self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry = ()) -> Tensor:
        """The layer's output: y = x W^T + b in the sense of its kind."""
        raise NotImplementedError

    def conduct(self, x: Tensor, geometry: Geometry = (), *, bias: bool = True, weight: Tensor | None = None) -> Tensor:
        """The synapse's answer to x, without a graph: `transmit` with its own weights, or those given."""
        own, weight = self._parameters.get("bias") if bias else None, self.weight_now if weight is None else weight
        return self.transmit(x, weight.to(x.dtype), None if own is None else own.to(x.dtype), geometry)

    def unbordered(self, features: torch.Size, positions: int | None = None) -> tuple[torch.Size, Geometry]:
        """Shape of a noise input for the weight mirror, and the call's geometry without padding, by which corners see less.

        features: shape of the layer's usual input, without the batch. positions: at most so many places that share weights.
        """
        return features, ()

    def pairs(self, x: Tensor, y: Tensor) -> int:
        """The number of pairs of activities that `hebbian` sums for every weight, without borders."""
        return len(y) if self.unit_dim is None else y.numel() // y.shape[self.unit_dim]

    def feed_back(self, delta: Tensor, feedback: Tensor, shape: torch.Size, geometry: Geometry = ()) -> Tensor:
        """The teaching signal at the synapse's input (of `shape`): delta B in the sense of its kind."""
        raise NotImplementedError

    def hebbian(self, x: Tensor, delta: Tensor, geometry: Geometry = ()) -> Tensor:
        """The sum over the batch (and positions) of delta^T x, shaped like the weight."""
        raise NotImplementedError

    def add_hebbian(self, target: Tensor, x: Tensor, delta: Tensor, beta: float, alpha: float) -> None:
        """Make `target` beta times itself plus alpha times `hebbian` of two-dimensional activities, in place."""
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
        """One backward step: (signal at the input, Hebbian product, bias sum), each None where not needed."""
        signal = None if feedback is None else self.feed_back(delta, feedback, shape, geometry)
        product = self.hebbian(x, delta, geometry) if need_weight and x is not None else None
        bias = None
        if need_bias:
            bias = delta.sum(0) if delta.dim() == 2 else delta.reshape(-1, delta.shape[-1]).sum(0)
        return signal, product, bias

    def resolved(self, found: Tensor, *, reuse: bool = True) -> Tensor:
        """The feedback weights computed from what a forward pass kept, without connections that don't exist."""
        resolve = self.connection.resolve
        assert resolve is not None
        out, mask = self.memory("feedback", found) if reuse else None, self._buffers.get("feedback_mask")
        feedback = resolve(self, found, out)
        return feedback if mask is None else torch.mul(feedback, mask, out=out)

    def thin(self, product: Tensor | None, own: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Updates of the weights and of trainable feedback, each zero where its connection doesn't exist."""
        forth, back = self._buffers.get("weight_mask"), self._buffers.get("feedback_mask")
        if own is not None and back is not None:
            own = torch.mul(own, back, out=self.memory("increment", own))
        elif own is product and own is not None and forth is not None:
            own = own.clone()
        if product is not None and forth is not None:
            product = product.mul_(forth)
        return product, own

    def memory(self, use: str, like: Tensor) -> Tensor | None:
        """Memory to write a large result of a backward pass to, or None to let PyTorch find some."""
        small = not self.large or transforming()
        return None if small else self.circuit.memory.take(f"{self.label}:{use}", like)

    def fans(self) -> tuple[int, int]:
        """(fan in, fan out) of the weights, kernel positions included."""
        outward, inward, *kernel = self.weight_now.shape
        return inward * math.prod(kernel), outward // self.copies * math.prod(kernel)

    @override
    def extra_repr(self) -> str:
        """The plain layer's description, with how its feedback is carried and learned."""
        rule = f"pathway={self.pathway.name}, plasticity={self.plasticity.name}"
        return f"{super().extra_repr()}, {rule}{', sparse' if self.sparse else ''}"

"""Weights as an audit has them: poisoned for all but the forward pass, filled in where zero, untied where shared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from apical.composites import lent
from apical.learner import Learner
from apical.measures.conduction import Conducted, repeated
from apical.measures.replay import own_parameters
from apical.synapses.kinds.computed import ComputedWeight
from apical.synapses.registry import NORMALIZATIONS
from apical.synapses.synapse import Geometry, Synapse

Values = Literal["nan", "scrambled", "flipped", "clean"]
"""NaN; or magnitudes scrambled, with their signs kept; or the signs of about half of them flipped; or no poison at all."""


NEXT_TO_ZERO = 1e-4
"""Largest value up to which a parameter is filled in. Layer scales start from 1e-6 to 1e-4; weights lie far above."""


@dataclass
class Poison:
    """Wrong values in place of one module's weights, for whoever reads them besides its own forward product.

    Attributes:
        learner: whose module it is.
        module: the module; of a synapse only the weight is poisoned, of others all parameters (and running variances).
        after_forward: whether the forward pass is over when the poison is applied, so that it need not be spared.
        values: what readers see.
        spare_scale: whether a normalization's own scale stays as it is.
        spare: parameters that stay as they are, because no forward pass reads them.
        clean: while applied after the forward pass, what is poisoned, each with its own values.
    """

    learner: Learner
    module: nn.Module
    after_forward: bool = False
    values: Values = "nan"
    spare_scale: bool = False
    spare: frozenset[nn.Parameter] = frozenset()
    clean: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @contextmanager
    def applied(self, conducted: Conducted | None = None) -> Iterator[None]:
        """While open, readers see wrong values.

        Args:
            conducted: what a synapse's own products are made of, where that is not the weight that it holds.
        """
        if isinstance(self.module, Synapse) and self.module.computed:
            with self._at_products(self.module):
                yield
            return
        tensors = self._tensors()
        kept = [tensor.detach().clone() for tensor in tensors]
        weight = self.module._parameters.get("weight")
        sharing = [
            s
            for s in self.learner.synapses.values()
            if not s.computed and s.weight is weight and not self.after_forward
        ]

        # Through .data, in the same storage: neither aliases nor autograd's saved tensors may tell.
        def put(*_: Any) -> None:
            for tensor, value in zip(tensors, kept, strict=True):
                tensor.data.copy_(self._poisoned(value))

        def put_next(coming: Callable[[], Tensor]) -> Callable[..., None]:
            def hook(*_: Any) -> None:
                tensors[0].data.copy_(self._poisoned(coming()))

            return hook

        with ExitStack() as stack:
            for synapse in sharing:
                coming = stack.enter_context(repeated(synapse, kept[0], conducted or {}))
                # Again after hooks, which may write weights anew that they keep elsewhere.
                stack.callback(synapse.register_forward_pre_hook(put_next(coming)).remove)
            if self.after_forward:
                self.clean = list(zip(tensors, kept, strict=True))
            else:
                stack.callback(self.learner.model.register_forward_hook(put, always_call=True).remove)
            try:
                put()
                yield
            finally:
                for tensor, value in zip(tensors, kept, strict=True):
                    tensor.data.copy_(value)
                self.clean = []

    @contextmanager
    def _at_products(self, synapse: Synapse) -> Iterator[None]:
        """While open, weights that every pass computes anew are poisoned for all but the product that they are computed for."""
        assert isinstance(synapse, ComputedWeight)
        note, transmit, clean = synapse.note, synapse.transmit, {}

        def note_poisoned(weight: Tensor) -> None:
            clean[weight.data_ptr()] = weight.detach().clone()
            weight.data.copy_(self._poisoned(weight.detach()))
            note(weight)

        def transmit_clean(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry = ()) -> Tensor:
            return transmit(x, clean.get(weight.data_ptr(), weight), bias, geometry)

        vars(synapse).update(note=note_poisoned, transmit=transmit_clean)
        try:
            yield
        finally:
            del vars(synapse)["note"], vars(synapse)["transmit"]

    def _tensors(self) -> list[Tensor]:
        if isinstance(self.module, Synapse):
            return [self.module.weight]
        parameters = own_parameters(self.learner, self.module).values()
        own: list[Tensor] = [p for p in parameters if p.is_floating_point() and p not in self.spare]
        if not isinstance(self.module, NORMALIZATIONS):
            return own
        weight, variance = self.module._parameters.get("weight"), self.module._buffers.get("running_var")
        if self.spare_scale:
            return [p for p in own if p is not weight]
        return own if variance is None else [*own, variance]

    def _poisoned(self, value: Tensor) -> Tensor:
        if self.values == "clean":
            return value
        if self.values == "nan":
            return torch.full_like(value, float("nan"))
        generator = torch.Generator().manual_seed(0)
        if self.values == "scrambled":
            factor = torch.empty(value.shape).log_normal_(0.0, 1.0, generator=generator)
        else:
            factor = torch.randint(2, value.shape, generator=generator) * 2 - 1
        return value * factor.to(value.device, value.dtype)


@contextmanager
def clean_passes(model: nn.Module, poisons: list[Poison]) -> Iterator[None]:
    """While open, what is poisoned has its own values during each forward pass of the model, and the poison between."""
    pairs = [pair for poison in poisons for pair in poison.clean]
    poisoned: list[list[Tensor]] = []

    def begin(module: nn.Module, args: Any) -> None:
        poisoned.append([tensor.detach().clone() for tensor, _ in pairs])
        for tensor, value in pairs:
            tensor.data.copy_(value)

    def end(module: nn.Module, args: Any, output: Any) -> None:
        for (tensor, _), value in zip(pairs, poisoned.pop(), strict=True):
            tensor.data.copy_(value)

    # First and last, so that the user's own hooks of the model belong to the pass.
    handles = [
        model.register_forward_pre_hook(begin, prepend=True),
        model.register_forward_hook(end, always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def zeros_filled(model: nn.Module) -> Iterator[None]:
    """While open, parameters that are zero throughout, or next to it, have small random values.

    Zeros carry nothing, whoever reads them, so a transport of them would not show; nor would one by way of a layer scale that
    starts from a millionth.
    """
    generator = torch.Generator().manual_seed(0)
    kept = [(p, p.detach().clone()) for p in model.parameters() if _next_to_zero(p)]
    for parameter, _ in kept:
        inputs = parameter[0].numel() if parameter.dim() else 1
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1 / inputs**0.5)
    try:
        yield
    finally:
        for parameter, value in kept:
            parameter.data.copy_(value)


def _next_to_zero(parameter: Tensor) -> bool:
    if not parameter.is_floating_point() or not parameter.numel():
        return False
    return bool(parameter.detach().abs().max() <= NEXT_TO_ZERO)


@contextmanager
def untied(model: nn.Module) -> Iterator[None]:
    """While open, modules that share a synapse's weights without being one hold equal ones of their own (an embedding).

    A synapse's forward product is made of clean values; another layer's forward pass would meet the poison.
    """
    synapses = {id(m.weight) for m in model.modules() if isinstance(m, Synapse) and not m.computed}
    shared = [
        (module, name, parameter)
        for module in model.modules()
        if not isinstance(module, Synapse)
        for name, parameter in module._parameters.items()
        if parameter is not None and id(parameter) in synapses and name not in lent(module)
    ]
    copies = {id(p): nn.Parameter(p.detach().clone(), requires_grad=p.requires_grad) for _, _, p in shared}
    try:
        for module, name, parameter in shared:
            module._parameters[name] = copies[id(parameter)]
        yield
    finally:
        for module, name, parameter in shared:
            module._parameters[name] = parameter

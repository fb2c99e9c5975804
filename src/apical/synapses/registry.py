"""Which layers are synapses, and which hold parameters that no teaching signal has to cross as weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn.utils import parametrize

from apical.synapses.kinds import convolution, transposed
from apical.synapses.kinds.computed import computed_kind
from apical.synapses.kinds.linear import LinearSynapse
from apical.synapses.kinds.locally_connected import LocallyConnected2dSynapse
from apical.synapses.synapse import Synapse

SYNAPSES: dict[type[nn.Module], type[Synapse] | None] = {
    kind.plain: kind
    for kind in (
        LinearSynapse,
        convolution.Conv1dSynapse,
        convolution.Conv2dSynapse,
        convolution.Conv3dSynapse,
        convolution.ConvTranspose1dSynapse,
        convolution.ConvTranspose2dSynapse,
        convolution.ConvTranspose3dSynapse,
        LocallyConnected2dSynapse,
    )
}


ELSEWHERE: dict[tuple[str, str], Callable[[type[nn.Module]], type[Synapse]]] = {
    ("transformers.pytorch_utils", "Conv1D"): transposed.conv1d_of_transformers,
    **{
        (f"timm.layers.{module}", name): partial(computed_kind, convolution.Conv2dSynapse)
        for module, names in {
            "std_conv": ("StdConv2d", "StdConv2dSame", "ScaledStdConv2d", "ScaledStdConv2dSame"),
            "conv2d_same": ("Conv2dSame",),
        }.items()
        for name in names
    },
    ("timm.layers.linear", "Linear"): lambda kind: LinearSynapse,  # Casts by hand where TorchScript would not.
    # Convolutions of fixed kernel size.
    ("torchvision.models.video.resnet", "Conv3DSimple"): lambda kind: convolution.Conv3dSynapse,
    ("torchvision.models.video.resnet", "Conv3DNoTemporal"): lambda kind: convolution.Conv3dSynapse,
}
"""Layers of other libraries, by module and name, and what makes their kind when one is met."""


NORMALIZATIONS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


# Learned elementwise, or looked up: autograd crosses them without any synaptic matrix. What it does read, audit reports.
ELEMENTWISE: tuple[type[nn.Module], ...] = (*NORMALIZATIONS, nn.PReLU, nn.Embedding, nn.EmbeddingBag)


def register_synapse(module_type: type[nn.Module], synapse_type: type[Synapse] | None) -> None:
    """Teach `attach` what to do with layers of exactly `module_type`.

    Args:
        module_type: the plain layer's class.
        synapse_type: a `Synapse` subclass that also subclasses `module_type`, so that attach can swap the class in
            place; or a known kind such as `LinearSynapse` for a subclass of `nn.Linear` that computes the same map;
            or None, which says that the layer's own parameters (not its children's) are no synapses: autograd
            teaches them as it would without apical, and `audit` reports whatever they carry back.

    Raises:
        TypeError: if `synapse_type` can't stand in for `module_type`.

    >>> import apical, torch
    >>> class Readout(torch.nn.Linear):
    ...     pass
    >>> apical.register_synapse(Readout, apical.LinearSynapse)
    >>> list(apical.attach(torch.nn.Sequential(Readout(4, 3)), "fa").synapses)
    ['0']
    """
    if not (isinstance(module_type, type) and issubclass(module_type, nn.Module)):
        raise TypeError(f"module_type must be a subclass of nn.Module, got {module_type!r}")
    if synapse_type is not None:
        if not (isinstance(synapse_type, type) and issubclass(synapse_type, Synapse)):
            raise TypeError(f"synapse_type must be a subclass of apical.Synapse or None, got {synapse_type!r}")
        if not any(
            issubclass(base, module_type) or issubclass(module_type, base) for base in _plain_bases(synapse_type)
        ):
            raise TypeError(
                f"{synapse_type.__name__} can't stand in for {module_type.__name__}: "
                f"derive it from (Synapse, {module_type.__name__})"
            )
    SYNAPSES[module_type] = synapse_type


def _plain_bases(synapse_type: type[Synapse]) -> list[type]:
    return [base for base in synapse_type.__mro__ if not issubclass(base, Synapse) and base not in (nn.Module, object)]


def added(module: nn.Module) -> list[str]:
    """Names of the parameters that an elementwise layer's subclass has beyond its scale and bias."""
    return [key for key, p in module._parameters.items() if p is not None and key not in ("weight", "bias")]


def meet(model: nn.Module) -> None:
    """Register the kinds for layers of other libraries that `model` has."""
    for kind in {type(module) for module in model.modules()} - SYNAPSES.keys():
        make = ELSEWHERE.get((kind.__module__, kind.__qualname__))
        if make is not None:
            SYNAPSES[kind] = make(kind)


def synapse_type(module: nn.Module) -> type[Synapse] | None:
    """The synapse that stands in for exactly this layer, or None."""
    layer = type(module)
    if parametrize.is_parametrized(module):
        layer = parametrize.type_before_parametrizations(module)
    kind = SYNAPSES.get(layer)
    if kind is None or not computed_names(module):
        return kind
    # What a computed weight is used in has to be a product that PyTorch knows.
    return None if issubclass(kind, LocallyConnected2dSynapse) else computed_kind(kind, type(module))


def computed_names(module: nn.Module) -> list[str]:
    """Names of the weights and biases that PyTorch computes for this layer from other values, in every pass."""
    if parametrize.is_parametrized(module):
        return [name for name, _ in module.get_submodule("parametrizations").named_children()]
    # What hooks of the older functions compute stands beside what they store under such names.
    stored = {**module._parameters, **module._buffers}
    return [
        key
        for key, value in vars(module).items()
        if isinstance(value, Tensor)
        and not stored.keys().isdisjoint(f"{key}{suffix}" for suffix in ("_g", "_u", "_mask"))
    ]

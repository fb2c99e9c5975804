"""Which layers are synapses, and which hold parameters that no teaching signal has to cross as weights."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from apical import convolution
from apical.synapse import LinearSynapse, Synapse

_SYNAPSES: dict[type[nn.Module], type[Synapse] | None] = {
    kind.plain: kind
    for kind in (
        LinearSynapse,
        convolution.Conv1dSynapse,
        convolution.Conv2dSynapse,
        convolution.Conv3dSynapse,
        convolution.ConvTranspose1dSynapse,
        convolution.ConvTranspose2dSynapse,
        convolution.ConvTranspose3dSynapse,
    )
}

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
    _SYNAPSES[module_type] = synapse_type


def _plain_bases(synapse_type: type[Synapse]) -> list[type]:
    return [base for base in synapse_type.__mro__ if not issubclass(base, Synapse) and base not in (nn.Module, object)]


def added(module: nn.Module) -> list[str]:
    """Names of the parameters that an elementwise layer's subclass has beyond its scale and bias."""
    return [key for key, p in module._parameters.items() if p is not None and key not in ("weight", "bias")]


def faults(model: nn.Module) -> list[str]:
    """Every layer of `model` whose weights no known synapse covers, each as a sentence with the way out."""
    found: list[str] = []
    reported: list[str] = []
    for name, module in model.named_modules():
        fault = None if name.startswith(tuple(reported)) else _fault(module)
        if fault is not None:
            found.append(f"{name or '(the model itself)'}: {fault}")
            # What computes a parametrized weight is part of the same fault.
            reported.append(f"{name}.parametrizations.".lstrip("."))
    return found


def _fault(module: nn.Module) -> str | None:
    kind = type(module)
    own = [key for key, parameter in module._parameters.items() if parameter is not None]
    if any(module._parameters[key].is_complex() for key in own):  # type: ignore[union-attr]
        return "complex weights are not supported; use pairs of real ones"
    if kind in _SYNAPSES:
        if _SYNAPSES[kind] is None:
            return None
    elif not own and not parametrize.is_parametrized(module):
        return None
    if issubclass(kind, LazyModuleMixin):
        return f"{kind.__name__} has no shape yet; run one forward pass before attach"
    if computed := _computed(module):
        return (
            f"{kind.__name__} computes {', '.join(computed)} anew for every forward pass, from values that no synapse covers; "
            f"call {' and '.join(computed.values())} first"
        )
    if kind in _SYNAPSES:
        for key in ("weight", "bias"):
            if key not in own and (key == "weight" or isinstance(getattr(module, key, None), Tensor)):
                return f"{kind.__name__} has its {key} as no parameter; make it an nn.Parameter"
        return None
    if isinstance(module, ELEMENTWISE):
        own = added(module)
    return _unknown(module, own) if own else None


def _computed(module: nn.Module) -> dict[str, str]:
    """Name -> the call that makes it a parameter again, for every weight that PyTorch computes from other values."""
    if parametrize.is_parametrized(module):
        names = list(module.parametrizations)  # type: ignore[arg-type]
        return {key: f"torch.nn.utils.parametrize.remove_parametrizations(layer, '{key}')" for key in names}
    # What hooks of the older functions compute stands beside what they store under such names.
    calls = {"_g": "remove_weight_norm", "_u": "remove_spectral_norm", "_mask": "prune.remove"}
    stored = {**module._parameters, **module._buffers}
    return {
        key: f"torch.nn.utils.{call}(layer, '{key}')"
        for key, value in vars(module).items()
        for suffix, call in calls.items()
        if isinstance(value, Tensor) and f"{key}{suffix}" in stored
    }


def _unknown(module: nn.Module, own: list[str]) -> str:
    kind = type(module)
    known = next((base for base in kind.__mro__[1:] if _SYNAPSES.get(base) is not None), None)
    if known is not None:
        return (
            f"{kind.__name__} subclasses {known.__name__} and may compute something else; if it does not, call "
            f"apical.register_synapse({kind.__name__}, apical.{_SYNAPSES[known].__name__}), "  # type: ignore[union-attr]
            f"else register a Synapse of its own"
        )
    if isinstance(module, nn.MultiheadAttention):
        return (
            f"{kind.__name__} holds its projections as raw weights; write the attention with nn.Linear projections and "
            "torch.nn.functional.scaled_dot_product_attention"
        )
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return f"{kind.__name__} holds its weights in one fused kernel; write the cell with nn.Linear layers"
    return (
        f"{kind.__name__} holds {', '.join(own)}, which no synapse covers; move weights into nn.Linear or nn.Conv layers, "
        f"register a Synapse with apical.register_synapse({kind.__name__}, ...), or, for parameters that are no weights "
        f"(a bias, a scale, a token), apical.register_synapse({kind.__name__}, None)"
    )


def synapse_type(module: nn.Module) -> type[Synapse] | None:
    """The synapse that stands in for exactly this layer, or None."""
    return _SYNAPSES.get(type(module))

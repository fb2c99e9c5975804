"""Layers that hold several copies side by side: channels copy after copy, each connected to its own copy alone."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from apical.noise import shaped
from apical.per_copy import mark
from apical.synapses.locally_connected import LocallyConnected2d
from apical.synapses.registry import register_synapse
from apical.synapses.synapse import Synapse


class ReplicatedLinear(nn.Module):
    """n copies of `nn.Linear` side by side: x [*, n in] -> [*, n out], weight [n out, in], bias [n out].

    One matrix product for each copy, in one batch, where a full layer of that width would take n times as many. Made by `widen`,
    which swaps the class of an `nn.Linear`.

    >>> import copy, torch
    >>> layer = nn.Linear(4, 2)
    >>> wide = copy.deepcopy(layer)
    >>> widen(wide, 3)
    >>> x = torch.randn(8, 4)
    >>> torch.allclose(wide(x.repeat(1, 3)), layer(x).repeat(1, 3), atol=1e-6)
    True
    """

    in_features: int
    out_features: int
    copies: int
    weight: nn.Parameter
    bias: nn.Parameter | None

    def forward(self, x: Float[Tensor, "*n copies_in"]) -> Float[Tensor, "*n copies_out"]:
        """Every copy's y = x W^T + b."""
        return _transmit(x, self.weight, self.bias, self.copies)

    def extra_repr(self) -> str:
        """Arguments of `nn.Linear`, and how many copies."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, copies={self.copies}, "
            f"bias={self.bias is not None}"
        )


def _upright(x: Tensor, copies: int) -> Float[Tensor, "copies features rows"]:
    """The rows of x [*, n F] as columns, copy by copy: a view that batched matrix products take as it is."""
    return x.reshape(-1, copies, x.shape[-1] // copies).permute(1, 2, 0)


def _level(y: Float[Tensor, "copies features rows"], leading: torch.Size) -> Tensor:
    """Rows [*, n F] of columns that `_upright` could have given. A view too: the next layer wants them upright again."""
    rows = y.flatten(0, 1).t()
    return rows if len(leading) == 1 else rows.reshape(*leading, -1)


def _transmit(x: Tensor, weight: Tensor, bias: Tensor | None, copies: int) -> Tensor:
    W = weight.view(copies, -1, weight.shape[1])
    columns = _upright(x, copies)
    y = torch.bmm(W, columns) if bias is None else torch.baddbmm(bias.view(copies, -1, 1), W, columns)
    return _level(y, x.shape[:-1])


class ReplicatedLinearSynapse(Synapse, ReplicatedLinear):
    """Synapse of a `ReplicatedLinear`: x [*, n in], W and B [n out, in], every operation copy by copy."""

    plain = ReplicatedLinear
    fuses = True
    rows = True
    output_dim = 0

    @override
    def transmit(self, x, weight, bias, geometry=()):
        return _transmit(x, weight, bias, self.copies)

    @override
    def feed_back(self, delta, feedback, shape, geometry=()):
        B = feedback.view(self.copies, -1, feedback.shape[1])
        return _level(torch.bmm(B.transpose(1, 2), _upright(delta, self.copies)), delta.shape[:-1])

    @override
    def hebbian(self, x, delta, geometry=()):
        return torch.bmm(_upright(delta, self.copies), _upright(x, self.copies).transpose(1, 2)).flatten(0, 1)

    @override
    def add_hebbian(self, target, x, delta, beta, alpha):
        own = target.view(self.copies, -1, target.shape[1])
        own.baddbmm_(_upright(delta, self.copies), _upright(x, self.copies).transpose(1, 2), beta=beta, alpha=alpha)


register_synapse(ReplicatedLinear, ReplicatedLinearSynapse)


_SIDE_BY_SIDE = (nn.modules.batchnorm._BatchNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, LocallyConnected2d,
)  # fmt: skip
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_ACROSS = (
    nn.Softmax, nn.LogSoftmax, nn.Softmax2d, nn.Softmin, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm, nn.GLU,
    nn.CrossMapLRN2d, nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle, nn.Unflatten, nn.SyncBatchNorm,
)  # fmt: skip


def faults(model: nn.Module) -> list[str]:
    """One sentence for every layer of `model` that can't hold copies side by side, with the way out."""
    found = []
    for name, module in model.named_modules():
        label = f"{name or '(the model itself)'}: {type(module).__name__}"
        if any(getattr(module, hooks) for hooks in _HOOKS):
            found.append(
                f"{label} has hooks, which would see the channels of all copies as one; remove them and register on "
                "replicas.model what is meant for all, or train copies one by one"
            )
        own = [key for key, tensor in (*module._parameters.items(), *module._buffers.items()) if tensor is not None]
        if isinstance(module, _ACROSS):
            found.append(
                f"{label} mixes channels, in which the copies lie; leave it to the loss, or train copies one by one"
            )
        elif (
            own
            and type(module) not in (nn.Linear, *_CONVOLUTIONS)
            and not isinstance(module, (*_SIDE_BY_SIDE, nn.GroupNorm))
        ):
            found.append(f"{label} holds {', '.join(own)} that can't be put side by side; train copies one by one")
    return found


def views(model: nn.Module) -> list[str]:
    """One sentence for every parameter of `model` that shares another's memory, which a copy of the model would not do."""
    found = []
    memory: dict[tuple[torch.device, int], str] = {}
    for name, parameter in model.named_parameters():
        place = parameter.device, parameter.data_ptr()
        other = memory.setdefault(place, name) if place[1] else name
        if other != name:
            found.append(
                f"{name} lies in the memory of {other}, and copies of the two would part; give both modules one "
                "nn.Parameter, or train copies one by one"
            )
    return found


def widen(model: nn.Module, n: int) -> None:
    """Widen `model` in place to n copies of itself. Modules and tensors that it holds more than once stay one."""
    for module in model.modules():
        if type(module) is nn.Linear:
            _replicate(module, n)
        elif isinstance(module, _CONVOLUTIONS):
            module.in_channels, module.out_channels = n * module.in_channels, n * module.out_channels
            module.groups = n * module.groups
            vars(module)["copies"] = n
        elif isinstance(module, nn.GroupNorm):
            module.num_groups, module.num_channels = n * module.num_groups, n * module.num_channels
        elif isinstance(module, _SIDE_BY_SIDE):
            module.num_features = n * module.num_features
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dim():
            repeated = tensor.detach().repeat(n, *[1] * (tensor.dim() - 1))
            # In the memory format of one, by which copies draw their noise in the order in which one alone does.
            tensor.data = shaped(torch.empty_like(repeated).view(-1), repeated.shape, tensor).copy_(repeated)
    mark(model, n)


def _replicate(layer: Any, n: int) -> None:
    vars(layer)["copies"] = n
    layer.__class__ = ReplicatedLinear

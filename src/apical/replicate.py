"""Many independent copies of a network in one pass: copies lie side by side in the channels of every layer.

With n copies, a layer of F features becomes one of n F, copy after copy, whose weights connect each copy to itself alone: grouped
convolutions for convolutions, `ReplicatedLinear` for `nn.Linear`. Activations, pooling, dropout, normalization per channel,
flattening and residual sums then treat every copy as they treat a network of its own, and rules need nothing new.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from apical.learner import Learner, attach, attached
from apical.outputs import over_tensors, tensors
from apical.probe import run
from apical.registry import register_synapse
from apical.synapse import Synapse

Models = nn.Module | Callable[[], nn.Module] | Sequence[nn.Module]


class ReplicatedLinear(nn.Module):
    """n copies of `nn.Linear` side by side: x [*, n in] -> [*, n out], weight [n out, in], bias [n out]."""

    def __init__(self, in_features: int, out_features: int, copies: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features, self.copies = in_features, out_features, copies
        self.weight = nn.Parameter(torch.empty(copies * out_features, in_features))
        self.bias: nn.Parameter | None
        self.register_parameter("bias", nn.Parameter(torch.empty(copies * out_features)) if bias else None)

    def forward(self, x: Float[Tensor, "*n copies_in"]) -> Float[Tensor, "*n copies_out"]:
        """Every copy's y = x W^T + b."""
        return _transmit(x, self.weight, self.bias, self.copies)

    def extra_repr(self) -> str:
        """As `nn.Linear` puts it."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, copies={self.copies}, "
            f"bias={self.bias is not None}"
        )


def _upright(x: Tensor, copies: int) -> Float[Tensor, "copies features rows"]:
    """Rows of all copies as columns, copy by copy; a view."""
    return x.reshape(-1, copies, x.shape[-1] // copies).permute(1, 2, 0)


def _level(y: Float[Tensor, "copies features rows"], leading: torch.Size) -> Tensor:
    """What `_upright` came from. Columns stay in place: the next layer wants them upright again."""
    rows = y.flatten(0, 1).t()
    return rows if len(leading) == 1 else rows.reshape(*leading, -1)


def _transmit(x: Tensor, weight: Tensor, bias: Tensor | None, copies: int) -> Tensor:
    W = weight.view(copies, -1, weight.shape[1])
    columns = _upright(x, copies)
    y = torch.bmm(W, columns) if bias is None else torch.baddbmm(bias.view(copies, -1, 1), W, columns)
    return _level(y, x.shape[:-1])


class ReplicatedLinearSynapse(Synapse, ReplicatedLinear):
    """`ReplicatedLinear`: x [*, n in], W and B [n out, in]."""

    plain = ReplicatedLinear
    fuses = True
    rows = True

    def transmit(self, x, weight, bias, geometry=()):  # noqa: D102
        return _transmit(x, weight, bias, self.copies)

    def feed_back(self, delta, feedback, shape, geometry=()):  # noqa: D102
        B = feedback.view(self.copies, -1, feedback.shape[1])
        return _level(torch.bmm(B.transpose(1, 2), _upright(delta, self.copies)), delta.shape[:-1])

    def hebbian(self, x, delta, geometry=()):  # noqa: D102
        return torch.bmm(_upright(delta, self.copies), _upright(x, self.copies).transpose(1, 2)).flatten(0, 1)

    def add_hebbian(self, target, x, delta, beta, alpha):  # noqa: D102
        own = target.view(self.copies, -1, target.shape[1])
        own.baddbmm_(_upright(delta, self.copies), _upright(x, self.copies).transpose(1, 2), beta=beta, alpha=alpha)


register_synapse(ReplicatedLinear, ReplicatedLinearSynapse)

_SIDE_BY_SIDE = (nn.modules.batchnorm._BatchNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_ACROSS = (
    nn.Softmax, nn.LogSoftmax, nn.Softmax2d, nn.Softmin, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm, nn.GLU,
    nn.CrossMapLRN2d, nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle, nn.Unflatten, nn.SyncBatchNorm,
)  # fmt: skip


class Replicas(nn.Module):
    """n copies of a network that are computed together and have nothing in common.

    Made by `replicate`. Call it with the copies' batches, x [n, N, *]; it returns what the copies return, [n, N, *].

    Attributes:
        model: the network that holds all copies, with the names of the single one.
        copies: n.
    """

    def __init__(self, model: nn.Module, copies: int, single: nn.Module) -> None:
        super().__init__()
        self.model, self.copies = model, copies
        vars(self)["_single"] = (single,)  # Not a module of ours: it has no parameters to train.
        vars(self)["_example"] = None
        vars(self)["_folded"] = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Every copy's output for its own batch: x [n, N, *] -> [n, N, *], for every tensor given and returned."""
        result = self.model(*self.fold(args), **self.fold(kwargs))
        return over_tensors(result, self._apart)

    def fold(self, inputs: Any) -> Any:
        """Batches [n, N, *] as `model` takes them: [N, n C, *]; for a tensor, or every tensor of a sequence or dict."""
        return over_tensors(inputs, self._together)

    def _together(self, x: Tensor) -> Tensor:
        if x.dim() < 3 or x.shape[0] != self.copies:
            raise ValueError(
                f"input must be [copies, N, features, ...] with {self.copies} copies first, got shape {list(x.shape)}; "
                f"x.expand({self.copies}, *x.shape) shows one batch to all"
            )
        kept = vars(self)["_folded"]
        if kept is not None and kept[0] is x and kept[1] == x._version:
            return kept[2]
        folded = x.transpose(0, 1).flatten(1, 2)
        # `Learner.adapt` knows the batch of the pass before by its identity.
        vars(self)["_folded"] = None if x.requires_grad or x.is_inference() else (x, x._version, folded)
        return folded

    def _apart(self, y: Tensor) -> Tensor:
        if y.dim() < 2 or y.shape[1] % self.copies:
            raise ValueError(
                f"the output has shape {list(y.shape)}, in which {self.copies} copies do not lie side by side; replicas need "
                "a network that returns [N, outputs, ...]"
            )
        return y.unflatten(1, (self.copies, -1)).transpose(0, 1)

    def split(self) -> list[nn.Module]:
        """The copies as networks of their own, with weights, statistics and, where attached, rule and feedback."""
        (single,) = vars(self)["_single"]
        models = [copy.deepcopy(single) for _ in range(self.copies)]
        learner = attached(self)
        if learner is not None:
            example = vars(self)["_example"]
            shown = None if example is None else over_tensors(example, lambda x: x[0])
            for model in models:
                attach(model, dict(learner.rules), example_input=shown, output=learner._wiring.output)
        for index, model in enumerate(models):
            state = {name: self._share(name, tensor, index) for name, tensor in self.model.state_dict().items()}
            model.load_state_dict(state)
            model.train(self.training)
        return models

    def _share(self, name: str, tensor: Tensor, index: int) -> Tensor:
        if tensor.dim() == 0:
            return tensor
        return tensor.chunk(self.copies, _dimension(self.model, name))[index]


def _dimension(model: nn.Module, name: str) -> int:
    """In which dimension of an entry of the state dict copies lie: direct feedback is [outputs, n features], the rest [n *]."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    return int(leaf == "feedback" and not (isinstance(owner, Synapse) and not owner.pathway.wired))


def replicate(models: Models, n: int | None = None, *, example_input: Any = None) -> Replicas:
    """Several copies of a network, trained in one pass, each with weights and feedback of its own.

    What each copy computes and learns is what it would on its own, to rounding. Rules that draw noise while they train draw
    it for all copies from one generator, so there copies are alike in distribution. Rules that compare losses ("np", "sg")
    call the criterion with the samples of all copies as one batch, [n N, *].

    Args:
        models: a network, of which n copies with equal weights are made; a function without arguments that returns one, called
            n times; or networks of one structure. Networks that are attached bring their rule and feedback with them.
        n: how many copies; may be left out for a sequence.
        example_input: one batch [N, *] as the single network takes it. Copies are then compared with the networks they were
            made of, and direct rules that come attached need it.

    Returns:
        The `Replicas`; call `apical.attach` on it as on any network. A loss for all copies is
        ``criterion(outputs.flatten(0, 1), y.flatten()).view(n, -1).mean(1).sum()``; times a factor per copy before the sum, it
        gives copies learning rates of their own (under SGD without weight decay).

    Raises:
        ValueError: networks of different structure or rules, a layer that mixes channels, or copies that do not compute what
            the single networks do.
    """
    made = _models(models, n)
    n = len(made)
    learners = [learner for learner in map(attached, made) if learner is not None]
    if learners and len(learners) < n:
        raise ValueError("some of the networks are attached and some are not; attach all or none")
    plain = [copy.deepcopy(learner).detach() for learner in learners] or made
    faults = _faults(plain[0])
    if faults:
        raise ValueError("replicas can't hold this network:\n" + "\n".join(f"- {fault}" for fault in faults))
    _check_alike(plain, learners)
    together = copy.deepcopy(plain[0])
    for name, module in list(together.named_modules()):
        replaced = _side_by_side(module, n)
        if replaced is not module:
            if not name:
                together = replaced
            else:
                parent, _, leaf = name.rpartition(".")
                setattr(together.get_submodule(parent), leaf, replaced)
    vars(together)["copies"] = n
    _fill(together, plain)
    replicas = Replicas(together, n, copy.deepcopy(plain[0]))
    replicas.train(plain[0].training)
    if example_input is not None:
        _compare(replicas, plain, example_input)
    if learners:
        shown = None if example_input is None else over_tensors(example_input, lambda x: x.expand(n, *x.shape))
        attach(replicas, dict(learners[0].rules), example_input=shown, output=learners[0]._wiring.output)
        _fill(together, made)
    return replicas


def _models(models: Models, n: int | None) -> list[nn.Module]:
    if isinstance(models, nn.Module) or callable(models):
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"n must be how many copies to make, at least 1, got {n!r}")
        made = [models] * n if isinstance(models, nn.Module) else [models() for _ in range(n)]
    else:
        made = list(models)
        if n is not None and n != len(made):
            raise ValueError(f"n is {n}, but {len(made)} networks were given; leave n out")
    if not made or not all(isinstance(model, nn.Module) for model in made):
        raise TypeError(f"models must be a network, a function that returns one, or networks; got {models!r}")
    return made


def _faults(model: nn.Module) -> list[str]:
    found = []
    for name, module in model.named_modules():
        label = f"{name or '(the model itself)'}: {type(module).__name__}"
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


def _check_alike(models: Sequence[nn.Module], learners: Sequence[Learner]) -> None:
    first = models[0]
    for number, model in enumerate(models[1:], 2):
        mine, its = first.state_dict(), model.state_dict()
        if str(first) != str(model) or mine.keys() != its.keys() or any(mine[k].shape != its[k].shape for k in mine):
            raise ValueError(
                f"network {number} is built otherwise than the first; replicas are copies of one structure"
            )
    for number, learner in enumerate(learners[1:], 2):
        if learner.rules != learners[0].rules:
            raise ValueError(f"network {number} is attached to other rules than the first; replicas have one")


def _side_by_side(module: nn.Module, n: int) -> nn.Module:
    """`module` with room for n copies; tensors are filled in later."""
    if type(module) is nn.Linear:
        weight = module.weight
        made = ReplicatedLinear(module.in_features, module.out_features, n, module.bias is not None)
        made.to(device=weight.device, dtype=weight.dtype).train(module.training)
        for mine, its in zip(made.parameters(), module.parameters(), strict=True):
            mine.requires_grad_(its.requires_grad)
        return made
    if type(module) in _CONVOLUTIONS:
        assert isinstance(module, _CONVOLUTIONS)
        module.in_channels, module.out_channels = n * module.in_channels, n * module.out_channels
        module.groups = n * module.groups
        vars(module)["copies"] = n
    elif isinstance(module, nn.GroupNorm):
        module.num_groups, module.num_channels = n * module.num_groups, n * module.num_channels
    elif isinstance(module, _SIDE_BY_SIDE):
        module.num_features = n * module.num_features  # type: ignore[operator]
    for own in (module._parameters, module._buffers):
        for name, tensor in own.items():
            if tensor is not None and tensor.dim():
                room = tensor.detach().repeat(n, *[1] * (tensor.dim() - 1))
                own[name] = nn.Parameter(room, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else room  # type: ignore[assignment]
    return module


@torch.no_grad()
def _fill(together: nn.Module, models: Sequence[nn.Module]) -> None:
    states = [model.state_dict() for model in models]
    for name, tensor in together.state_dict().items():
        if name not in states[0]:
            raise ValueError(
                f"the networks given have no '{name}'; give example_input as in the call that attached them"
            )
        shares = [state[name] for state in states]
        tensor.copy_(shares[0] if tensor.dim() == 0 else torch.cat(shares, _dimension(together, name)))


def _compare(replicas: Replicas, models: Sequence[nn.Module], example: Any) -> None:
    """Raise a ValueError unless copies compute what the single networks do."""
    n = replicas.copies
    modes = [(module, module.training) for model in (replicas, *models) for module in model.modules()]
    try:
        with torch.no_grad():
            ours = tensors(run(replicas.eval(), over_tensors(example, lambda x: x.expand(n, *x.shape))))
            for index, model in enumerate(models):
                for mine, its in zip(ours, tensors(run(model.eval(), example)), strict=True):
                    if mine[index].shape != its.shape or not torch.allclose(mine[index], its, rtol=1e-3, atol=1e-5):
                        raise ValueError(
                            "the copies do not compute what the network computes alone: its forward mixes channels outside "
                            "its layers (a mean or softmax over dimension 1, a fixed view); train copies one by one"
                        )
    finally:
        for module, mode in modes:
            module.training = mode

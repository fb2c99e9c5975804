"""From tied to untied: convolutions of a trained network become locally connected layers, and its learner goes on (amit2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from apical.checks import nearest
from apical.nested import input_of, run
from apical.phases.isolation import preserved
from apical.synapses.kinds.convolution import Conv2dSynapse
from apical.synapses.locally_connected import LocallyConnected2d
from apical.synapses.storage import MASKS, kept, names_kept

if TYPE_CHECKING:
    from apical.learner import Learner


def untie(learner: Learner, layers: Sequence[str], example_input: Any) -> None:
    """Let convolutions of a learner's model share no weights between positions any more, from their values of now on.

    Each becomes a `LocallyConnected2d` whose every position has a copy of W, of the bias, of layer-wise feedback B (or of what
    it is computed from) and of their masks; direct feedback, which lies at the layer's input, stays. So the network computes,
    and its signals are, what they were; from the next step on positions learn by themselves. The learner keeps its rule,
    generator and all other feedback. The weights are new parameters: make the optimizer anew.

    Args:
        learner: of a model of which nothing is compiled. layers: names of modules, each an `nn.Conv2d`.
        example_input: a batch as the model takes it, which shows the sizes that the layers meet.

    Raises:
        ValueError: for a name that is no convolution, or one that the example does not reach, or meets in several sizes; or if
            the learner can't take the new layers. Nothing is changed then.

    >>> import apical, torch
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(32, 10))
    >>> x = torch.randn(5, 3, 8, 8)
    >>> learner, before = apical.attach(net, "urfb", example_input=x), net(x)
    >>> untie(learner, ["0", "2"], x)
    >>> torch.allclose(net(x), before, atol=1e-5), learner.synapses["2"].feedback.shape
    (True, torch.Size([2, 4, 4, 4, 3, 3]))
    """
    learner.require_synapses()
    if isinstance(layers, str):
        raise ValueError(f"layers takes a list of module names, got the string {layers!r}; write [{layers!r}]")
    if learner.copies > 1:
        raise ValueError(
            "copies side by side can't be untied; untie each network's learner, and make replicas of those"
        )
    model = learner.model
    tied = {name: _convolution(learner, name) for name in dict.fromkeys(layers)}
    sizes = _sizes(learner, tied, example_input)
    found = {name: _kept(one) for name, one in tied.items()}
    made = {name: LocallyConnected2d.from_convolution(one, sizes[name]) for name, one in tied.items()}
    places = [
        (model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2], name)
        for name, one in tied.items()
        for path, module in model.named_modules(remove_duplicate=False)
        if module is one
    ]
    for parent, leaf, name in places:
        setattr(parent, leaf, made[name])
    try:
        learner.refresh(example_input)
    except Exception:
        for parent, leaf, name in places:
            setattr(parent, leaf, tied[name])
        raise
    for name, layer in made.items():
        _keep(layer, tied[name], found[name])


def _convolution(learner: Learner, name: str) -> Conv2dSynapse:
    synapse = learner.synapses.get(name)
    if synapse is None:
        raise ValueError(f"layers names {name!r}, which is no synapse; {nearest(name, learner.synapses)}")
    if not isinstance(synapse, Conv2dSynapse) or synapse.computed:
        raise ValueError(
            f"layers names {name!r}, a {synapse.plain.__name__}; only an nn.Conv2d that has its weights as parameters can be "
            "untied"
        )
    if synapse is learner.model:
        raise ValueError(
            "the model is itself the convolution, so nothing can take its place; put it into an nn.Sequential"
        )
    return synapse


def _sizes(learner: Learner, tied: dict[str, Conv2dSynapse], example_input: Any) -> dict[str, tuple[int, int]]:
    """(H, W) of the inputs that each layer meets."""
    met: dict[str, set[tuple[int, int]]] = {name: set() for name in tied}

    def see(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            *_, high, wide = input_of(args, kwargs).shape
            met[name].add((high, wide))

        return hook

    handles = [one.register_forward_pre_hook(see(name), with_kwargs=True) for name, one in tied.items()]
    try:
        with preserved(learner.model), learner.phases.unheard(), torch.no_grad():
            run(learner.model, example_input)
    finally:
        for handle in handles:
            handle.remove()
    for name, sizes in met.items():
        if len(sizes) != 1:
            seen = "is not reached by example_input" if not sizes else f"meets inputs of {sorted(sizes)} in one pass"
            raise ValueError(f"'{name}' {seen}, and untied it has weights for one size; leave it tied")
    return {name: sizes.pop() for name, sizes in met.items()}


def _kept(synapse: Conv2dSynapse) -> dict[str, Tensor]:
    """What the synapse holds besides weights, and copies of it: `refresh` empties it."""
    stores = {name: kept(synapse, name) for name in names_kept(synapse)}
    stores |= {name: synapse._buffers.get(name) for name in MASKS}
    return {name: tensor.detach().clone() for name, tensor in stores.items() if tensor is not None}


@torch.no_grad()
def _keep(layer: nn.Module, tied: Conv2dSynapse, found: dict[str, Tensor]) -> None:
    """Give the new synapse what the tied one held, at every position where that is of its weights' shape."""
    assert isinstance(layer, LocallyConnected2d)
    layer.weight.copy_(layer.untied(tied.weight))  # Once more: masks of its own were drawn for it, and are replaced.
    for name, tensor in found.items():
        target = layer._parameters.get(name)
        target = layer._buffers.get(name) if target is None else target
        if target is not None:
            target.copy_(layer.untied(tensor) if tensor.shape == tied.weight.shape else tensor)

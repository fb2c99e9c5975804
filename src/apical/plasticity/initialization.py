"""How feedback weights are drawn: like the weights they mirror, by any `torch.nn.init` function, or as a paper did.

Feedback is always drawn from the learner's own generator, never from the global seed.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from itertools import repeat
from typing import Any, Literal

import torch
from torch import Tensor, nn

from apical.per_copy import PerCopy, Streams
from apical.synapses.locally_connected import LocallyConnected2d
from apical.synapses.storage import form_of, weight_of
from apical.synapses.synapse import Synapse

Init = str | Callable[..., Any]
"""A name in `INITS`, or a function that fills a tensor in place, such as those of `torch.nn.init`."""


Law = tuple[Literal["uniform", "normal"], Callable[[int, int], float]]
"""A distribution around zero, and its scale by (fan in, fan out): the bound of a uniform one, a normal one's deviation."""

_GLOROT: Law = ("uniform", lambda fan_in, fan_out: math.sqrt(6 / (fan_in + fan_out)))

# Fans are those of the weights that the feedback stands for. Direct feedback D [C, n] is read as weights from n units to C.
_LAWS: dict[str, Law] = {
    # fig. 2: U[-0.5, 0.5].
    "lillicrap2016": ("uniform", lambda fan_in, fan_out: 0.5),
    # U(+-1/sqrt(size of the layer that gets the signal)): released code; the paper prints fan_out.
    "nokland2016": ("uniform", lambda fan_in, fan_out: fan_in**-0.5),
    # Released runs (not in the paper): sd sqrt(1/(n_in + n_out)).
    "akrout2019": ("normal", lambda fan_in, fan_out: (fan_in + fan_out) ** -0.5),
    # Glorot and Bengio 2010: U(+-sqrt(6 / (fan in + fan out))). Independent of the weights' own draw.
    "amit2019": _GLOROT,
    "glorot": _GLOROT,
    # Released code, MNIST networks: sd sqrt(2/fan_in). The convolutional network's direct feedback is nokland2016's.
    "lansdell2020": ("normal", lambda fan_in, fan_out: math.sqrt(2 / fan_in)),
}


def _by_law(law: Law) -> Callable[..., Tensor]:
    kind, scale = law
    return lambda tensor, fan_in, fan_out, generator: fill_by(kind, scale(fan_in, fan_out), tensor, generator)


def fill_by(kind: Literal["uniform", "normal"], scale: float, tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Fill a tensor with numbers of a distribution around zero."""
    if kind == "uniform":
        return tensor.uniform_(-scale, scale, generator=generator)
    return tensor.normal_(0.0, scale, generator=generator)


INITS: dict[str, Callable[..., Tensor]] = {name: _by_law(law) for name, law in _LAWS.items()}


def law_of(init: Init) -> Law:
    """The law of direct feedback that is drawn without weights to be like: "weights" is "nokland2016" there.

    Raises:
        ValueError: for what has no law by that name.
    """
    name = "nokland2016" if init == "weights" else init
    if not isinstance(name, str) or name not in _LAWS:
        raise ValueError(
            f"shared and seeded feedback is drawn by init='weights' or one of {', '.join(_LAWS)}, not {init!r}"
        )
    return _LAWS[name]


def draw(
    init: Init,
    shape: torch.Size,
    *,
    fans: tuple[int, int],
    generator: torch.Generator,
    like: Tensor | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """A tensor of feedback weights.

    Args:
        init: "weights" (values drawn with replacement from the entries of `like`, so any distribution of weights
            is matched; without `like`, or where all its entries are equal, as "nokland2016"), another name in
            `INITS`, or a function that fills a tensor in place.
        shape: of the feedback.
        fans: (fan in, fan out) of the weights that the feedback stands for.
        generator: the source of all randomness; draws happen on its device.
        like: the weights that the feedback mirrors.
        device: of the result. dtype: of the result.

    Raises:
        ValueError: for an unknown name, or a function that leaves something not finite.

    >>> import torch
    >>> generator = torch.Generator().manual_seed(0)
    >>> draw("nokland2016", torch.Size([3, 4]), fans=(4, 3), generator=generator).abs().max() <= 0.5
    tensor(True)
    """
    tensor = torch.empty(shape, device=generator.device, dtype=dtype)
    with torch.no_grad():
        if callable(init):
            _fill(init, tensor, generator)
        elif init == "weights" and like is not None and like.numel() and not _all_equal(like):
            _draw_from(like.detach().flatten().to(tensor.device), tensor.view(-1), generator)
        elif init == "weights" or init in INITS:
            INITS["nokland2016" if init == "weights" else init](tensor, *fans, generator)
        else:
            raise ValueError(
                f"unknown feedback init {init!r}; give one of {', '.join(['weights', *INITS])}, or a function of torch.nn.init"
            )
    if not all(map(math.isfinite, _extremes(tensor))):
        raise ValueError(f"feedback init {init!r} left values that are not finite in a tensor of shape {list(shape)}")
    return tensor.to(device)


_AT_ONCE = 2**20
"""Numbers that are drawn at once, which is many times quicker than memory for all of a large layer's indices."""


def _draw_from(values: Tensor, target: Tensor, generator: torch.Generator) -> None:
    """Fill `target` with entries of `values`, drawn with replacement: on a CPU in parts, in which the stream is the same."""
    size = _AT_ONCE if generator.device.type == "cpu" else max(1, len(target))
    for part in target.split(size):
        index = torch.randint(len(values), part.shape, generator=generator, device=generator.device)
        part.copy_(values.index_select(0, index))


def _extremes(tensor: Tensor) -> tuple[float, float]:
    """The smallest and the largest entry; both NaN where an entry is."""
    if not tensor.numel():
        return 0.0, 0.0
    low, high = torch.aminmax(tensor)
    return float(low), float(high)


def _all_equal(tensor: Tensor) -> bool:
    low, high = _extremes(tensor)
    return low == high


def _fill(init: Callable[..., Any], tensor: Tensor, generator: torch.Generator) -> None:
    try:
        takes_generator = "generator" in inspect.signature(init).parameters
    except (TypeError, ValueError):
        takes_generator = False
    if takes_generator:
        init(tensor, generator=generator)
        return
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        init(tensor)


def _at_every_position(init: Callable[..., Any]) -> Callable[..., Any]:
    """`init` for weights [out, oh, ow, *]: functions of torch.nn.init take the fans of one position's, [out, *]."""

    def fill(tensor: Tensor, generator: torch.Generator) -> None:
        for position in tensor.flatten(1, 2).unbind(1):
            one = torch.empty_like(position, memory_format=torch.contiguous_format)
            _fill(init, one, generator)
            position.copy_(one)

    return fill


def draw_for(
    owner: nn.Module, init: Init, shape: torch.Size, generator: torch.Generator, *, mirror: bool = True
) -> Tensor:
    """Feedback weights of `shape` for `owner`, on its weights' device and in their dtype.

    Args:
        owner: a synapse, or a block named in ``at=``. init: see `draw`. shape: of the feedback.
        generator: source of randomness; of copies side by side `Streams`, so that each draws as it would alone.
        mirror: whether "weights" may look at the weights' values; sign rules, which carry no magnitudes, may not.

    Raises:
        ValueError: on the meta device.
    """
    weight = weight_of(owner)
    copies = len(generator.own) if isinstance(generator, Streams) else 1
    dimension = 0 if weight is not None and weight.shape == shape and form_of(owner) is None else 1
    own = torch.Size([*shape[:dimension], shape[dimension] // copies, *shape[dimension + 1 :]])
    form, likes = form_of(owner), repeat(None)
    fans = (math.prod(own[1:]), own[0]) if form is None else form.fans
    alike = weight is not None and own == (weight.shape[0] // copies, *weight.shape[1:]) and form is None
    if isinstance(owner, Synapse) and weight is not None and alike:
        fans = owner.fans()
        likes = weight.chunk(copies) if mirror else likes
    reference = weight if weight is not None else next(owner.parameters(), None)
    if reference is not None and reference.is_meta:
        raise ValueError(
            "the model lies on the meta device, where weights have no values, so feedback can't be drawn for them; give it "
            "values before apical.attach: model.to_empty(device=...), and a state dict or its initialization"
        )
    device = None if reference is None else reference.device
    dtype = None if reference is None else reference.dtype
    inits = init if isinstance(init, PerCopy) else repeat(init)
    if isinstance(owner, LocallyConnected2d) and alike:
        inits = (_at_every_position(one) if callable(one) else one for one in inits)
    sources = generator.own if isinstance(generator, Streams) else (generator,)
    # Functions of torch.nn.init take a matrix for [out, in].
    turned = isinstance(owner, Synapse) and owner.inward_first and weight is not None and own == weight.shape
    drawn = [
        draw(one, own[::-1] if turned else own, fans=fans, generator=source, like=like, device=device, dtype=dtype)
        for like, one, source in zip(likes, inits, sources, strict=False)
    ]
    if turned:
        drawn = [one.t().contiguous() for one in drawn]
    return drawn[0] if copies == 1 else torch.cat(drawn, dimension)

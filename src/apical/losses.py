"""Losses per sample: criterion(outputs, targets) -> [N]. Outputs [N, *, C] are linear; targets are class indices [N, *].

Where outputs have positions (*), as a text's have, the loss of a sample is the mean over them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def cross_entropy(outputs: Float[Tensor, "n *t c"], targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Softmax cross-entropy; e = softmax(outputs) - onehot.

    Args:
        outputs: [N, *, C]. targets: [N, *]. label_smoothing: the share of each target that is spread over all classes.
    """
    if outputs.dim() == 2:
        return F.cross_entropy(outputs, targets, reduction="none", label_smoothing=label_smoothing)
    losses = cross_entropy(outputs.flatten(0, -2), targets.flatten(), label_smoothing)
    return _of_samples(losses.view(targets.shape))


def binary_cross_entropy(outputs: Float[Tensor, "n *t c"], targets: Tensor) -> Tensor:
    """Binary cross-entropy of logistic outputs on one-hot targets, summed over outputs (nokland2016).

    e = sigma(outputs) - onehot.
    """
    losses = F.binary_cross_entropy_with_logits(outputs, _one_hot(targets, outputs), reduction="none")
    return _of_samples(losses.sum(-1))


def squared_error(outputs: Float[Tensor, "n *t c"], targets: Tensor) -> Tensor:
    """Half the squared error on one-hot targets, summed over outputs (lillicrap2016); e = outputs - onehot."""
    return _of_samples((outputs - _one_hot(targets, outputs)).square().sum(-1) / 2)


def hinge(outputs: Float[Tensor, "n *t c"], targets: Tensor, mu: float | None = None) -> Tensor:
    """One-vs-all hinge loss max(1 - s_c, 0) + mu sum over i != c of max(1 + s_i, 0) of linear outputs s (amit2019 eqs 4-6).

    -e = 1 where i = c and s_i <= 1, -mu where i != c and s_i >= -1, else 0.

    Args:
        outputs: s. targets: c. mu: weight of the other classes. The paper does not give it; the released code has 1 / (C - 1) for
            CIFAR-10, which None stands for, and 10 / 99 for CIFAR-100: ``functools.partial(hinge, mu=10 / 99)`` (a reading).

    Raises:
        ValueError: for a mu below 0, or None with a single output.
    """
    if mu is None:
        if outputs.shape[-1] < 2:
            raise ValueError("mu must be given for a single output, which has no other classes; or give two outputs")
        mu = 1 / (outputs.shape[-1] - 1)
    if not 0 <= mu < math.inf:
        raise ValueError(f"mu must be a number of at least 0, got {mu!r}")
    # clamp lets gradients pass at the kink itself, as the paper's error does; relu does not.
    own = _one_hot(targets, outputs)
    return _of_samples((own * (1 - outputs).clamp(min=0) + mu * (1 - own) * (1 + outputs).clamp(min=0)).sum(-1))


def _one_hot(targets: Tensor, outputs: Tensor) -> Tensor:
    return F.one_hot(targets, outputs.shape[-1]).to(outputs.dtype)


def _of_samples(losses: Tensor) -> Float[Tensor, " n"]:
    """The mean over a sample's positions, where it has some."""
    return losses if losses.dim() == 1 else losses.flatten(1).mean(1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross-entropy": cross_entropy,
    "binary-cross-entropy": binary_cross_entropy,
    "squared-error": squared_error,
    "hinge": hinge,
}


def error_rate(outputs: Float[Tensor, "n *t c"], targets: Tensor, top: int = 1) -> float:
    """Percent of samples, or of their positions, whose class's output is not the largest, or not among the `top` largest.

    >>> import torch
    >>> outputs = torch.tensor([[0.1, 0.3, 0.2], [0.5, 0.4, 0.1]])
    >>> error_rate(outputs, torch.tensor([2, 0])), error_rate(outputs, torch.tensor([2, 0]), top=2)
    (50.0, 0.0)
    """
    if top == 1:
        return 100 * int((outputs.argmax(-1) != targets).sum()) / targets.numel()
    found = outputs.topk(min(top, outputs.shape[-1])).indices == targets[..., None]
    return 100 * int((~found.any(-1)).sum()) / targets.numel()


MANY = 100
"""Classes from which on top-5 errors are measured as well, as is usual for CIFAR-100 and ImageNet."""


def scores(
    criterion: Callable[[Tensor, Tensor], Tensor], outputs: Float[Tensor, "n *t c"], targets: Tensor
) -> dict[str, float]:
    """The mean loss and the error [%], and for 100 classes or more the error among the five largest outputs.

    Of cross-entropy for text, each of whose positions is a byte, also the loss in bits per byte (`loss` is in nats).

    >>> import torch
    >>> scores(cross_entropy, torch.zeros(2, 100), torch.tensor([0, 99]))  # doctest: +ELLIPSIS
    {'loss': 4.605..., 'error': 50.0, 'top5_error': ...}
    """
    found = {"loss": float(criterion(outputs, targets).mean()), "error": error_rate(outputs, targets)}
    if targets.dim() > 1 and criterion is cross_entropy:
        found["bits_per_byte"] = found["loss"] / math.log(2)
    return found | ({"top5_error": error_rate(outputs, targets, 5)} if outputs.shape[-1] >= MANY else {})


def check_losses(losses: Any, output: Tensor) -> Tensor:
    """`losses`, if they are one per sample of `output`.

    Raises:
        ValueError: if they are not.
    """
    if not isinstance(losses, Tensor) or losses.dim() == 0 or losses.shape != output.shape[:1]:
        shape = list(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(
            f"criterion has to return one loss per sample, shape [{len(output)}], but gave {shape}; "
            'for PyTorch\'s losses pass reduction="none" (and sum over outputs, where there are several)'
        )
    return losses

"""The learning rules once more, in NumPy, from the papers' equations and from nothing else.

Conventions (float64 throughout): row-vector batches, synapse l maps h_{l-1} to a_l, h_l = f_l(a_l). `delta` is
dLoss/da_l or its substitute; losses are averages over the batch, so e = dLoss/da_L carries the 1/N and every
gradient below is a plain sum over rows. Indices run from 0: feedback[l] sits at the *input* of synapse l, and
feedback[0] is None.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]

LAYERWISE = ("bp", "fa", "frfb", "usf", "brsf", "frsf", "kp", "matched", "urfb")
DIRECT = ("dfa", "kp-direct")
RULES = (*LAYERWISE, *DIRECT, "ifa", "shallow")
SIGNED = ("usf", "brsf", "frsf")
TRAINED = ("kp", "matched", "urfb", "kp-direct")
STORED = ("fa", "frfb", "dfa", "ifa", *TRAINED)


def _logistic(a: Array) -> Array:
    return 0.5 * (1.0 + np.tanh(0.5 * a))


NONLINEARITIES: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "tanh": (np.tanh, lambda a: 1.0 - np.tanh(a) ** 2),
    "logistic": (_logistic, lambda a: _logistic(a) * _logistic(-a)),
    "relu": (lambda a: np.where(a > 0, a, 0.0), lambda a: np.where(a > 0, 1.0, 0.0)),
    "identity": (lambda a: a, np.ones_like),
}


def _softmax(a: Array) -> Array:
    p = np.exp(a - a.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def _cross_entropy(a: Array, y: Array) -> Array:
    top = a.max(axis=1, keepdims=True)
    return -(y * (a - top - np.log(np.exp(a - top).sum(axis=1, keepdims=True)))).sum(axis=1)


LOSSES: dict[str, tuple[Callable[[Array, Array], Array], Callable[[Array, Array], Array]]] = {
    "softmax": (_cross_entropy, lambda a, y: _softmax(a) - y),
    "bce": (lambda a, y: (np.logaddexp(0.0, a) - y * a).sum(axis=1), lambda a, y: _logistic(a) - y),
    "squared": (lambda a, y: 0.5 * ((a - y) ** 2).sum(axis=1), lambda a, y: a - y),
}


class Dense:
    """y = x W^T + b."""

    def transmit(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        y = x @ weight.T
        return y if bias is None else y + bias

    def feed_back(self, delta: Array, feedback: Array, input_shape: Sequence[int]) -> Array:
        return (delta @ feedback).reshape(input_shape)

    def hebbian(self, x: Array, delta: Array) -> Array:
        return delta.T @ x

    def bias_gradient(self, delta: Array) -> Array:
        return delta.sum(axis=0)


def unfolding(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    mode: str = "zeros",
    positions: Sequence[int] | None = None,
) -> tuple[NDArray[np.intp], tuple[int, ...]]:
    """Which input element every (kernel offset, output position) reads: [offsets, positions] and the output's size.

    Elements are numbered in row-major order; a zero of the padding is number prod(size). `padding` is (before, after)
    for each dimension. `positions` overrules the number of output positions.
    """
    count = int(np.prod(size))
    numbers = np.arange(count).reshape(size)
    if mode == "zeros":
        numbers = np.pad(numbers, padding, mode="constant", constant_values=count)
    else:
        numbers = np.pad(numbers, padding, mode={"circular": "wrap", "reflect": "reflect", "replicate": "edge"}[mode])
    if positions is None:
        positions = [
            (n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(numbers.shape, kernel, stride, dilation, strict=True)
        ]
    rows = []
    for offset in itertools.product(*(range(k) for k in kernel)):
        row = []
        for position in itertools.product(*(range(n) for n in positions)):
            at = [p * s + o * d for p, s, o, d in zip(position, stride, offset, dilation, strict=True)]
            # Only an output-padded transposed convolution asks beyond the padded input, and only where nothing is read.
            row.append(numbers[tuple(at)] if all(a < n for a, n in zip(at, numbers.shape, strict=True)) else count)
        rows.append(row)
    return np.asarray(rows, dtype=np.intp), tuple(positions)


def unfold(x: Array, index: NDArray[np.intp]) -> Array:
    """[N, C, *size] -> patches [N, C, offsets, positions]."""
    flat = x.reshape(*x.shape[:2], -1)
    return np.concatenate([flat, np.zeros((*x.shape[:2], 1))], axis=2)[:, :, index]


def fold(patches: Array, index: NDArray[np.intp], size: Sequence[int]) -> Array:
    """The adjoint of `unfold`: every patch element is added to the input element that it was read from."""
    n, c = patches.shape[:2]
    count = int(np.prod(size))
    out = np.zeros((count + 1, n, c))
    np.add.at(out, index.reshape(-1), np.moveaxis(patches.reshape(n, c, -1), 2, 0))
    return np.moveaxis(out[:count], 0, 2).reshape(n, c, *size)


def _by_offsets(patches: Array, weight: Array, groups: int) -> Array:
    """[N, C, K, P], [O, C/g, *k] -> [N, O, P]: one matrix product per group."""
    n, c, k, p = patches.shape
    out = weight.shape[0]
    matrices = weight.reshape(groups, out // groups, -1)
    columns = patches.reshape(n, groups, c // groups * k, p)
    return np.stack([matrices[g] @ columns[:, g] for g in range(groups)], axis=1).reshape(n, out, p)


def _by_offsets_adjoint(delta: Array, weight: Array, groups: int) -> Array:
    """[N, O, P], [O, C/g, *k] -> [N, C, K, P]."""
    n, out, p = delta.shape
    per_group = weight.shape[1]
    matrices = weight.reshape(groups, out // groups, -1)
    rows = delta.reshape(n, groups, out // groups, p)
    columns = np.stack([matrices[g].T @ rows[:, g] for g in range(groups)], axis=1)
    return columns.reshape(n, groups * per_group, -1, p)


def _correlate(patches: Array, delta: Array, groups: int) -> Array:
    """[N, C, K, P], [N, O, P] -> [O, C/g, K]: sum over the batch and over all positions."""
    n, c, k, p = patches.shape
    out = delta.shape[1]
    columns = patches.reshape(n, groups, c // groups * k, p)
    rows = delta.reshape(n, groups, out // groups, p)
    blocks = [
        np.sum([rows[i, g] @ columns[i, g].T for i in range(n)], axis=0) for g in range(groups)
    ]  # [out/g, c/g * K] each
    return np.stack(blocks).reshape(out, c // groups, k)


@dataclass(frozen=True)
class Convolution:
    """Convolution in any number of dimensions by explicit unfolding; weight [out, in/groups, *kernel]."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1
    mode: str = "zeros"

    def _index(self, size: Sequence[int]) -> tuple[NDArray[np.intp], tuple[int, ...]]:
        return unfolding(size, self.kernel, self.stride, self.padding, self.dilation, self.mode)

    def transmit(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        index, positions = self._index(x.shape[2:])
        y = _by_offsets(unfold(x, index), weight, self.groups)
        if bias is not None:
            y = y + bias[:, None]
        return y.reshape(*y.shape[:2], *positions)

    def feed_back(self, delta: Array, feedback: Array, input_shape: Sequence[int]) -> Array:
        index, _ = self._index(input_shape[2:])
        patches = _by_offsets_adjoint(delta.reshape(*delta.shape[:2], -1), feedback, self.groups)
        return fold(patches, index, input_shape[2:])

    def hebbian(self, x: Array, delta: Array) -> Array:
        index, _ = self._index(x.shape[2:])
        product = _correlate(unfold(x, index), delta.reshape(*delta.shape[:2], -1), self.groups)
        return product.reshape(*product.shape[:2], *self.kernel)

    def bias_gradient(self, delta: Array) -> Array:
        return delta.reshape(*delta.shape[:2], -1).sum(axis=(0, 2))


@dataclass(frozen=True)
class TransposedConvolution:
    """The adjoint of the convolution that would map its output to its input; weight [in, out/groups, *kernel]."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    groups: int = 1

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        return tuple(
            (n - 1) * s - 2 * p + d * (k - 1) + o + 1
            for n, s, p, d, k, o in zip(
                size, self.stride, self.padding, self.dilation, self.kernel, self.output_padding, strict=True
            )
        )

    def _index(self, size: Sequence[int]) -> tuple[NDArray[np.intp], tuple[int, ...]]:
        out = self.output_size(size)
        padding = [(p, p) for p in self.padding]
        return unfolding(out, self.kernel, self.stride, padding, self.dilation, positions=size)[0], out

    def transmit(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        index, out = self._index(x.shape[2:])
        y = fold(_by_offsets_adjoint(x.reshape(*x.shape[:2], -1), weight, self.groups), index, out)
        return y if bias is None else y + bias.reshape(-1, *(1 for _ in out))

    def feed_back(self, delta: Array, feedback: Array, input_shape: Sequence[int]) -> Array:
        index, _ = self._index(input_shape[2:])
        return _by_offsets(unfold(delta, index), feedback, self.groups).reshape(input_shape)

    def hebbian(self, x: Array, delta: Array) -> Array:
        index, _ = self._index(x.shape[2:])
        product = _correlate(unfold(delta, index), x.reshape(*x.shape[:2], -1), self.groups)
        return product.reshape(*product.shape[:2], *self.kernel)

    def bias_gradient(self, delta: Array) -> Array:
        return delta.reshape(*delta.shape[:2], -1).sum(axis=(0, 2))


Synapse = Dense | Convolution | TransposedConvolution


@dataclass(frozen=True)
class Network:
    """A chain of synapses with a nonlinearity after each but the last; shapes are flattened where a Dense follows."""

    synapses: Sequence[Synapse]
    nonlinearities: Sequence[str]
    loss: str
    weights: Sequence[Array]
    biases: Sequence[Array | None]

    def run(self, x: Array) -> tuple[list[Array], list[Array]]:
        """The input of every synapse, and its output a."""
        inputs: list[Array] = []
        outputs: list[Array] = []
        h = x
        for i, synapse in enumerate(self.synapses):
            inputs.append(self._fit(h, synapse))
            outputs.append(synapse.transmit(inputs[-1], self.weights[i], self.biases[i]))
            if i < len(self.synapses) - 1:
                h = NONLINEARITIES[self.nonlinearities[i]][0](outputs[-1])
        return inputs, outputs

    def mean_loss(self, x: Array, y: Array) -> float:
        return float(LOSSES[self.loss][0](self.run(x)[1][-1], y).mean())

    @staticmethod
    def _fit(h: Array, synapse: Synapse) -> Array:
        return h.reshape(h.shape[0], -1) if isinstance(synapse, Dense) else h


@dataclass
class Gradients:
    """None where nothing is learned."""

    weights: list[Array | None] = field(default_factory=list)
    biases: list[Array | None] = field(default_factory=list)
    feedback: list[Array | None] = field(default_factory=list)
    deltas: list[Array | None] = field(default_factory=list)


def gradients(
    rule: str, net: Network, x: Array, y: Array, feedback: Sequence[Array | None], epsilon: float = 1.0
) -> Gradients:
    """What `rule` puts in place of the loss's gradient; feedback[l] is B or D at the input of synapse l."""
    inputs, outputs = net.run(x)
    last = len(net.synapses) - 1
    slopes = [NONLINEARITIES[net.nonlinearities[i]][1](outputs[i]) for i in range(last)]
    e = LOSSES[net.loss][1](outputs[last], y) / len(x)

    deltas: list[Array | None] = [None] * last + [e]
    if rule in LAYERWISE:
        for i in reversed(range(last)):
            carrier = net.weights[i + 1] if rule == "bp" else feedback[i + 1]
            signal = net.synapses[i + 1].feed_back(deltas[i + 1], carrier, inputs[i + 1].shape)
            deltas[i] = signal.reshape(outputs[i].shape) * slopes[i]
    elif rule in DIRECT:
        for i in range(last):
            signal = np.tensordot(e, feedback[i + 1], axes=(1, 0))
            deltas[i] = signal.reshape(outputs[i].shape) * slopes[i]
    elif rule == "ifa" and last > 0:
        signal = np.tensordot(e, feedback[1], axes=(1, 0))
        deltas[0] = signal.reshape(outputs[0].shape) * slopes[0]
        for i in range(1, last):
            forward = net.synapses[i].transmit(deltas[i - 1].reshape(inputs[i].shape), net.weights[i])
            deltas[i] = forward * slopes[i]
    elif rule not in ("ifa", "shallow"):
        raise ValueError(rule)

    result = Gradients(deltas=deltas)
    for i, delta in enumerate(deltas):
        learns = delta is not None
        result.weights.append(net.synapses[i].hebbian(inputs[i], delta) if learns else None)
        has_bias = net.biases[i] is not None
        result.biases.append(net.synapses[i].bias_gradient(delta) if learns and has_bias else None)
        if i == 0 or rule not in TRAINED:
            result.feedback.append(None)
        elif rule == "kp-direct":
            result.feedback.append(np.tensordot(e, inputs[i], axes=(0, 0)))
        else:
            result.feedback.append((epsilon if rule == "urfb" else 1.0) * result.weights[i])
    return result


def floor_of(values: Sequence[Array | None]) -> float:
    """Norms below this are measured against it: what cancels to nothing leaves the rounding of its largest terms.

    Uniform signs cancel exactly where errors of opposite sign meet, and batch norm takes away the bias before it.
    """
    return 1e-5 * max((float(np.linalg.norm(v)) for v in values if v is not None), default=0.0)


def uniform_signs(weight: Array, scale: float | None = None) -> Array:
    """Uniform sign feedback, s sign(W); by default s = sqrt(2/(fan_in + fan_out))."""
    if scale is None:
        scale = np.sqrt(2.0 / ((weight.shape[0] + weight.shape[1]) * np.prod(weight.shape[2:])))
    return scale * np.sign(weight)


def relative_error(actual: Array, expected: Array, floor: float = 0.0) -> float:
    """||actual - expected|| / max(||expected||, floor); ||actual|| where that is zero."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    if actual.shape != expected.shape:
        raise ValueError(f"shapes differ: {actual.shape} and {expected.shape}")
    size = max(float(np.linalg.norm(expected)), floor)
    difference = float(np.linalg.norm(actual - expected))
    return difference / size if size > 0 else difference


def numbers(tensor: torch.Tensor) -> Array:
    return tensor.detach().numpy().copy()


def copy_of(learner, synapses: Sequence[Synapse], nonlinearities: Sequence[str], loss: str) -> Network:
    """The learner's chain of synapses as it is now, in NumPy."""
    layers = list(learner.synapses.values())
    return Network(
        synapses,
        nonlinearities,
        loss,
        [numbers(layer.weight) for layer in layers],
        [None if layer.bias is None else numbers(layer.bias) for layer in layers],
    )


def feedback_of(learner) -> list[Array | None]:
    return [None if layer.feedback is None else numbers(layer.feedback) for layer in learner.synapses.values()]


def set_feedback(learner, feedback: Sequence[Array | None]) -> None:
    with torch.no_grad():
        for layer, value in zip(learner.synapses.values(), feedback, strict=True):
            if value is not None:
                assert tuple(layer.feedback.shape) == value.shape
                layer.feedback.copy_(torch.from_numpy(value))


def random_feedback(learner, rng: np.random.Generator, sd: float = 1.0) -> list[Array | None]:
    """Fresh random numbers in place of every feedback that the learner stores; they are returned."""
    feedback = [
        None if layer.feedback is None else sd * rng.normal(size=tuple(layer.feedback.shape))
        for layer in learner.synapses.values()
    ]
    set_feedback(learner, feedback)
    return feedback


def errors(learner, expected: Gradients) -> dict[str, float]:
    """Relative error of every .grad; where nothing is to be learned, .grad is None or its norm is the error."""
    report = {}
    floor = floor_of([*expected.weights, *expected.biases, *expected.feedback])
    for i, (name, layer) in enumerate(learner.synapses.items()):
        for kind, parameter, value in (
            ("weight", layer.weight, expected.weights[i]),
            ("bias", layer.bias, expected.biases[i]),
            ("feedback", layer.feedback, expected.feedback[i]),
        ):
            if parameter is None:
                assert value is None, f"{name}.{kind} is missing"
            elif value is None:
                report[f"{name}.{kind}"] = 0.0 if parameter.grad is None else float(parameter.grad.norm())
            else:
                assert parameter.grad is not None, f"{name}.{kind} has no gradient"
                report[f"{name}.{kind}"] = relative_error(numbers(parameter.grad), value, floor)
    return report

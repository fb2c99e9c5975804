"""The config of a run: a typed, frozen description that is written beside its results."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from apical.attaching.connectivity import as_connectivity
from apical.checks import check_fields, check_seed
from apical.data.options import DataOptions
from apical.training.options import optimizer_of, rule_of, scheduler_of

_LATER = {"later": True}
"""Metadata of a field that is written to config.json only where it differs from its default: runs from before it lack it."""


@dataclass(frozen=True, kw_only=True)
class Recipe(DataOptions):
    """A way to train, whatever the rule and the seed: data, network, loss, optimizer, length, measurements.

    Every field is an option of the command line, under the same name.

    Raises:
        ValueError: naming every field whose value can't be.

    >>> Recipe(epochs=0, batch=-3)
    Traceback (most recent call last):
    ValueError: epochs must be at least 1, got 0; batch must be at least 1, got -3
    """

    data: str = "digits"
    """"digits" (bundled), a hub name such as ylecun/mnist, a folder in the hub's layout, or text (Python's own) or text:PATH."""
    network: str = "64-100-50-10"
    """Sizes of a fully connected network from pixels to classes; resnet20; gpt-256x4 for text; or module:function of your own."""
    activation: str = "tanh"
    """Between the layers of a network given by sizes: tanh, relu, sigmoid, identity, ..."""
    loss: Literal["cross-entropy", "binary-cross-entropy", "squared-error", "hinge"] = "cross-entropy"
    """Summed over outputs, averaged over the batch; the last two take one-hot targets."""
    connectivity: float = 1.0
    """Fraction of connections that exist, drawn for weights and for feedback apart and fixed from then on (amit2019: half)."""
    whole_output: bool = False
    """Leave the last layer fully connected, whatever --connectivity says (amit2019, in its code)."""
    optimizer: str = "SGD:momentum=0.9"
    """A class of torch.optim with options: SGD:momentum=0.9, RMSprop, Adam:betas=(0.9,0.99)."""
    learning_rate: float | None = None
    """Step size of the optimizer. None: 0.05 for SGD, 0.001 for the others."""
    weight_decay: float | None = None
    """L2 decay, equal for weights and trainable feedback. None: as the rule's paper has it (1e-4 for kp and matched, else 0)."""
    scheduler: str | None = None
    """A class of torch.optim.lr_scheduler with options, stepped once an epoch: MultiStepLR:milestones=[3,4],gamma=0.1."""
    epochs: int = 20
    """Passes over the training data."""
    batch: int = 64
    """Samples per step, over all processes together."""
    input_noise: float = 0.0
    """Standard deviation of noise added to the images (pixels from 0 to 1) while training; lansdell2020's denoising: 0.3."""
    activation_noise: float = 0.0
    """Standard deviation of noise added to the activities between layers while training (a baseline of lansdell2020)."""
    test_every: int | None = None
    """Steps between test errors. None: once an epoch."""
    align_every: int | None = None
    """Steps between measurements of alignment to backpropagation. None: once an epoch; 0: never."""
    checkpoint_every: int | None = None
    """Steps between checkpoints. None: once an epoch."""
    precision: Literal["32-true", "64-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Number format, as Lightning Fabric names it."""
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"
    """How convolutional networks lie in memory; channels_last is faster with precision bf16-mixed."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run. Several processes, for `apical train` only: start it with torchrun."""
    accumulate: int = field(default=1, metadata=_LATER)
    """Parts in which a batch passes, one after the other, so that it takes less memory; their gradients add up to the batch's."""
    clip: float | None = field(default=None, metadata=_LATER)
    """Most that the norm of all weights' gradients together may be; beyond it they and those of feedback shrink in proportion."""
    decayed: Literal["all", "weights"] = field(default="all", metadata=_LATER)
    """What weight_decay is for: all parameters; or weights with their feedback, but no bias and no normalization."""
    warmup_epochs: float = field(default=0.0, metadata=_LATER)
    """Epochs in which the learning rate grows, step by step, to that of the scheduler, which counts epochs from the first on."""
    cooldown_epochs: float = field(default=0.0, metadata=_LATER)
    """Last epochs, in which the learning rate falls from that of the scheduler, step by step, towards nought."""
    bias_rate: float = field(default=1.0, metadata=_LATER)
    """Learning rate of biases and of normalization, as a multiple of the weights'."""
    label_smoothing: float = field(default=0.0, metadata=_LATER)
    """Share of each target that is spread over all classes while training (cross-entropy)."""
    ema: float = field(default=0.0, metadata=_LATER)
    """Decay per step of an exponential moving average of the weights, which is what is tested; 0: none. Usual: 0.999."""
    mirrored: bool = field(default=False, metadata=_LATER)
    """Test by the mean of two outputs, for an image and for its mirror image."""
    best_by: Literal["validation", "test"] | None = field(default=None, metadata=_LATER)
    """Keep the network of least error in this split as well, in checkpoint/best.ckpt. By "test", that error is too good."""

    def __post_init__(self) -> None:
        check_fields(self)
        problems = [
            f"{name} must be at least 1, got {value}"
            for name in ("epochs", "batch", "test_every", "checkpoint_every", "accumulate")
            if (value := getattr(self, name)) is not None and value < 1
        ]
        if self.align_every is not None and self.align_every < 0:
            problems.append(f"align_every must be at least 0, got {self.align_every}")
        if self.learning_rate is not None and not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            problems.append(f"learning_rate must be a positive number, got {self.learning_rate}")
        if self.clip is not None and not (math.isfinite(self.clip) and self.clip > 0):
            problems.append(f"clip must be a positive number, got {self.clip}")
        if self.clip is not None and self.precision == "16-mixed":
            problems.append(
                "clip can't be had with precision '16-mixed', whose gradients are scaled; take 'bf16-mixed'"
            )
        if not 0 <= self.warmup_epochs <= self.epochs:
            problems.append(f"warmup_epochs must be from 0 to epochs, {self.epochs}, got {self.warmup_epochs}")
        if not 0 <= self.cooldown_epochs <= self.epochs:
            problems.append(f"cooldown_epochs must be from 0 to epochs, {self.epochs}, got {self.cooldown_epochs}")
        if not (math.isfinite(self.bias_rate) and self.bias_rate > 0):
            problems.append(f"bias_rate must be a positive number, got {self.bias_rate}")
        for name in ("label_smoothing", "ema"):
            if not 0 <= getattr(self, name) < 1:
                problems.append(f"{name} must be at least 0 and less than 1, got {getattr(self, name)}")
        if self.label_smoothing and self.loss != "cross-entropy":
            problems.append(f"label_smoothing is for loss 'cross-entropy', got it with {self.loss!r}")
        if self.weight_decay is not None and not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            problems.append(f"weight_decay must be at least 0, got {self.weight_decay}")
        try:
            as_connectivity(self.connectivity)
        except (ValueError, TypeError):
            problems.append(
                "connectivity must be the fraction of connections that exist, above 0 and at most 1, "
                f"got {self.connectivity!r}"
            )
        for name in ("input_noise", "activation_noise"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                problems.append(f"{name} must be a number of at least 0, got {value}")
        most = torch.finfo(torch.float64 if self.precision == "64-true" else torch.float32)
        problems += [
            f"{name} must be at most {most.max:.4g}, the largest number of {most.dtype}, got {value:g}"
            for name in ("learning_rate", "weight_decay", "input_noise", "activation_noise")
            if (value := getattr(self, name)) is not None and most.max < value < math.inf
        ]
        for check, value in ((optimizer_of, self.optimizer), (scheduler_of, self.scheduler)):
            try:
                if value is not None:
                    check(value)
            except ValueError as error:
                problems.append(str(error))
        problems += self.problems()
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def rate(self) -> float:
        """The learning rate, given or by default.

        >>> Recipe().rate, Recipe(optimizer="Adam").rate, Recipe(learning_rate=0.3).rate
        (0.05, 0.001, 0.3)
        """
        if self.learning_rate is not None:
            return self.learning_rate
        return 0.05 if optimizer_of(self.optimizer)[0] is torch.optim.SGD else 0.001

    def asdict(self) -> dict[str, Any]:
        """Name -> value, for JSON; without options that came later than others, where they have their defaults.

        >>> "clip" in Recipe().asdict(), Recipe(clip=1.0).asdict()["clip"]
        (False, 1.0)
        """
        later = self.later()
        return {name: one for name, one in dataclasses.asdict(self).items() if name not in later or one != later[name]}

    @classmethod
    def later(cls) -> dict[str, Any]:
        """The options that a config may lack, as they came later than others: name -> default."""
        return {one.name: one.default for one in dataclasses.fields(cls) if "later" in one.metadata}


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Recipe):
    """The config of one run: a recipe with one rule and one seed.

    >>> config = TrainConfig(rule="kp", network="64-20-10", epochs=2, seed=7)
    >>> config.rule, config.seed, config.data
    ('kp', 7, 'digits')
    """

    rule: str = "fa"
    """A rule, with options after a colon: fa, dfa, urfb:epsilon=0.5, fa:init=nokland2016. See `apical rules`."""
    seed: int = 0
    """Of initial weights, feedback, order of samples and dropout."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rule_of(self.rule)
        check_seed("seed", self.seed)

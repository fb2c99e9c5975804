"""Weight mirrors: feedback learns the weights from the layer's answers to noise (akrout2019)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import repeat
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from apical import capturing
from apical.checks import check_fields, number
from apical.noise import Distribution, check_distribution, check_noise, fill, shaped
from apical.per_copy import PER_COPY, PerCopy, spread
from apical.plasticity.base import Phased, Stored
from apical.plasticity.initialization import Init

if TYPE_CHECKING:
    from apical.phases.phase import Phase, Site


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda r: r,
    "relu": torch.relu_,
    "tanh": torch.tanh_,
    "sigmoid": torch.sigmoid_,
}


@dataclass(frozen=True)
class Mirror(Stored, Phased):
    """B grows with the covariance of noise and the answer to it, and decays (akrout2019 eqs 5-7, 19-25, Algorithm 1).

    Layer-wise: r = phi(z W^T + b) for noise z at the synapse's input; B += rate ((1/n) r~^T z~ - decay B), over all n pairs of
    samples and positions that share the weights. No data enters. Direct: z stands at the synapse's input, r is the network's
    output (in eval mode, from inputs of zeros), and D [outputs, features] takes the place of B.

    Args:
        noise: standard deviation sigma (paper: 1). distribution: "gaussian", "uniform" or "rademacher".
        activation: phi, a name in `ACTIVATIONS` or an elementwise function. With relu, no bias and the default decay, B -> W.
        bias_blocking: leave b out of r (eq. 12).
        baseline: "batch-mean" subtracts each unit's mean over batch and positions; a number is the one scalar beta of
            eqs 23-25, which the noise has as its mean and the layer subtracts from its input (0: nothing is subtracted).
        rate: eta_B. decay: lambda_WM. decay_times_rate: the decay is multiplied by the rate, as an optimizer's L2 is; this is a
            reading that the paper's own figures favour. False: eq. 21 as printed, B -> (rate / decay) sigma^2 phi' W.
        batch: rows of noise, as many as the minibatch if None; but 2 where that is one sample and the batch mean is subtracted,
            which would leave nothing of one row. batches: how many per call.
        positions: at most so many places of a convolution's map per row; None for as many as the data has. All that share the
            weights count as pairs, so that the convolutions' angles stay far below those of the last layers with a part of them.
            Noise fills the padding as well, so that every weight meets equally many pairs (the paper does not say).
        alternate: mirror every second layer in one call and the others in the next: layers that are not adjacent can mirror
            at once (Appendix C.4).
        warmup: calls during which no weight moves: mirroring only.
        init: of B; a name in `INITS` or a function that fills a tensor in place.

    Raises:
        ValueError: for values of a wrong kind or out of range.

    >>> import apical
    >>> apical.rule("wm", activation="linear", batch=256).plasticity.noise
    1.0
    """

    name: ClassVar[str] = "mirror"
    pathways: ClassVar[frozenset[str]] = frozenset({"layer-wise", "direct"})
    noise: float = field(default=1.0, metadata=PER_COPY)
    distribution: Distribution = "gaussian"
    activation: str | Callable[[Tensor], Tensor] = "relu"
    bias_blocking: bool = False
    baseline: Literal["batch-mean"] | float = "batch-mean"
    rate: float = field(default=0.1, metadata=PER_COPY)
    decay: float = field(default=0.5, metadata=PER_COPY)
    decay_times_rate: bool = True
    batch: int | None = None
    batches: int = 1
    positions: int | None = 64
    alternate: bool = False
    warmup: int = 0
    init: Init = field(default="weights", metadata=PER_COPY)

    def __post_init__(self) -> None:
        check_fields(self)
        check_noise("noise", self.noise)
        check_distribution(self.distribution)
        if not callable(self.activation) and self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {', '.join(ACTIVATIONS)} or a function, got {self.activation!r}"
            )
        if self.baseline != "batch-mean":
            number("baseline", self.baseline, otherwise="; or give 'batch-mean'")
        number("rate", self.rate, above=0)
        shrink = self.decay * (self.rate if self.decay_times_rate else 1)
        if not 0 <= shrink < 1:
            raise ValueError(
                f"decay of {self.decay!r} takes {shrink:.3g} of B away in every call; it has to be at least 0 and below 1"
            )
        for name, least in (("batch", 1), ("batches", 1), ("positions", 1), ("warmup", 0)):
            if getattr(self, name) is not None:
                number(name, getattr(self, name), least=least, whole=True)
        if self.batch == 1 and self.baseline == "batch-mean":
            raise ValueError(
                "batch=1 leaves nothing when the batch mean is subtracted; give more rows, or a scalar baseline"
            )

    @override
    def adapt(self, phase: Phase) -> None:
        sites = phase.sites
        if self.alternate and len(sites) > 1:
            capturing.hinder(
                "the weight mirror takes every second layer by turns (alternate=True), which a graph can't"
            )
            sites = sites[phase.count % 2 :: 2]
        rows = self.batch or max(phase.rows, 2 if self.baseline == "batch-mean" else 1)
        for _ in range(self.batches):
            pool: Tensor | None = None
            products = []
            for site in sites:
                shape, geometry = phase.features(site), ()
                if shape is None:
                    continue
                if not site.direct:
                    shape, geometry = site.synapse.unbordered(shape, self.positions)
                copies = len(phase.generators)
                size = rows * shape.numel() // copies
                # One pool for all: what two layers learn from equal noise is not compared with each other.
                if pool is None or pool.shape[1] < size:
                    pool = self._pool(phase, size)
                kernels = None if site.direct else site.synapse.weight_now
                own = torch.Size((rows, shape[0] // copies, *shape[1:]))
                parts = [shaped(part, own, kernels) for part in pool[:, :size]]
                z = parts[0] if copies == 1 else torch.cat(parts, 1)
                if site.direct:
                    products.append(self._by_output(phase, site, z))
                else:
                    response = self._response(site, z, geometry)
                    together = site.synapse.fuses and z.dim() == 2 and z.dtype == site.feedback.dtype
                    if phase.world == 1 and copies == 1 and together:
                        self._learn_at_once(site, z, response)
                        continue
                    products.append((site.synapse.hebbian(z, response, geometry), site.synapse.pairs(z, response)))
                if phase.world == 1:
                    self._learn(site, *products.pop())
            if not products:
                continue
            # Batches may differ in size from process to process.
            pairs = torch.tensor([float(one) for _, one in products], dtype=torch.float64, device=phase.device)
            phase.average([pairs, *(product for product, _ in products)])
            for site, (product, _), mean in zip(sites, products, pairs.tolist(), strict=True):
                self._learn(site, product, mean)

    def _pool(self, phase: Phase, size: int) -> Tensor:
        """Noise [copies, size], drawn for each copy from its own generator."""
        pool = torch.empty(len(phase.generators), size, device=phase.device, dtype=phase.fast)
        scales = self.noise if isinstance(self.noise, PerCopy) else repeat(self.noise)
        for part, generator, scale in zip(pool, phase.generators, scales, strict=False):
            fill(part, self.distribution, generator, scale)
        return pool

    def _learn(self, site: Site, product: Tensor, pairs: float) -> None:
        B = site.feedback
        rate, decay = spread(self.rate, B), spread(self.decay, B)
        B.mul_(1 - decay * (rate if self.decay_times_rate else 1))
        if isinstance(rate, Tensor):
            B.addcmul_(product, rate, value=1 / pairs)
        else:
            B.add_(product, alpha=rate / pairs)

    def _learn_at_once(self, site: Site, z: Tensor, response: Tensor) -> None:
        """`_learn`, where the product can be added to the feedback while it is made."""
        keep = 1 - self.decay * (self.rate if self.decay_times_rate else 1)
        site.synapse.add_hebbian(site.feedback, z, response, keep, self.rate / site.synapse.pairs(z, response))

    def _response(self, site: Site, z: Tensor, geometry: tuple) -> Tensor:
        """The synapse's answer to noise, without its mean: what the noise is multiplied with."""
        synapse = site.synapse
        response = synapse.conduct(z, geometry, bias=not self.bias_blocking)
        phi = ACTIVATIONS[self.activation] if isinstance(self.activation, str) else self.activation
        response = phi(response)
        if self.baseline == "batch-mean":
            unit, dims = synapse.unit_dim, response.dim()
            shared = [0] if unit is None else [d for d in range(dims) if d != unit % dims]
            # Subtracting z's mean as well would change nothing: the answers' mean is zero after this.
            response = response.sub_(response.mean(shared, keepdim=True))
        else:
            response = response - self.baseline
        return response

    def _by_output(self, phase: Phase, site: Site, z: Tensor) -> tuple[Tensor, int]:
        beta = 0.0 if self.baseline == "batch-mean" else self.baseline
        rows = site.rows(phase.through(site, z + beta if beta else z).to(z.dtype) - beta)
        rows = rows - rows.mean(0) if self.baseline == "batch-mean" else rows
        return (rows.t() @ site.targets(z)).view(site.feedback.shape), len(rows)

"""Feedback that learns to predict a gradient, by least squares (lansdell2020)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from apical.checks import number
from apical.per_copy import PER_COPY
from apical.plasticity.base import Phased, Stored
from apical.plasticity.initialization import Init
from apical.synapses.memory import in_use
from apical.synapses.storage import keep, kept
from apical.synapses.synapse import Synapse

if TYPE_CHECKING:
    from apical.phases.noisy_pass import Estimate, Place
    from apical.phases.phase import Phase, Site
    from apical.phases.recording import Call

    Learn = Callable[[Place, Estimate], None]


@dataclass(frozen=True)
class Regression(Stored, Phased):
    """Least squares of a target lambda^ at a synapse's input on the error that its feedback carries there.

    Layer-wise: B minimises E||e~ B - lambda^||^2, e~ the error at the synapse's output as the learned feedback brings it.
    Direct: D minimises E||e D - lambda^||^2, e the error of the network's output.

    Args:
        solver: "sgd", B -= rate (1/N) e~^T (e~ B - lambda^); or "ridge", B = V^-1 S with V = gamma I + sum e~^T e~ and
            S = sum e~^T lambda^ over all batches so far (lansdell2020 eq. 18), for linear layers and direct feedback. V and S
            are float64 whatever the weights are; casting the model rounds what they hold by then, so cast it before `attach`.
        rate: of "sgd". The paper's 5e-4 is for sums over 32 samples, 0.016 for means. 0: feedback that stands still.
        gamma: of "ridge" (paper: 0.1).
        warmup: calls during which no weight moves (lansdell2020 C.1: 1000).
        init: of B; a name in `apical.plasticity.INITS` or a function that fills a tensor in place.

    Raises:
        ValueError: for values out of range.
    """

    pathways: ClassVar[frozenset[str]] = frozenset({"layer-wise", "direct"})
    needs = "the pass before"
    solver: Literal["sgd", "ridge"] = "sgd"
    rate: float = 0.016
    gamma: float = 0.1
    warmup: int = 0
    init: Init = field(default="weights", metadata=PER_COPY)

    def __post_init__(self) -> None:
        if self.solver not in ("sgd", "ridge"):
            raise ValueError(f"solver must be 'sgd' or 'ridge', got {self.solver!r}")
        number("rate", self.rate, least=0)
        number("gamma", self.gamma, above=0, otherwise="; ridge regression needs it to start")
        number("warmup", self.warmup, least=0, whole=True)

    def visit(self, phase: Phase, learn: Learn) -> None:
        """Call learn((name, number of the call), target lambda^) for every place of the phase."""
        raise NotImplementedError

    @property
    def solves_as_a_whole(self) -> bool:
        """Whether all elements are solved for at once. With some of them absent that would be no least squares."""
        return self.solver == "ridge"

    @override
    def check(self, owner: nn.Module, name: str, shape: torch.Size) -> None:
        if self.solver != "ridge":
            return
        direct = not isinstance(owner, Synapse) or shape != owner.weight_now.shape
        if not direct and not (isinstance(owner, nn.Linear) or owner.rows):
            raise ValueError(
                f"solver='ridge' is for linear layers, and '{name}' is a {type(owner).__name__.removesuffix('Synapse')}; give "
                f"it a rule of its own, apical.attach(model, {{'': ..., '{name}': 'np'}}), or use solver='sgd'"
            )
        needed, free = 8 * (shape[0] ** 2 // _copies(owner) + shape.numel()), free_memory(_device(owner))
        if needed > free:
            raise ValueError(
                f"solver='ridge' would keep {needed / 2**30:.1f} GiB of sums for '{name}' (feedback {list(shape)}), and "
                f"{free / 2**30:.1f} GiB are free; use solver='sgd'"
            )

    @override
    def prepare(self, owner: nn.Module, shape: torch.Size, generator: torch.Generator) -> None:
        super().prepare(owner, shape, generator)
        if self.solver == "ridge":
            # Sums over a whole training lose small terms in single precision.
            n, device = _copies(owner), _device(owner)
            gram = torch.eye(shape[0] // n, dtype=torch.float64, device=device).mul_(self.gamma)
            keep(owner, "gram", gram.repeat(n, 1))
            keep(owner, "cross", torch.zeros(shape[0], shape[1:].numel(), dtype=torch.float64, device=device))

    @override
    def adapt(self, phase: Phase) -> None:
        if (self.solver == "sgd" and self.rate == 0) or not phase.finite:
            return
        sites = {site.name: site for site in phase.sites}
        sums: dict[str, list[Tensor]] = {}

        def learn(place: Place, target: Estimate) -> None:
            name, number = place
            found = self._sums(phase, sites[name], number, target)
            if name in sums:
                sums[name] = [total.to(phase.dtype).add_(part) for total, part in zip(sums[name], found, strict=False)]
            elif found:
                sums[name] = found

        self.visit(phase, learn)
        rows = float(len(phase.clean.losses)) if phase.world == 1 else self._shared(phase, sites, sums)
        for name, tensors in sums.items() if rows else ():
            self._learn(phase, sites[name], tensors, rows)

    def _shared(self, phase: Phase, sites: dict[str, Site], sums: dict[str, list[Tensor]]) -> float:
        """Make sums means over all processes, also where only another one has reached a site; the mean number of rows."""
        names = [name for name, site in sites.items() if kept(site.owner, "feedback") is not None]
        # Batches differ in size from process to process.
        told = [len(phase.clean.losses), *(name in sums for name in names)]
        facts = torch.tensor(told, dtype=torch.float64, device=phase.device)
        for name in names:
            if name in sums:
                scaled = self._scaled(phase, sites[name])
                if scaled is not None:  # Each process's loss is scaled as its own batch is.
                    sums[name] = [tensor.to(phase.dtype).div_(scaled) for tensor in sums[name]]
            else:
                like = ["feedback"] if self.solver == "sgd" else ["gram", "cross"]
                shapes = [found.shape for one in like if (found := kept(sites[name].owner, one)) is not None]
                sums[name] = [torch.zeros(shape, dtype=phase.dtype, device=phase.device) for shape in shapes]
        phase.average([facts, *(tensor for name in names for tensor in sums[name])])
        rows, *reached = facts.tolist()
        for name, share in zip(names, reached, strict=True):
            if not share:
                del sums[name]
        return rows

    def _sums(self, phase: Phase, site: Site, number: int, target: Estimate) -> list[Tensor]:
        """One call's contribution: [dL/dB], times `_scaled`, for SGD, [e~^T e~, e~^T lambda] for ridge; [] without an error."""
        if kept(site.owner, "feedback") is None:
            return []  # A pass of the phase's own has shown that no signal leaves here.
        if site.direct:
            return self._direct_sums(phase, site, target)
        call = phase.clean.calls.get((site.name, number))
        if call is None or call.delta is None:
            return []
        scale = phase.clean.scale
        assert scale is not None
        if self.solver == "ridge":
            delta, wanted = (t.to(phase.dtype).flatten(0, -2) for t in (call.delta, target.tensor))
            n, delta = _copies(site.owner), delta / scale
            if n == 1:
                return [delta.t() @ delta, delta.t() @ wanted]
            errors, targets = (t.unflatten(1, (n, -1)).transpose(0, 1) for t in (delta, wanted))
            return [torch.bmm(errors.mT, one).flatten(0, 1) for one in (errors, targets)]
        product = self._gradient(phase, site, call, call.delta.to(phase.fast), target, scale)
        call.delta = call.signal = None  # As large as the activities, and not needed again.
        return [product]

    def _scaled(self, phase: Phase, site: Site) -> float | Tensor | None:
        """What products of an error and a signal are multiplied with, both as the loop's loss scaled them; None: nothing."""
        if site.direct or self.solver == "ridge":
            return None
        scale = phase.clean.scale
        assert scale is not None
        return scale**2

    def _direct_sums(self, phase: Phase, site: Site, target: Estimate) -> list[Tensor]:
        errors, values = site.rows(phase.clean.errors.to(phase.dtype)), site.targets(target.values)
        # Factors, one a sample, go to the smaller side of the product.
        weighed = errors
        if target.factors is not None:
            factors = target.factors.flatten(1)
            if len(factors) != len(errors):  # A sample has several rows.
                factors = factors.repeat_interleave(len(errors) // len(factors), 0)
            weighed = errors * factors
        gram = errors.t() @ errors
        cross = (weighed.t().to(values.dtype) @ values).to(phase.dtype)
        if self.solver == "ridge":
            return [gram, cross]
        # e^T (e D - lambda^), in the order that never makes the prediction e D.
        return [torch.sub(gram @ site.feedback.to(phase.dtype).flatten(1), cross).view(site.feedback.shape)]

    def _gradient(
        self, phase: Phase, site: Site, call: Call, delta: Tensor, target: Estimate, scale: float | Tensor
    ) -> Tensor:
        synapse = site.synapse
        heard, own = call.signal, False
        if heard is not None and heard.shape == target.values.shape:
            signal, geometry = heard.to(phase.fast), call.geometry
            # Gradients are handed on without a copy, so somebody else may still hold this one.
            own = signal is heard and signal.is_contiguous() and not in_use(heard)
        else:
            # The layer pads its input itself, so what the backward pass had is larger than the activity.
            signal, geometry = synapse.feed_back(delta, site.feedback.to(phase.fast), target.values.shape), ()
        return synapse.hebbian(target.taken_from(signal, scale, own=own), delta, geometry)

    def _learn(self, phase: Phase, site: Site, sums: list[Tensor], rows: float) -> None:
        if self.solver == "sgd":
            # In one pass over memory.
            value, scaled = -self.rate / rows, None if phase.world > 1 else self._scaled(phase, site)
            if scaled is None:
                site.feedback.add_(sums[0], alpha=value)
            else:  # A number as a tensor, too: both divide alike, to the bit.
                scaled = torch.as_tensor(scaled, dtype=torch.float64, device=site.feedback.device)
                site.feedback.addcdiv_(sums[0], scaled, value=value)
            return
        gram, cross = kept(site.owner, "gram"), kept(site.owner, "cross")
        assert gram is not None
        assert cross is not None
        # In double precision again after the model was cast; in place, because others may hold on to them.
        gram.data, cross.data = gram.double(), cross.double()
        # Means over processes, so times their number: sums over all samples.
        gram.add_(sums[0].to(gram), alpha=phase.world)
        cross.add_(sums[1].to(cross), alpha=phase.world)
        # V is positive definite.
        n = _copies(site.owner)
        factor = torch.linalg.cholesky_ex(gram.view(n, -1, gram.shape[1])).L
        solved = torch.cholesky_solve(cross.view(n, -1, cross.shape[1]), factor)
        site.feedback.copy_(solved.reshape(site.feedback.shape))


def free_memory(device: torch.device) -> int:
    """Bytes that may still be had on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError, IndexError):
        return 2**62


def _copies(owner: nn.Module) -> int:
    return owner.copies if isinstance(owner, Synapse) else 1


def _device(owner: nn.Module) -> torch.device:
    return next((p.device for p in owner.parameters()), torch.device("cpu"))

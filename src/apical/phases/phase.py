"""One call of `Learner.adapt`: all that a plasticity or pathway gets to learn from in a phase of its own."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from apical import capturing, distributed
from apical.nested import over_tensors, pick, run, tensors
from apical.noise import Distribution, Supplies, Supply
from apical.phases.clean_pass import CleanPass
from apical.phases.isolation import RandomState, cuda_devices, unchanged
from apical.phases.noisy_pass import Estimate, Place, estimates, perturbing
from apical.plasticity.base import feedback_at
from apical.synapses.storage import PROJECTION, form_of, kept
from apical.synapses.synapse import Synapse

if TYPE_CHECKING:
    from apical.learner import Learner
    from apical.pathways.factored.form import Form
    from apical.phases.layout import Criterion
    from apical.plasticity import Plasticity


@dataclass(frozen=True)
class Site:
    """A place where a teaching signal enters: the input of a synapse, or the output of a block named in ``at=``.

    Attributes:
        name: of the module. owner: the module, which holds the feedback. plasticity: of that feedback.
        direct: whether the signal there comes from the output's error, through feedback [outputs, *features].
    """

    name: str
    owner: nn.Module
    plasticity: Plasticity
    direct: bool

    @property
    def synapse(self) -> Synapse:
        """The owner, where the signal is layer-wise."""
        assert isinstance(self.owner, Synapse)
        return self.owner

    @property
    def form(self) -> Form | None:
        """How direct feedback is kept here; None where it is in full."""
        return form_of(self.owner)

    def rows(self, errors: Tensor) -> Tensor:
        """The rows of an error shaped like the output, as direct feedback here hears them [rows, outputs], or [rows, rank]."""
        return errors.flatten(1) if self.form is None else self.form.rows(errors, kept(self.owner, PROJECTION))

    def targets(self, values: Tensor) -> Tensor:
        """What `rows` times the feedback [rows, *] is to be, for a signal that comes as near as can be to `values`."""
        return values.flatten(1) if self.form is None else self.form.targets(values)

    @property
    def feedback(self) -> Tensor:
        """The feedback weights, to be changed in place."""
        return feedback_at(self.owner)


class Phase:
    """One call of `Learner.adapt`: the batch, the clean pass of it, noisy ones, noise, and means over processes.

    Attributes:
        learner: whose feedback learns. sites: places of the part at work. count: how many calls came before.
        device, dtype: of what is computed; float32 at least. fast: the dtype of what is as large as activities, where the loop's
            own pass is fine with bfloat16.
        generators: one for each of the copies that lie side by side, on the model's device, seeded anew for this call; other
            ones on every process of a distributed training.
        world: how many processes learn together.
    """

    def __init__(self, learner: Learner, inputs: Any, targets: Any, criterion: Criterion) -> None:
        self.learner = learner
        self.sites: list[Site] = []
        self.count = learner.adapted
        self._batch = (inputs, targets, criterion)
        self._clean: CleanPass | None = None
        self._looked = False
        weight = next(learner.model.parameters())
        self.device = weight.device
        self.dtype = weight.dtype if weight.dtype == torch.float64 else torch.float32
        # Not float16, in which squares of errors vanish; nor where weights are float64, which autocast leaves alone.
        half = self.dtype == torch.float32 and torch.bfloat16 in (weight.dtype, learner.phases.autocast)
        self.fast = torch.bfloat16 if half else self.dtype
        self.world = distributed.world()
        self.generators = capturing.streams(learner) or [
            torch.Generator(self.device).manual_seed(seed) for seed in learner.phases.seeds()
        ]

    @property
    def generator(self) -> torch.Generator:
        """The source of noise, where there is one network."""
        return self.generators[0]

    @property
    def rows(self) -> int:
        """Samples in the batch."""
        first = self._first()
        if first is None:
            raise ValueError("inputs hold no tensor with a batch dimension, so the size of the batch is not known")
        return len(first)

    @property
    def empty(self) -> bool:
        """Whether the batch has no samples. Of processes that learn together none may step aside."""
        first = self._first()
        return self.world == 1 and first is not None and len(first) == 0

    def _first(self) -> Tensor | None:
        return next((tensor for tensor in tensors(self._batch[0]) if tensor.dim()), None)

    @property
    def finite(self) -> bool:
        """Whether all losses and errors are finite numbers, on all processes; nothing can be learned from others."""
        finite = self.clean.finite
        return distributed.everywhere(finite, self.device) if self.world > 1 else finite

    @property
    def clean(self) -> CleanPass:
        """The clean pass of this batch."""
        if self._clean is None:
            self._clean = CleanPass(self.learner, *self._batch)
        return self._clean

    def estimates(
        self, places: Container[str], c: float, distribution: Distribution, calls: Container[Place] | None = None
    ) -> dict[Place, Estimate]:
        """The gradient at every call of the places, as one noisy pass estimates it: (L~ - L) xi / c.

        Args:
            places: names where noise c xi is added, in all of them at once. c: standard deviation of the noise.
            distribution: of xi. calls: places with numbers of calls that get noise; None: all.
        """
        return estimates(self, places, c, distribution, calls)

    def true_gradients(self, places: list[str], sink: Callable[[Place, Estimate], None]) -> None:
        """Backpropagate the losses' sum: sink((name, call), its gradient there through that place alone), as it comes."""
        self.clean.true_signals(places, lambda place, call, signal: sink((place, call), Estimate(signal.to(self.fast))))

    def features(self, site: Site) -> torch.Size | None:
        """Shape of the activity at a site, without the batch; None if neither this batch nor one before it gets there.

        From a pass of this batch; of layers that it does not reach, from the loop's own, which may go by another method.

        Raises:
            RuntimeError: for such a site under torch.distributed, where all processes have to learn the same feedback.
        """
        known = self.learner.phases.features.setdefault(tuple(t.shape[1:] for t in tensors(self._batch[0])), {})
        if site.name not in known and not self._looked:
            self._look(known)
            self._looked = True
            for name in self.learner.phases.met.keys() - known.keys():
                # By another method of the model than its forward.
                known[name] = self.learner.phases.met[name]
        if site.name not in known and self.world > 1:
            raise RuntimeError(
                f"no activity reaches '{site.name}' in a pass of this batch, so its feedback can't be learned on all processes; "
                f"attach with a rule of its own that has no phase: {{'': ..., '{site.name}': 'fa'}}"
            )
        return known.get(site.name)

    def _look(self, known: dict[str, torch.Size]) -> None:
        """One pass for the shapes at all places that it reaches."""

        def look(place: str, call: int, activity: Tensor) -> None:
            known.setdefault(place, activity.shape[1:])

        # Modules that hold others may take another way in training; the layers in them are still, and keep their statistics.
        layers = [module for module in self.learner.model.modules() if not module._modules]
        with self._quiet(layers, self._batch[0]), perturbing(self.learner, look):
            run(self.learner.model, self._batch[0])

    def through(self, site: Site, activity: Tensor) -> Tensor:
        """Output of the model [N, *] when `activity` stands at a site, whatever its inputs; in eval mode."""
        inputs = _zeros(self._batch[0], len(activity))

        def put(place: str, call: int, found: Tensor) -> Tensor | None:
            return activity.to(found.dtype) if place == site.name else None

        with self._quiet([self.learner.model]), perturbing(self.learner, put, [site.name]):
            return pick(run(self.learner.model, inputs), self.learner.output)

    @contextmanager
    def _quiet(self, still: list[nn.Module], inputs: Any = None) -> Iterator[None]:
        """Eval mode of the modules `still`, autocast as the loop has it, and no trace in model, inputs and random state."""
        learner = self.learner
        modes = [(module, module.training) for module in learner.model.modules()]
        random = RandomState(cuda_devices(learner.model))
        with torch.no_grad(), unchanged(learner, also=inputs), learner.phases.casting():
            for module in still:
                module.eval()
            try:
                yield
            finally:
                random.restore()
                for module, mode in modes:
                    module.training = mode

    def supply(self, distribution: Distribution, sizes: list[int]) -> Supply | Supplies:
        """Noise for places that take so many numbers each."""
        share = [size // len(self.generators) for size in sizes]
        own = [
            Supply(distribution, share, generator=one, device=self.device, dtype=self.fast) for one in self.generators
        ]
        return own[0] if len(own) == 1 else Supplies(own)

    def average(self, tensors: list[Tensor]) -> None:
        """Replace tensors by their means over all processes."""
        if self.world > 1:
            distributed.average(tensors)


def _zeros(inputs: Any, rows: int) -> Any:
    """Inputs of the same kind with nothing in them."""
    return over_tensors(inputs, lambda x: x.new_zeros((rows, *x.shape[1:])) if x.dim() else x)

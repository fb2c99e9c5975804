"""Which stage holds which tensors of the model, and how they come from stage to stage."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, distributed, nn

from apical.attaching.attach import learner_of
from apical.parallel.splitting import Part
from apical.synapses.storage import names_kept
from apical.synapses.synapse import Synapse

Place = tuple[str, str, str]
"""Name of a module, "_parameters" or "_buffers", and the tensor's name there."""


@dataclass
class Held:
    """A tensor of the model. name: in its state dict. stages: which ones hold it. places: everywhere it stands."""

    name: str
    stages: frozenset[int]
    tensor: Tensor
    places: list[Place] = field(default_factory=list)


class Holdings:
    """All tensors of a model that is learned in stages; those of other stages lie on the meta device, where they take no memory.

    Feedback to the first synapse of a stage belongs to the stage before: there its signal enters.

    Args:
        model: attached; changed in place. parts: of all stages. stage: of this process. group: of all processes.

    Raises:
        ValueError: if two stages share a tensor, or one has no parameters.
    """

    def __init__(
        self, model: nn.Module, parts: Sequence[Part], stage: int, group: distributed.ProcessGroup | None
    ) -> None:
        self.model, self.stage, self.group = model, stage, group
        self.all = _all(model, _stages(parts))
        learns = {stage for one in self.all if isinstance(one.tensor, nn.Parameter) for stage in one.stages}
        for number in range(len(parts)):
            if number not in learns:
                raise ValueError(f"stage {number} has no parameters; let it begin or end elsewhere, by split=[...]")

    def spread(self) -> None:
        """Let all processes have the first one's values."""
        for one in self.all:
            _broadcast(one.tensor, 0, self.group)

    def let_go(self) -> None:
        """Keep this stage's tensors alone."""
        for one in self.all:
            if self.stage not in one.stages:
                with torch.no_grad():
                    empty = one.tensor.detach().to("meta")
                one.tensor = _like(one.tensor, empty)
                _put(self.model, one)

    def parameters(self) -> list[nn.Parameter]:
        """This stage's parameters."""
        return [tensor for _, tensor in self.own() if isinstance(tensor, nn.Parameter)]

    def own(self) -> list[tuple[str, Tensor]]:
        """This stage's tensors by name."""
        return [(one.name, one.tensor) for one in self.all if self.stage in one.stages]

    @torch.no_grad()
    def gather(self) -> nn.Module:
        """The plain model, with what all stages have learned, on every process."""
        device = self.parameters()[0].device
        whole = copy.deepcopy(self.model)
        for one in self.all:
            value = torch.empty_like(one.tensor, device=device)
            if self.stage in one.stages:
                value.copy_(one.tensor.detach())
            _broadcast(value, min(one.stages), self.group)
            _put(whole, Held(one.name, one.stages, _like(one.tensor, value), one.places))
        return learner_of(whole).detach()


def _like(tensor: Tensor, value: Tensor) -> Tensor:
    return nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value


def _stores(model: nn.Module) -> Iterator[tuple[Place, Tensor]]:
    for name, module in model.named_modules():
        for store in ("_parameters", "_buffers"):
            for key, tensor in vars(module)[store].items():
                if tensor is not None:
                    yield (name, store, key), tensor


def _put(model: nn.Module, one: Held) -> None:
    # Not by attribute: a synapse would take it for new weights.
    for name, store, key in one.places:
        vars(model.get_submodule(name))[store][key] = one.tensor


def _stages(parts: Sequence[Part]) -> dict[int, set[int]]:
    """Id of a tensor -> the stages that hold it."""
    found: dict[int, set[int]] = {}
    ahead: Sequence[Synapse] = ()
    for stage, part in enumerate(parts):
        for (name, store, key), tensor in _stores(part.layers):
            synapse = part.layers.get_submodule(name)
            feedback = key in (*names_kept(synapse), "feedback_mask")
            stages = found.setdefault(id(tensor), set())
            stages.add(stage - 1 if feedback and synapse in ahead else stage)
            # Feedback that several have in common is fixed, so each stage has its own copy.
            if len(stages) > 1 and not (feedback and store == "_buffers"):
                raise ValueError(
                    f"stages {' and '.join(map(str, sorted(stages)))} share '{name}.{key}', and can't learn one tensor together: "
                    "untie it, or let one stage have both, by split=[...]"
                )
        ahead = part.ahead
    return found


def _all(model: nn.Module, stages: dict[int, set[int]]) -> list[Held]:
    found: dict[int, Held] = {}
    for place, tensor in _stores(model):
        name = ".".join(filter(None, (place[0], place[2])))
        own = frozenset(stages.get(id(tensor), {0}))
        found.setdefault(id(tensor), Held(name, own, tensor)).places.append(place)
    return list(found.values())


def _broadcast(tensor: Tensor, source: int, group: distributed.ProcessGroup | None) -> None:
    """Let all processes have the values that `source` has."""
    value = tensor.detach()
    sent = value.contiguous()
    # Not every backend sends truth values.
    distributed.broadcast(sent.view(torch.uint8) if sent.dtype == torch.bool else sent, group_src=source, group=group)
    if sent.data_ptr() != value.data_ptr():
        value.copy_(sent)

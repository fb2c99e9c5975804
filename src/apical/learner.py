"""A model that learns by a rule: its synapses and what they share, and the way back to the plain model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from apical import step_hooks
from apical.nested import Which
from apical.pathways.base import WholePass
from apical.pathways.direct import FromOutput
from apical.per_copy import copies_in, generator_from
from apical.phases.layout import Criterion, Layout, OneNetwork
from apical.phases.phases import Phases
from apical.plasticity.base import Trained
from apical.rules import Rule
from apical.synapses.circuit import Circuit
from apical.synapses.storage import kept
from apical.synapses.synapse import Synapse

if TYPE_CHECKING:
    from apical.attaching.connectivity import Connectivity


class Surgery(Protocol):
    """What notices changes of a learner's model, and takes them in."""

    def watch(self, circuit: Circuit) -> None:
        """Notice changes from now on, in passes of the circuit's synapses."""

    def refresh(self, example_input: Any) -> None:
        """Take in the model as it is now."""


class Learner:
    """A model that learns by a rule, as `apical.attach` returns it.

    Attributes:
        model: the model, changed in place.
        rules: module name -> the `Rule` of that synapse.
        synapses: module name -> synapse, with `weight`, `bias` and `feedback` (None where never used).
        blocks: module name -> module, for direct signals that enter at blocks; its `feedback` is [outputs, *features].
        connectivity: module name -> `Connectivity` of that synapse or block.
        generator: source of all randomness of the feedback; of copies side by side, `apical.per_copy.Streams`.
        output: which tensor of the model's output the loss is made of, as given to `attach`.
        copies: how many networks lie side by side in the model (see `apical.replicate`).
        layout: how the batches of copies become one, and the losses of each come apart.
        circuit: what the synapses share. phases: what learns in phases of its own.
        passes: what follows passes of the whole model, for rules that need it.
        elementwise: names of modules whose parameters no synapse covers, but the dry run saw multiplied elementwise at most.
        undo: what `detach` calls, the last first: each step of the conversion leaves its own way back.
        surgery: what notices changes of the model, and takes them in.

    >>> import apical, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    >>> learner = apical.attach(net, "kp")
    >>> learner
    Learner(Sequential, rule='kp', synapses=2)
    >>> learner.detach() is net
    True
    """

    surgery: Surgery | None = None

    def __init__(
        self,
        model: nn.Module,
        rules: dict[str, Rule],
        generator: torch.Generator,
        output: Which,
        connectivity: dict[str, Connectivity],
    ) -> None:
        self.model = model
        self.rules = rules
        self.generator = generator
        self.output = output
        self.connectivity = connectivity
        self.synapses: dict[str, Synapse] = {}
        self.blocks: dict[str, nn.Module] = {}
        self.copies: int = copies_in(model)
        self.circuit = Circuit()
        self.phases = Phases(self)
        self.passes: list[WholePass] = []
        self.elementwise: frozenset[str] = frozenset()
        self.undo: list[Callable[[], Any]] = []
        self.layout: Layout = OneNetwork()

    def __repr__(self) -> str:
        return f"Learner({type(self.model).__name__}, rule='{self.name}', synapses={len(self.synapses)})"

    @property
    def rule(self) -> Rule:
        """The one rule of all synapses.

        Raises:
            ValueError: if they have several; see `rules`.
        """
        different = list(dict.fromkeys(self.rules.values()))
        if len(different) > 1:
            raise ValueError(f"the synapses have different rules ({self.name}); learner.rules has them by module name")
        return different[0]

    @property
    def name(self) -> str:
        """The rule's name, or the names of all, with commas."""
        return ", ".join(dict.fromkeys(one.name for one in self.rules.values()))

    @property
    def followed(self) -> dict[str, int]:
        """Backward passes that each synapse's tracked subspace has followed (see `apical.pathways.subspace`)."""
        found = {name: synapse.subspace for name, synapse in self.synapses.items()}
        return {name: one.passes for name, one in found.items() if one is not None and one.tracking is not None}

    @followed.setter
    def followed(self, passes: Mapping[str, int]) -> None:
        for name, synapse in self.synapses.items():
            if synapse.subspace is not None:
                synapse.subspace.passes = passes.get(name, 0)

    @property
    def owners(self) -> dict[str, nn.Module]:
        """Module name -> whatever may own feedback: synapses and blocks."""
        return {**self.synapses, **self.blocks}

    @property
    def sparse(self) -> bool:
        """Whether some connections don't exist."""
        return any(share.weight < 1 or share.feedback < 1 for share in self.connectivity.values())

    @property
    def adapted(self) -> int:
        """The number of phases that there have been: calls of `adapt` for rules that have one."""
        return self.phases.adapted

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "generator": (str(self.generator.device), self.generator.get_state())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        device, random_state = state.pop("generator")
        self.__dict__.update(state)
        self.generator = generator_from(random_state, device)
        step_hooks.watch(self)
        if self.surgery is not None:
            self.surgery.watch(self.circuit)

    def adapt(self, inputs: Any, targets: Any, criterion: Criterion) -> None:
        """Let the feedback that learns in a phase of its own learn. Call it between ``backward`` and ``optimizer.step``.

        A no-op for every rule without such a phase, so one training loop serves all rules. Feedback changes in place; the
        gradients of weights are left as they are, except by "reinforce", which fills in those of hidden layers, and
        during a rule's `warmup`, when all gradients are dropped so that the optimizer's step moves nothing. An empty
        batch teaches nothing. Under torch.distributed every process calls it, and all learn the mean.

        Args:
            inputs: the batch that the model has just seen, as the model takes it.
            targets: as the criterion takes them.
            criterion: criterion(outputs, targets) -> losses [N], one per sample; its mean or sum is what the loop
                backpropagates.

        Raises:
            ValueError: if a rule needs losses and the criterion does not give one per sample, or if a learner that has such a
                phase is detached.
            RuntimeError: if a rule compares passes, and the model is random beyond PyTorch's global generator, or goes by what
                passes before have left in it; if the loop's losses came by another way than the model's own forward pass; or
                if another thread adapts or measures the model.
        """
        if self.phases.learns:
            self.require_synapses()
            self.phases.adapt(inputs, targets, criterion)

    def require_synapses(self) -> None:
        """Raise a ValueError if the learner is detached."""
        if not self.synapses:
            raise ValueError("the learner is detached, so its model has no synapses any more; call apical.attach again")

    def forward_parameters(self) -> list[nn.Parameter]:
        """Every parameter of the model that is not feedback."""
        feedback = {id(owner._parameters.get("feedback")) for owner in self.owners.values()}
        return [p for p in self.model.parameters() if id(p) not in feedback]

    def feedback_parameters(self) -> list[nn.Parameter]:
        """Feedback that the optimizer trains; empty for rules whose feedback no optimizer moves."""
        owners: list[nn.Module] = [s for s in self.synapses.values() if isinstance(s.plasticity, Trained)]
        if self.blocks and self.rule.trains:
            owners += self.blocks.values()
        found = (kept(owner, "feedback") for owner in owners)
        return list(dict.fromkeys(p for p in found if isinstance(p, nn.Parameter)))

    def state_dict(self) -> dict[str, Any]:
        """The learner's own state, which a checkpoint needs besides ``model.state_dict()``; that holds the feedback.

        The generator's state, the names of the synapses that no signal leaves, how often `adapt` was called, the shapes of the
        activities that its phases have met, and the passes by which subspaces (``rank=``) count when to turn.
        """
        silent = [name for name, synapse in self.synapses.items() if not synapse.sends_back]
        return {
            "generator": self.generator.get_state(),
            "silent": silent,
            "adapted": self.adapted,
            "features": {key: dict(met) for key, met in self.phases.features.items()},
            **({"followed": followed} if (followed := self.followed) else {}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a state made by `state_dict`.

        It takes out of use the feedback that had been.

        Raises:
            ValueError: if it is something else, or of another model.
        """
        if set(state) - {"features", "followed"} != {"generator", "silent", "adapted"}:
            raise ValueError(
                f"not the state of a learner: it holds {sorted(state)}, not 'generator', 'silent' and 'adapted'"
            )
        unknown = [name for name in state["silent"] if name not in self.synapses]
        if unknown:
            raise ValueError(f"the state is of another model: it names {unknown}, which are no synapses here")
        self.generator.set_state(state["generator"].cpu())
        self.phases.adapted = int(state["adapted"])
        self.phases.features = {key: dict(met) for key, met in state.get("features", {}).items()}
        self.followed = state.get("followed", {})
        for name in state["silent"]:
            if not isinstance(self.synapses[name].pathway, FromOutput):
                self.synapses[name].silence()

    def refresh(self, example_input: Any = None) -> None:
        """Take in what was changed in the model since `attach`: a new head, layers added, gone or renamed, resized weights.

        New layers learn by the rule that `attach` was given for their place, layers that are gone are plain again. The feedback
        of all others is kept as it is, where its shape still fits. Feedback that `nn.Module.to_empty` has emptied is drawn anew.
        The optimizer does not know parameters that are new: give it those, by ``optimizer.add_param_group`` or by making it anew.

        Args:
            example_input: a batch as the model takes it now; None: the first samples of the one that `attach` was given.

        Raises:
            ValueError: for what can't be attached, each with a way out; the learner is then as it was. Also if a direct rule
                has no example, if the learner is detached, or for several copies side by side.
            RuntimeError: after fully_shard.

        >>> import apical, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
        >>> learner = apical.attach(net, "fa")
        >>> net[2] = torch.nn.Linear(3, 10)
        >>> learner.refresh()
        >>> learner.synapses["2"] is net[2]
        True
        """
        self.require_synapses()
        self.circuit.require_whole("learner.refresh", "change the model and refresh before fully_shard")
        if self.surgery is not None:
            self.surgery.refresh(example_input)

    def detach(self) -> nn.Module:
        """Give the plain model back: its layers' own classes, no feedback, no hooks. Weights stay as learned.

        Absent connections (see `Connectivity`) stay at zero until the plain model is trained: nothing holds them any more.

        Raises:
            RuntimeError: after fully_shard, which would go on putting feedback there.
        """
        self.circuit.require_whole("learner.detach", "load a full state dict into the plain model, with strict=False")
        while self.undo:
            self.undo.pop()()
        self.synapses, self.blocks, self.passes, self.phases.recorder = {}, {}, [], None
        return self.model


def as_learner(value: object) -> Learner:
    """`value` itself, if it is what `attach` returned.

    Raises:
        TypeError: if not, as for the model.
    """
    if not isinstance(value, Learner):
        raise TypeError(
            f"learner must be what apical.attach returns, got {type(value).__name__}; apical.learner_of(model) has that of a "
            "model that is attached"
        )
    return value


def as_attached(value: object) -> Learner:
    """`as_learner`, whose model has synapses.

    Raises:
        ValueError: if the learner is detached.
    """
    learner = as_learner(value)
    learner.require_synapses()
    return learner

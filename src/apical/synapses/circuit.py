"""What a synapse is connected to: what it shares with the others of a learner, and the answers of its own plasticity."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from apical.synapses.memory import Recycler
from apical.synapses.storage import make_alike
from apical.synapses.ties import settle_ties

if TYPE_CHECKING:
    from apical.synapses.synapse import Geometry, Synapse


ONE_THREAD = (
    "let one thread at a time learn, adapt or measure, and call the model under torch.no_grad() where nothing learns (every "
    "thread starts with gradients)"
)
"""The way out of errors about threads, as the end of a sentence."""


class Heard(Protocol):
    """One call of a synapse in a pass that is recorded."""

    def hear(self, delta: Tensor, signal: Tensor | None, geometry: Geometry) -> None:
        """Keep the error at the synapse's output and the signal at its input, as the backward pass has them."""


class Record(Protocol):
    """A forward pass of the whole model that is being recorded for a phase of its own."""

    def call(self, synapse: Synapse) -> Heard | None:
        """The record of a new call of `synapse`; None if nobody wants to know of it."""

    def call_without_graph(self, synapse: Synapse, x: Tensor) -> None:
        """Count a call that builds no graph, or refuse it."""

    def cut(self, synapse: Synapse, x: Tensor) -> None:
        """Keep the activity x at whose place a scalar pathway cuts the graph."""


class Updater(Protocol):
    """An optimizer that applies updates in the backward pass.

    Attributes:
        meant: whether backward passes are a phase's own, which asks for gradients and means updates.
    """

    meant: bool

    def see(self, x: Tensor) -> None:
        """An input by which a signal leaves, though a pathway cuts it."""

    def expect(self, synapse: Synapse, x: Tensor | None, learns: bool) -> Owned | None:
        """The pass that a call belongs to; None if its weights are to get an ordinary gradient.

        x: the input, if a signal leaves by it. learns: whether the weights do.
        """

    def take(
        self, synapse: Synapse, x: Tensor, delta: Tensor, product: Tensor | None, bias: Tensor | None, feedback: bool
    ) -> Tensor | None:
        """Take one call's update; what is left of the bias's gradient."""

    def drop(self) -> None:
        """Let go of updates that wait, without learning from them."""

    def settle(self) -> None:
        """See anew which synapses there are, and which of them share weights."""


class Owned(Protocol):
    """A forward pass whose updates may be taken."""

    def owner(self, node: Any) -> Updater | None:
        """Who takes them in the backward pass that has come to a call's `node`; None if gradients are ordinary."""
        ...


@dataclass(frozen=True, slots=True)
class Connection:
    """A plasticity's answers for one synapse, settled once so that a backward pass need not ask what kind it is.

    Attributes:
        resolve: resolve(synapse, kept, out), the feedback weights from the tensor that a forward pass kept; None where that is
            the feedback itself.
        gain: factor of the feedback that `resolve` leaves out, because it is cheaper to apply to the signal.
        increment: increment(product), the gradient of feedback that the user's optimizer moves; None where it moves none.
        assign: assign(synapse, value), which takes feedback weights that are set; None where they are computed.
        signs: whether `resolve` takes the sign of what was kept, and does no more. follows: whether `increment` is the product.
        exports: whether plain operations can carry what happens in a backward pass.
    """

    resolve: Callable[..., Tensor] | None = None
    gain: float = 1.0
    increment: Callable[[Tensor | None], Tensor | None] | None = None
    assign: Callable[[nn.Module, Tensor], None] | None = None
    signs: bool = False
    follows: bool = False
    exports: bool = True


class WholePass(Protocol):
    """A forward pass of the whole model, on which a synapse's signal depends if its own error is not enough."""

    def call_without_graph(self, synapse: Synapse, x: Tensor) -> None:
        """Refuse a call that builds no graph, where its signal would be lost."""

    def within(self, label: str) -> bool:
        """Whether a pass is computed again; an error if none of the whole model is open."""
        ...


class Home(Protocol):
    """Where the synapses of a circuit belong: the model of a learner."""

    @property
    def synapses(self) -> Mapping[str, Synapse]:
        """All of them, by name."""
        ...

    def look(self) -> None:
        """Raise a RuntimeError if the model is no longer the one that was attached."""

    def examine(self) -> None:
        """Look closely: at shapes and parametrizations, too."""

    def suspect(self) -> None:
        """Examine the model at its next pass that learns."""


class Circuit:
    """What the synapses of one learner share. Each slot is None where nobody is there.

    Attributes:
        record: the pass that is being recorded, while it is open. Synapses reach it only then: kept within their reach, its
            graph, which holds them, would never be freed.
        updater: who takes updates in the backward pass (`apical.LocalSGD`).
        memory: memory of large results, used again.
        busy: whether passes are made beside the loop's, for a phase or to measure. thread: who makes them.
        home: where they belong; found by a weak reference, for the graph of a pass holds this by each of them.
        watched: whether passes look if the model was changed.
        suspected: whether something was put into the model since passes looked; compiled code asks for no more.
        sharded: names of those whose weights fully_shard has put in shards.
        emptied: names of those whose feedback has lost its values (`nn.Module.to_empty`).
    """

    def __init__(self) -> None:
        self.record: Record | None = None
        self.updater: Updater | None = None
        self.memory = Recycler()
        self.busy, self.thread = False, 0
        self._flag: Any = None
        self.home: Callable[[], Home | None] = _nowhere
        self.watched, self.suspected = True, False
        self.sharded: set[str] = set()
        self.emptied: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        # Home is set by the learner, so that a copy of one layer does not drag along the others.
        return {"memory": self.memory, "suspected": self.suspected, "emptied": self.emptied}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.record, self.updater, self.watched, self.sharded = None, None, True, set()
        self.memory, self.suspected, self.emptied = (
            state["memory"],
            state.get("suspected", False),
            state.get("emptied", set()),
        )
        self.__dict__.setdefault("home", _nowhere)
        self.busy, self.thread, self._flag = False, 0, None

    @property
    def mine(self) -> bool:
        """Whether the thread that is busy asks, or one of autograd's, in which activation checkpointing computes again."""
        return (
            torch.compiler.is_dynamo_compiling()
            or self.thread == get_ident()
            or torch._C._current_graph_task_id() != -1
        )

    def take(self) -> tuple[bool, int]:
        """Be busy in this thread; gives what `busy` and `thread` are to be afterwards.

        Raises:
            RuntimeError: if another thread is busy.
        """
        if self.busy and not self.mine:
            raise RuntimeError(f"another thread is in learner.adapt, or measures the same model; {ONE_THREAD}")
        before = self.busy, self.thread
        self.let((True, get_ident()))
        return before

    def let(self, state: tuple[bool, int]) -> None:
        """Set `busy` and `thread`, as `take` has given them."""
        self.busy, self.thread = state
        if self._flag is not None:
            self._flag.now = self.busy

    def flag(self, kind: Callable[[], Any]) -> Any:
        """What tells compiled nodes whether this is busy, as their library has it."""
        if self._flag is None:
            self._flag = kind()
            self._flag.now = self.busy
        return self._flag

    def refuse(self, what: str, label: str) -> None:
        """Raise a RuntimeError about what came to the synapse `label` while another thread is busy."""
        raise RuntimeError(
            f"{what} '{label}' while another thread was in learner.adapt or measured the model; {ONE_THREAD}"
        )

    @property
    def synapses(self) -> Iterable[Synapse]:
        """All synapses of the learner."""
        home = self.home()
        return () if home is None else home.synapses.values()

    def look(self) -> None:
        """Raise a RuntimeError if the model was changed after `attach`."""
        home = self.home()
        if home is None or not self.watched:
            return
        if self.suspected:
            home.examine()
        else:
            home.look()

    def examine(self) -> None:
        """Look closely: at shapes and parametrizations, too."""
        home = self.home()
        if home is not None and self.watched:
            home.examine()

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """While open, passes may meet layers that the learner does not know, as an audit's do."""
        watched, self.watched = self.watched, False
        try:
            yield
        finally:
            self.watched = watched

    def lost(self, label: str) -> None:
        """Take in that feedback of the synapse `label` has lost its values."""
        self.emptied.add(label)
        self._suspect()

    def settle(self, synapse: Synapse, sharded: bool) -> None:
        """Take in that a synapse was given other weights; or shards of its own."""
        if not sharded:
            settle_ties(synapse, self.synapses)
            self._suspect()
        elif synapse.label not in self.sharded:
            self.sharded.add(synapse.label)
            make_alike(synapse)

    def require_whole(self, what: str, way_out: str) -> None:
        """Raise a RuntimeError if weights lie in shards: `what` needs whole ones."""
        if self.sharded:
            raise RuntimeError(
                f"{what} needs whole weights on every process, and fully_shard has put them in shards; {way_out}"
            )

    def _suspect(self) -> None:
        home = self.home()
        if home is not None:
            home.suspect()

    @contextmanager
    def meant(self) -> Iterator[None]:
        """While open, gradients that are asked for are updates: a phase asks, not the user."""
        updater = self.updater
        if updater is not None:
            updater.meant = True
        try:
            yield
        finally:
            if updater is not None:
                updater.meant = False

    @contextmanager
    def ordinary(self) -> Iterator[None]:
        """While open, passes are made whose backward gives ordinary gradients and moves nothing."""
        updater, self.updater = self.updater, None
        try:
            yield
        finally:
            self.updater = updater


def _nowhere() -> None:
    return None

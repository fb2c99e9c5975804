"""A whole training step as one CUDA graph: tried, captured, replayed, and given up where it can't be one."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as trees

from apical import capturing
from apical.cuda_graphs.cuda import Graphs, graphs_for
from apical.cuda_graphs.graph import Follows, Graph, apart, generators, sow
from apical.cuda_graphs.seen import Kept, Seen
from apical.cuda_graphs.standing import Standing
from apical.distributed import world
from apical.learner import Learner

FEW = 2
"""Steps before the one that is tried: what is made at a first step is there then."""
CAPTURES, REPLAYS = 8, 16
"""Captures after which there have to be so many replays of each, or else they cost more than they spare."""


def captured(step: Callable[..., Any], *example: Any) -> Callable[..., Any]:
    """A whole training step as one CUDA graph: the same numbers, without the time that Python and launches take.

    On a GPU the first calls are steps like any other, made on another stream; the next one is captured, and all that follow are
    replays. So n calls teach what n calls of `step` teach, bit for bit, with the noise of the learner's generator and of
    PyTorch's, `adapt`, `LocalSGD`, and learning rates that a scheduler sets between calls. A new rate is captured anew, so let it
    change once an epoch, or give a torch.optim optimizer its rate as a tensor, with fused=True or capturable=True. Elsewhere,
    where the example lies on the CPU, it is the step itself.

    A graph does what the device did, and nothing that Python did: whatever the step prints, counts or appends to, it does in the
    first calls only. What can't be captured runs as it is, and a warning says why, once: a number is read back, the step sets its
    own learning rate, batchwise magnitudes or a buffer are made anew, a model with dropout passes again in a phase, there are
    several processes. So does, without a warning, a batch of another shape, as an epoch's last one. Changed modes, frozen layers,
    loaded optimizers and surgery on the model are noticed.

    Args:
        step: a function of a batch: forward, loss, backward, `adapt`, the optimizer's step, zero_grad. It returns what it likes.
        example: a batch as `step` takes it, tensors or containers of them, on the device of the model; it is not learned from.

    Returns:
        A function like `step`. What it returns are copies, without a graph of autograd; inputs are copied as well.

    Raises:
        TypeError: for a step that can't be called, or, from the function, for another number of arguments than the example's.
        ValueError: for an example without a tensor.

    >>> import apical, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    >>> learner = apical.attach(net, "fa")
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> def step(x, y):
    ...     loss = torch.nn.functional.cross_entropy(net(x), y)
    ...     loss.backward()
    ...     optimizer.step()
    ...     optimizer.zero_grad()
    ...     return loss
    >>> x, y = torch.randn(8, 4), torch.zeros(8, dtype=torch.long)
    >>> quick = apical.captured(step, x, y)
    >>> bool(quick(x, y) > quick(x, y))
    True
    """
    if isinstance(step, Learner) or not callable(step):
        raise TypeError(f"step must be a function that takes a batch and learns from it, got {step!r}")
    leaves = [one for one in trees.tree_leaves(example) if isinstance(one, Tensor)]
    if not leaves:
        raise ValueError(
            "example holds no tensor; give captured a batch as the step takes it: captured(step, x, y), then step(x, y)"
        )
    return Captured(step, example, graphs_for(leaves[0].device))


class Captured:
    """A training step that becomes a graph once it can.

    Args:
        step: the step. example: a batch. graphs: what makes graphs; None: nothing does.
        tells: whether there is a warning where it can't be one.

    Attributes:
        why: why it is no graph and will be none; None as long as it is, or may be.
    """

    def __init__(
        self, step: Callable[..., Any], example: Sequence[Any], graphs: Graphs | None, *, tells: bool = True
    ) -> None:
        self.step, self._replays = step, 0
        self.why: str | None = None
        self._graphs, self._tells, self._count = graphs, tells, len(example)
        leaves, self._form = trees.tree_flatten(tuple(example))
        self._plain = all(isinstance(one, Tensor) for one in example)
        self._inputs: list[Any] = []
        self._seen = Seen(step)
        self._steps, self._captures, self._ready = 0, 0, False
        self._graph: Graph | None = None
        self._follows: Follows = []
        if graphs is not None and (why := _refused(leaves)) is not None:
            self._stop(why)
        elif graphs is not None:
            self._inputs = [one.clone() if isinstance(one, Tensor) else one for one in leaves]
            self._kind = next(one.device.type for one in leaves if isinstance(one, Tensor))

    @property
    def replays(self) -> int:
        """How many calls were replays, those that were captured among them."""
        return self._replays + (0 if self._graph is None else self._graph.replays)

    def __call__(self, *batch: Any) -> Any:
        """Take one step on a batch."""
        if len(batch) != self._count:
            raise TypeError(f"the captured step takes {self._count} arguments, as its example; got {len(batch)}")
        if self._graphs is None:
            return self.step(*batch)
        result = self._step(self._graphs, batch) if self.why is None else self.step(*batch)
        if self._tells and self.why is not None:
            self._tells = False
            warnings.warn(f"the captured step runs as it is, not as a CUDA graph: {self.why}", stacklevel=2)
        return apart(result)

    def _step(self, graphs: Graphs, batch: tuple[Any, ...]) -> Any:
        leaves: Sequence[Any] = batch
        if not self._plain:
            leaves, form = trees.tree_flatten(batch)
            if form != self._form:
                return self.step(*batch)
        if not all(map(_alike, leaves, self._inputs)):
            return self.step(*batch)
        with torch.no_grad():
            for own, given in zip(self._inputs, leaves, strict=True):
                if isinstance(own, Tensor):
                    own.copy_(given, non_blocking=True)
        if any(one.due(passes) for one, passes in self._follows):
            return graphs.aside(self._run)  # A subspace turns, which is not in the graph.
        graph = self._graph
        if graph is not None:
            standing = Standing.of(self._seen, self._kind)
            if graph.holds(standing):
                return graph.replay()
            if not graph.stands_but_for_options(standing):
                # What is new may make more that is new at its first step.
                self._steps, self._ready = 0, False
                self._seen.settle()
            self._replays, self._graph = self.replays, None
            if self._captures >= CAPTURES and self.replays < REPLAYS * self._captures:
                return self._give_up(
                    f"it had to be captured {self._captures} times in {self.replays} steps, as {graph.told(standing)} change so "
                    "often; let a scheduler step once an epoch, or give torch.optim a rate that is a tensor, with fused=True or "
                    "capturable=True",
                    batch,
                )
            del graph  # With its memory, before another one is made.
        self._steps = 0 if self._seen.warming() else self._steps + 1
        if self._steps <= FEW:
            with self._seen.watching():
                return graphs.aside(self._run)
        return self._capture(graphs, batch) if self._ready else self._try(graphs)

    def _run(self) -> Any:
        return self.step(*trees.tree_unflatten(self._inputs, self._form))

    def _try(self, graphs: Graphs) -> Any:
        """One more step as it is, under the eyes of whoever knows what can't be captured."""
        seen, optimizers = self._seen, len(self._seen.optimizers)
        before, drawn, adapted = Standing.of(seen, self._kind), graphs.random_state(), seen.adapted()
        followed = [(one, one.passes) for one in seen.subspaces]
        random, casts = torch.get_rng_state(), torch.is_autocast_enabled(self._kind)
        with seen.watching(), capturing.trying() as trial:
            result, waits = graphs.watched(self._run)
        self._ready = optimizers == len(seen.optimizers)
        if self._ready:
            self._follows = [(one, one.passes - passes) for one, passes in followed]
            always = any(one.tracking is not None and passes >= one.tracking.every for one, passes in self._follows)
            self._phases = [now - then for then, now in zip(adapted, seen.adapted(), strict=True)]
            moved = not torch.equal(drawn, graphs.random_state())
            hindrances = [
                *trial.hindrances,
                *(["autocast is on around it, which belongs inside, around the forward pass"] * casts),
                *(["subspaces turn in every step; give their rule a larger every="] * always),
                *(["no optimizer takes a step in it, so it is no whole training step"] * (not seen.optimizers)),
                *filter(None, [seen.elsewhere(), before.anew(Standing.of(seen, self._kind), seen)]),
                *(["it draws random numbers on the CPU"] * (not torch.equal(random, torch.get_rng_state()))),
                *(
                    ["a phase passes the batch again, and the model draws random numbers (dropout)"]
                    * (moved and seen.compares())
                ),
                *[f"the CPU waits for the device at {place}, as to read a number" for place in dict.fromkeys(waits)],
            ]
            if hindrances:
                self._stop("; ".join(dict.fromkeys(hindrances)))
        return result

    def _capture(self, graphs: Graphs, batch: Any) -> Any:
        seen, self._captures = self._seen, self._captures + 1
        standing, kept = Standing.of(seen, self._kind), Kept(seen)
        noise = [
            (one, [generators(one) for _ in range(count)])
            for one, count in zip(seen.learners, self._phases, strict=True)
        ]
        grads, recorded, why = [p.grad for p in seen.parameters], None, ""
        try:
            sow(noise)
            with capturing.trying({one: iter(own) for one, own in noise}):
                recorded = graphs.record(self._run, [g for _, own in noise for each in own for g in each])
        except Exception as error:
            kept.restore()
            why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            _let_go(error)
        if recorded is None:
            return self._give_up(why, batch)
        replay, result = recorded
        # Without what autograd keeps of it: nodes that add up gradients belong to the stream on which they were made.
        result = trees.tree_map(lambda one: one.detach() if isinstance(one, Tensor) else one, result)
        self._graph = Graph(seen, standing, replay, result, noise, grads, self._follows)
        return self._graph.first()

    def _give_up(self, why: str, batch: Any) -> Any:
        self._stop(why)
        return self.step(*batch)

    def _stop(self, why: str) -> None:
        self._replays = self.replays
        self.why, self._graph, self._inputs, self._follows = why, None, [], []


def _let_go(error: BaseException) -> None:
    """Free what a step has made until it failed, which its frames hold: autograd's graph belongs to the stream that captures."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__context__


def _refused(example: list[Any]) -> str | None:
    """Why steps on such inputs are never captured, in words."""
    if world() > 1:
        return "several processes learn together"
    found = [one for one in example if isinstance(one, Tensor)]
    if len({one.device for one in found}) > 1:
        return "its inputs lie on several devices"
    return "an input requires a gradient" if any(one.requires_grad for one in found) else None


def _alike(given: Any, own: Any) -> bool:
    """Whether an input can take the place of the example's."""
    if isinstance(own, Tensor):
        return (
            isinstance(given, Tensor)
            and given.shape == own.shape
            and given.dtype == own.dtype
            and given.device == own.device
            and given.requires_grad == own.requires_grad
        )
    return given is own or (isinstance(own, bool | int | float | str) and type(given) is type(own) and given == own)

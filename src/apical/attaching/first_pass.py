"""The first pass that learns shows, without an example input, which synapses no signal leaves; and, by its graph, which weights
are used where no rule has a part.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from apical.attaching import faults
from apical.attaching.ties import follows, parted
from apical.attaching.uses import ADDING, PRODUCT, Use
from apical.distributed import together
from apical.nested import input_of, tensors
from apical.pathways.checkpointing import contested
from apical.plasticity import Transport
from apical.synapses.transformed import compiling, transforming

if TYPE_CHECKING:
    from apical.learner import Learner


class FirstPass:
    """Hooks that look at the first pass that learns, and take out of use the feedback of synapses that no signal leaves.

    Parameters keep their places: averages, vectors and optimizers may count on them by now. Buffers keep theirs if the model
    was copied before, as for an average of them.
    """

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.signal: dict[str, bool] = {}
        self.thread = 0
        self.copied = False
        model = learner.model
        # `start` first: a model that is one synapse has both pre-hooks.
        self.handles = [model.register_forward_pre_hook(self.start)]
        self.handles += [s.register_forward_pre_hook(self.see, with_kwargs=True) for s in learner.synapses.values()]
        self.handles += [model.register_forward_hook(self.finish)]

    def __getstate__(self) -> dict[str, Any]:
        self.copied = True  # For both, the copy and the one that it is made of.
        return self.__dict__

    def _learns(self) -> bool:
        # Under frozen parameters, in compiled or transformed code, or with DDP's buckets already made, nothing is decided.
        return (
            torch.is_grad_enabled()
            and not compiling()
            and not transforming()
            and not together()
            and all(p.requires_grad for p in self.learner.model.parameters())
        )

    def start(self, module: nn.Module, args: Any) -> None:
        """Pre-hook of the model."""
        if torch.is_grad_enabled() and not compiling():
            self.signal, self.thread = {}, get_ident()

    def see(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        """Pre-hook of every synapse; without kwargs, called in one thread after another one has removed it."""
        if not torch.is_grad_enabled() or compiling() or self.thread != get_ident():
            return
        if kwargs is not None and (args or kwargs):
            self.signal[module.label] = self.signal.get(module.label, False) or input_of(args, kwargs).requires_grad

    def finish(self, module: nn.Module, args: Any, output: Any) -> None:
        """Hook of the model: decide, and leave."""
        if not self.signal or not self._learns() or self.thread != get_ident():
            return
        for name, leaves in self.signal.items():
            if not leaves:
                self.learner.synapses[name].silence(copied=self.copied)
        for handle in self.handles:
            handle.remove()


VIEWS = re.compile(
    r"(t|transpose|permute|view|unsafeview|reshapealias|expand|unsqueeze|squeeze|tocopy|clone|alias|stack|select|slice)$"
)
"""Nodes of autograd's graph behind which a weight is itself."""
LOOKUP = re.compile(r"(embedding|embeddingbag|index|indexselect|gather)$")


class FirstLook:
    """A hook that looks at the graph of the first pass that learns, and refuses weights in it that no rule has a part in.

    With an example input, `attach` has seen more than a graph shows: the line of code, and what is detached. But training may go
    another way.
    """

    def __init__(self, learner: Learner) -> None:
        self.learner, self.passed, self.done = learner, False, False
        """Whether a pass was looked at, if only in eval mode; and whether one in training mode was."""
        self.handle = learner.model.register_forward_hook(self.finish)

    def finish(self, module: nn.Module, args: Any, output: Any) -> None:
        """Hook of the model: refuse, or leave."""
        if self.done or compiling() or transforming() or self.learner.circuit.busy:
            return
        if self.passed and not module.training:
            return
        nodes = [one.grad_fn for one in tensors(output) if one.grad_fn is not None]
        if not nodes:
            return
        found = self._found(_Graph(nodes))
        if found:
            raise RuntimeError(
                f"{type(module).__name__} can't learn by '{self.learner.name}':\n"
                + "\n".join(f"- {one}" for one in faults.sentences(found))
            )
        self.passed = True
        self.done = module.training
        if self.done and module not in contested:
            self.handle.remove()

    def _found(self, graph: _Graph) -> dict[str, str]:
        learner, found, covered = self.learner, {}, set()
        place = "a line that attach names if example_input comes by it"
        for name, synapse in learner.synapses.items():
            covered.update(map(id, synapse.parameters()))
            rule, weight = learner.rules[name], synapse._parameters.get("weight")
            if isinstance(rule.plasticity, Transport):
                continue
            if (product := graph.product(weight)) is not None:
                found[name] = faults.outside(synapse.plain, "weight", Use(product, place))
            elif synapse.sends_back and follows(rule, None) and (lookup := graph.lookup(weight)) is not None:
                found[name] = parted(synapse.plain, rule, Use(lookup, place))
        if all(isinstance(rule.plasticity, Transport) for rule in learner.rules.values()):
            return found
        for name, module in faults.judged(learner.model):
            for key, parameter in module._parameters.items():
                if id(parameter) not in covered and (product := graph.product(parameter)) is not None:
                    found.setdefault(name, faults.weight(module, key, Use(product, place)))
        return found


class _Graph:
    """What autograd's graph of a pass tells of parameters."""

    def __init__(self, nodes: list[Any]) -> None:
        self._consumers: defaultdict[Any, list[tuple[Any, int]]] = defaultdict(list)
        self._parameters: dict[int, Any] = {}
        waiting, seen = list(nodes), set(nodes)
        while waiting:
            node = waiting.pop()
            if (variable := getattr(node, "variable", None)) is not None:
                self._parameters[id(variable)] = node
            for place, (before, _) in enumerate(node.next_functions):
                if before is not None:
                    self._consumers[before].append((node, place))
                    if before not in seen:
                        seen.add(before)
                        waiting.append(before)

    def product(self, parameter: Tensor | None) -> str | None:
        """The name of a product in which an activity meets the parameter, and that lets a signal through to it."""
        for node, name, place in self._uses(parameter):
            added = place == 0 if ADDING.match(name) else place > 1 and ("conv" in name or "linear" in name)
            others = (before for at, (before, _) in enumerate(node.next_functions) if at != place)
            if PRODUCT.search(name) and not added and any(map(_is_activity, others)):
                return name
        return None

    def lookup(self, parameter: Tensor | None) -> str | None:
        """The name of an operation that looks rows of the parameter up."""
        return next((name for _, name, _ in self._uses(parameter) if LOOKUP.match(name)), None)

    def _uses(self, parameter: Tensor | None) -> Iterator[tuple[Any, str, int]]:
        """Operations other than synapses' that take the parameter, or a view of it: node, name, and as which operand."""
        waiting = [self._parameters.get(id(parameter))]
        while waiting:
            for consumer, place in self._consumers.get(waiting.pop(), ()):
                name = re.sub(r"Backward\d*$", "", consumer.name()).lower()
                if getattr(consumer, "synapse", None) is not None:
                    continue
                if VIEWS.match(name):
                    waiting.append(consumer)
                else:
                    yield consumer, name, place


def _is_activity(node: Any) -> bool:
    """Whether synapses, or data, have a part in what the node of a graph gives."""
    waiting, seen = [node], {node}
    while waiting:
        node = waiting.pop()
        if node is None:
            return len(seen) > 1  # Of data alone there is no node, and no signal goes there.
        if (
            getattr(node, "synapse", None) is not None or node.name() == "Learn"
        ):  # As the synapse's node is named in C++.
            return True
        for before, _ in node.next_functions:
            if before not in seen:
                seen.add(before)
                waiting.append(before)
    return False

"""Without an example input, the first pass that learns shows which synapses no signal leaves, and, by autograd's graph, which
weights are used outside of their layer's call.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from apical.attaching import faults
from apical.attaching.ties import follows, parted
from apical.attaching.uses import ADDING, PRODUCT, Use
from apical.distributed import together
from apical.nested import input_of, tensors
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
    """A hook that looks at the graph of the first pass that learns, and refuses weights that are used outside of their layer.

    It does not see what `attach` sees with an example input: the line of code, and detached weights.
    """

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.handle = learner.model.register_forward_hook(self.finish)

    def finish(self, module: nn.Module, args: Any, output: Any) -> None:
        """Hook of the model: refuse, or leave."""
        if compiling() or transforming():
            return
        nodes = [one.grad_fn for one in tensors(output) if one.grad_fn is not None]
        if not nodes:
            return
        found = self._found(*_consumers(nodes))
        if found:
            raise RuntimeError(
                f"{type(module).__name__} can't learn by '{self.learner.name}':\n"
                + "\n".join(f"- {one}" for one in faults.sentences(found))
            )
        self.handle.remove()

    def _found(self, consumers: Mapping[Any, list[tuple[Any, int]]], weights: Mapping[int, Any]) -> dict[str, str]:
        found: dict[str, str] = {}
        for name, synapse in self.learner.synapses.items():
            rule, node = self.learner.rules[name], weights.get(id(synapse._parameters.get("weight")))
            if node is None or isinstance(rule.plasticity, Transport):
                continue
            for operation, place in _operations(node, consumers):
                use = Use(operation, "a line that attach names if it is given example_input")
                if PRODUCT.search(operation) and not (ADDING.match(operation) and place == 0):
                    found[name] = faults.outside(synapse.plain, "weight", use)
                elif LOOKUP.match(operation) and synapse.sends_back and follows(rule, None):
                    found[name] = parted(synapse.plain, rule, use)
        return found


def _consumers(nodes: list[Any]) -> tuple[dict[Any, list[tuple[Any, int]]], dict[int, Any]]:
    """Of each node of a graph, those that take its output, and as which operand; id of a parameter -> its node."""
    consumers: defaultdict[Any, list[tuple[Any, int]]] = defaultdict(list)
    parameters, waiting, seen = {}, list(nodes), set(nodes)
    while waiting:
        node = waiting.pop()
        if (variable := getattr(node, "variable", None)) is not None:
            parameters[id(variable)] = node
        for place, (before, _) in enumerate(node.next_functions):
            if before is not None:
                consumers[before].append((node, place))
                if before not in seen:
                    seen.add(before)
                    waiting.append(before)
    return consumers, parameters


def _operations(node: Any, consumers: Mapping[Any, list[tuple[Any, int]]]) -> list[tuple[str, int]]:
    """Names of the operations that meet what `node` gives, seen through views, and as which operand; synapses' own left out."""
    found = []
    for consumer, place in consumers.get(node, ()):
        if getattr(consumer, "synapse", None) is not None:
            continue
        name = re.sub(r"Backward\d*$", "", consumer.name()).lower()
        found += _operations(consumer, consumers) if VIEWS.match(name) else [(name, place)]
    return found

"""Where a model can be cut into stages, what each would cost, and the stages themselves.

`torch.distributed.pipelining.pipeline` splits by torch.export, which leaves operations in place of layers: there would be no
synapses. So the model is traced by torch.fx with its layers whole, and each stage is a piece of that graph.

A boundary is a place before a node of the graph that one value alone passes, and no signal: behind it are only synapses that cut
it and hear the output's error themselves, or it comes from a block named in ``at=``, which has cut it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode
from typing_extensions import override

from apical.learner import Learner
from apical.pathways import Direct, NoPathway
from apical.phases.isolation import preserved
from apical.synapses.synapse import Synapse


@dataclass(frozen=True)
class Part:
    """One stage's share of a model.

    Attributes:
        layers: the model from this stage's input to its output; its modules and parameters are the model's own.
        names: of the modules that it calls, in order.
        given, gives: what comes in and goes out for the example, on the meta device.
        ahead: synapses of the next stage whose input is this stage's output: their signals enter there.
        cost: multiplications and additions of a forward pass of the example.
    """

    layers: nn.Module
    names: tuple[str, ...]
    given: Tensor
    gives: Tensor
    ahead: tuple[Synapse, ...]
    cost: float


def parts_of(learner: Learner, example: Tensor, stages: int, split: Sequence[str] | None) -> list[Part]:
    """The model of a learner in `stages` parts.

    Args:
        learner: attached. example: a batch. split: names of the modules with which a stage begins, all but the first; None:
            such that the dearest stage costs as little as can be.

    Raises:
        ValueError: if the model can't be traced or cut so, with the reason.
    """
    seen = _Seen(learner, example, tuple(split or ()))
    places = seen.cheapest(stages) if split is None else seen.named(split, stages)
    return seen.cut(places)


class _Layers(fx.Tracer):
    """Keeps modules whole, but for those in which a stage begins, and chains of others."""

    def __init__(self, split: Sequence[str], blocks: Sequence[str]) -> None:
        super().__init__()
        self.split, self.blocks = split, blocks

    @override
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if any(name.startswith(f"{module_qualified_name}.") for name in self.split):
            return False
        return type(m) is not nn.Sequential or module_qualified_name in self.blocks


class _Measured(fx.Interpreter):
    """Runs the graph, and keeps what each node costs and gives."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.costs: dict[str, int] = {}
        self.values: dict[str, Any] = {}

    @override
    def run_node(self, n: fx.Node) -> Any:
        with FlopCounterMode(display=False) as counter:
            found = super().run_node(n)
        self.costs[n.name] = counter.get_total_flops()
        self.values[n.name] = found.to("meta") if isinstance(found, Tensor) else None
        return found


class _Seen:
    """A model's graph, with what an example shows of it."""

    def __init__(self, learner: Learner, example: Tensor, split: tuple[str, ...]) -> None:
        self.learner, model = learner, learner.model
        self.blocks = tuple(learner.blocks)
        unknown = [name for name in split if name not in dict(model.named_modules())]
        if unknown:
            raise ValueError(f"split names {unknown}, which are no modules of the model")
        try:
            with preserved(model):
                graph, other = (_Layers(split, self.blocks).trace(model.train(mode)) for mode in (True, False))
        except Exception as error:
            raise ValueError(
                f"torch.fx can't trace the forward pass of {type(model).__name__}, which has to be known to be cut into stages "
                f"({type(error).__name__}: {error}); give an nn.Sequential of its parts"
            ) from error
        if str(graph) != str(other):
            raise ValueError(
                f"the forward pass of {type(model).__name__} itself is another one in eval mode, as with F.dropout(x, training="
                "self.training); let modules such as nn.Dropout do that"
            )
        self.module = fx.GraphModule(model, graph)
        self.nodes = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
        used = [node for node in graph.nodes if node.op == "placeholder" and node.users]
        if len(used) != 1:
            raise ValueError(f"the model takes {len(used)} inputs; a pipeline's model takes one tensor")
        self.input = used[0]
        measured = _Measured(self.module)
        with preserved(model, also=example), torch.no_grad():
            model.eval()
            output = measured.run(example)
        if not isinstance(output, Tensor):
            raise ValueError(f"the model returns a {type(output).__name__}; a pipeline's model returns one tensor")
        self.costs, self.values = measured.costs, measured.values
        self.output = output.to("meta")

    def _crossing(self, place: int) -> list[fx.Node]:
        """The values that are made before the node at `place` and used there or later."""
        behind = set(self.nodes[place:])
        before = [self.input, *self.nodes[:place]]
        return [
            node
            for node in before
            if node.op != "get_attr" and any(user in behind or user.op == "output" for user in node.users)
        ]

    def _module_at(self, node: fx.Node) -> nn.Module | None:
        return self.module.get_submodule(str(node.target)) if node.op == "call_module" else None

    def why_not(self, place: int) -> str | None:
        """Why no stage can begin at `place`; None if one can."""
        if all(node.op == "get_attr" for node in self.nodes[:place]):
            return "it is what the first stage begins with"
        crossing = self._crossing(place)
        if len(crossing) != 1:
            return f"{len(crossing)} values pass there ({', '.join(node.name for node in crossing)}), not one"
        (value,) = crossing
        shown = self.values[value.name]
        if shown is None or shown.dim() == 0 or len(shown) != len(self.output):
            return "what passes there is no tensor with the batch in its first dimension"
        if value.op == "call_module" and value.target in self.blocks:
            return None
        behind = set(self.nodes[place:])
        for user in value.users:
            module = self._module_at(user)
            if user in behind and not (
                isinstance(module, Synapse) and isinstance(module.pathway, Direct | NoPathway) and user.args == (value,)
            ):
                return (
                    f"the signal would pass there, on its way back through '{user.target if module else user.name}'; let a stage "
                    "begin with a layer that hears the output's error itself, or end with a block named in at=[...]"
                )
        return None

    def named(self, split: Sequence[str], stages: int) -> list[int]:
        """The places at which the named modules begin."""
        if len(split) != stages - 1:
            raise ValueError(
                f"split names {len(split)} modules at which a stage begins, which makes {len(split) + 1} stages, but there are "
                f"{stages} processes"
            )
        places = []
        for name in split:
            inside = [i for i, node in enumerate(self.nodes) if _within(str(node.target), name, node.op)]
            if not inside:
                raise ValueError(f"split names '{name}', which the forward pass does not call")
            reason = self.why_not(inside[0])
            if reason is not None:
                raise ValueError(f"no stage can begin with '{name}': {reason}")
            places.append(inside[0])
        if places != sorted(set(places)):
            raise ValueError(f"split names {list(split)}, which the forward pass calls in another order")
        return places

    def cheapest(self, stages: int) -> list[int]:
        """Places that make the dearest stage as cheap as can be."""
        possible = [place for place in range(1, len(self.nodes)) if self.why_not(place) is None]
        if len(possible) < stages - 1:
            names = [str(self.nodes[place].name) for place in possible]
            raise ValueError(
                f"{stages} processes want {stages} stages, and the model can be cut at {len(possible)} places alone "
                f"({', '.join(names) or 'none'}); start fewer processes, or let more blocks cut the signal with at=[...]"
            )
        total = [0.0]
        for node in self.nodes:
            total.append(total[-1] + self.costs[node.name])

        @cache
        def best(start: int, count: int) -> tuple[float, tuple[int, ...]]:
            if count == 1:
                return total[-1] - total[start], ()
            tried = [
                (max(total[place] - total[start], rest), (place, *places))
                for place in possible
                if place > start
                for rest, places in [best(place, count - 1)]
            ]
            return min(tried, default=(float("inf"), ()))

        return list(best(0, stages)[1])

    def cut(self, places: Sequence[int]) -> list[Part]:
        """The stages that begin at these places and at the start."""
        passed = [self.input, *(self._crossing(place)[0] for place in places)]
        shown = [*(self.values[node.name] for node in passed), self.output]
        returned = next(node for node in self.module.graph.nodes if node.op == "output").args[0]
        gives = [*passed[1:], returned]
        found = []
        for stage, (start, end) in enumerate(pairwise((0, *places, len(self.nodes)))):
            own = self.nodes[start:end]
            ahead = [self._module_at(user) for user in gives[stage].users if user in self.nodes[end:]]
            found.append(
                Part(
                    self._piece(own, passed[stage], gives[stage]),
                    tuple(str(node.target) for node in own if node.op == "call_module"),
                    shown[stage],
                    shown[stage + 1],
                    tuple(one for one in ahead if isinstance(one, Synapse) and isinstance(one.pathway, Direct)),
                    sum(self.costs[node.name] for node in own),
                )
            )
        return found

    def _piece(self, own: Sequence[fx.Node], given: fx.Node, gives: fx.Node) -> fx.GraphModule:
        """A module of its own of some nodes; parameters and layers keep the names that they have in the model."""
        graph = fx.Graph()
        made = {given: graph.placeholder("x")}

        def copied(node: fx.Node) -> fx.Node:
            if node not in made:
                made[node] = graph.node_copy(
                    node, copied
                )  # A parameter that the model uses by itself, or one of `own`.
            return made[node]

        for node in own:
            copied(node)
        graph.output(copied(gives))
        return fx.GraphModule(self.learner.model, graph)


def _within(target: str, name: str, op: str) -> bool:
    return op == "call_module" and (target == name or target.startswith(f"{name}."))

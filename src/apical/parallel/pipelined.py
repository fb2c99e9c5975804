"""A model that learns in stages, one in each process, by errors that all of them hear at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.optim import Optimizer

from apical.attaching.attach import Attachable, attach
from apical.attaching.by_module import Rules
from apical.attaching.connectivity import Connectivities
from apical.checks import number
from apical.distributed import rank, together, world
from apical.learner import Learner
from apical.parallel.ends import Roll
from apical.parallel.holding import Holdings
from apical.parallel.products import Products
from apical.parallel.splitting import Part, parts_of
from apical.parallel.stage import Stage
from apical.pathways import Direct, Indirect, NoPathway
from apical.plasticity.base import Phased
from apical.rules import Rule

_RULES = "'dfa', 'kp-direct' and 'shallow' learn in stages"


def pipeline(
    model: nn.Module,
    rule: Rules,
    *,
    example_input: Tensor,
    optimizer: Callable[[list[nn.Parameter]], Optimizer],
    microbatches: int = 8,
    split: Sequence[str] | None = None,
    at: Sequence[str] | None = None,
    generator: torch.Generator | None = None,
    connectivity: Connectivities | None = None,
    timeout: float = 300.0,
) -> Pipeline:
    """Attach `model` by a direct rule and let each process of torch.distributed learn one stage of it (layer-parallel).

    Microbatches go forward from stage to stage, by `torch.distributed.pipelining`. The last stage sends the error at the output
    to all, and each makes its backward pass and its optimizer's step at once: there is no backward wave, and processes idle only
    while the first microbatch comes to them. What is learned is what one process learns from the whole batch.

    Every process calls this, with the same arguments. All start from the first process's weights and feedback; after that each
    keeps its own stage's, and the rest of `model` lies on the meta device.

    Args:
        model: on each process, whole; a network of one tensor that torch.fx can trace, such as an nn.Sequential.
        rule: "dfa", "kp-direct" or "shallow", a `Rule` of such a pathway and plasticity, or a dict from module names to these.
        example_input: one batch [N, *], from which shapes and costs of the stages are known.
        optimizer: makes the optimizer of a list of parameters, as ``lambda p: torch.optim.SGD(p, lr=0.1)``; one that moves each
            parameter by its own gradient alone.
        microbatches: pieces of a batch. Of a batch that they do not divide, as many as divide both are made.
        split: names of the modules with which a stage begins, all but the first. None: such that the dearest stage has as few
            multiplications as can be.
        at, generator, connectivity: as for `apical.attach`.
        timeout: seconds that a stage waits for another one that still runs but does not answer.

    Raises:
        ValueError: for rules whose signals or phases go from layer to layer, and for models that can't be cut, with the reason.
        RuntimeError: without a process group.
    """
    number("microbatches", microbatches, least=1, whole=True)
    number("timeout", timeout, above=0)
    if not together():
        raise RuntimeError(
            "apical.parallel.pipeline needs the processes of torch.distributed, one a stage: start them with torchrun, and call "
            "torch.distributed.init_process_group('gloo') first"
        )
    if not isinstance(example_input, Tensor):
        raise TypeError(f"example_input must be a tensor, got {type(example_input).__name__}")
    if isinstance(model, Attachable):
        raise ValueError(f"{type(model).__name__} can't be learned in stages; give a single network")
    learner = attach(model, rule, example_input=example_input, at=at, generator=generator, connectivity=connectivity)
    try:
        for one in dict.fromkeys(learner.rules.values()):
            _refuse(one)
        parts = parts_of(learner, example_input, world(), split)
        return Pipeline(learner, parts, optimizer, microbatches, timeout)
    except Exception:
        learner.detach()
        raise


def _refuse(rule: Rule) -> None:
    """Raise a ValueError for a rule that can't learn in stages."""
    if any(isinstance(part, Phased) for part in (rule.pathway, rule.plasticity)):
        reason = "learns in a phase of its own (learner.adapt), which passes through the whole model again"
    elif isinstance(rule.pathway, Indirect):
        reason = "sends its signal on from layer to layer, so each stage would wait for the one before"
    elif not isinstance(rule.pathway, Direct | NoPathway):
        reason = (
            "takes a layer's signal from the layer behind it, so each stage would wait for the next one's backward pass, as in "
            "pipelines of backpropagation"
        )
    else:
        return
    raise ValueError(f"rule '{rule.name}' {reason}; {_RULES}")


class Pipeline:
    """One process's stage of a model that is learned in stages; `pipeline` makes it.

    Attributes:
        stage, stages: which one this is, from 0, and how many there are. names: of the modules that each stage calls.
        costs: each stage's share of the model's multiplications.
        layers: this stage's own part of the model; its train() and eval() set the mode in which `step` passes.
        optimizer: this stage's. learner: of the whole model.
    """

    def __init__(
        self,
        learner: Learner,
        parts: Sequence[Part],
        optimizer: Callable[[list[nn.Parameter]], Optimizer],
        microbatches: int,
        timeout: float,
    ) -> None:
        self.learner, self.stage, self.stages, self.microbatches = learner, rank(), len(parts), microbatches
        self.names = [part.names for part in parts]
        total = sum(part.cost for part in parts)
        self.costs = [part.cost / total if total else 1 / len(parts) for part in parts]
        self._part, self._input, self._output = parts[self.stage], parts[0].given, parts[-1].gives
        self._roll = Roll(self.stages, self.stage, timeout)
        self._holdings = Holdings(learner.model, parts, self.stage, self._roll.group)
        self._holdings.spread()
        self._own = Stage(self._part, learner, None if self._last else self._output)
        self._holdings.let_go()
        parameters = self._holdings.parameters()
        self.device = parameters[0].device
        self.optimizer = optimizer(parameters)
        self._products = learner.circuit.updater = Products()
        self._schedules: dict[tuple[int, int], ScheduleGPipe] = {}

    def __repr__(self) -> str:
        return f"Pipeline(rule='{self.learner.name}', stage {self.stage} of {self.stages}: {', '.join(self.names[self.stage])})"

    @property
    def layers(self) -> nn.Module:
        """This stage's own part of the model."""
        return self._own.layers

    @property
    def _last(self) -> bool:
        return self.stage == self.stages - 1

    def step(self, x: Tensor, y: Any, criterion: Callable[[Tensor, Any], Tensor]) -> Tensor:
        """Learn from one batch; every process calls it.

        Args:
            x: the batch [N, *]; only the first stage looks at its values. y: targets, as the criterion takes them; only the last
                stage looks at them.
            criterion: criterion(outputs [N, *], y) -> the batch's loss, one number, as torch.nn.CrossEntropyLoss() gives.

        Returns:
            The loss, on every process.

        Raises:
            PeerLostError: if another stage has ended, naming it.
            ValueError: if the criterion gives no single number.
        """
        with self._stopping():
            self.optimizer.zero_grad()
            self._own.waiting.clear()
            self._products.drop()
            outputs = self._pass(x)
            shape = (len(x), *self._output.shape[1:])
            # Error and loss in one message.
            message = torch.empty(math.prod(shape) + 1, dtype=self._output.dtype, device=self.device)
            if outputs is not None:
                error, loss = _error_of(outputs, y, criterion)
                message[:-1], message[-1] = error.flatten(), loss
            self._send_to_all(message)
            self._own.learn(message[:-1].view(shape))
            self._products.make()
            self.optimizer.step()
        return message[-1].clone()

    def evaluate(self, x: Tensor) -> Tensor:
        """The outputs [N, *] of a batch in eval mode, without gradients, on every process; every process calls it."""
        modes = [(module, module.training) for module in self._own.modules()]
        with self._stopping(), torch.no_grad():
            try:
                self._own.eval()
                outputs = self._pass(x)
            finally:
                for module, training in modes:
                    module.training = training
            if outputs is None:
                outputs = torch.empty(len(x), *self._output.shape[1:], dtype=self._output.dtype, device=self.device)
            self._send_to_all(outputs)
        return outputs

    def gather(self) -> nn.Module:
        """A plain model with what all stages have learned, on every process; every process calls it, and may go on learning."""
        with self._stopping():
            return self._holdings.gather()

    def state_dict(self) -> dict[str, Any]:
        """This stage's state, for a checkpoint: tensors by their names in the whole model, feedback too, and the optimizer's."""
        tensors = {name: tensor.detach() for name, tensor in self._holdings.own()}
        return {
            "stage": self.stage,
            "names": [list(names) for names in self.names],
            "tensors": tensors,
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a state made by `state_dict` in the same stage of the same split.

        Raises:
            ValueError: if it is of another stage or split.
        """
        own = dict(self._holdings.own())
        mine = {"stage": self.stage, "names": [list(names) for names in self.names], "tensors": sorted(own)}
        given = {**state, "tensors": sorted(state.get("tensors", ()))}
        differing = [key for key, value in mine.items() if given.get(key) != value]
        if differing:
            raise ValueError(
                f"not the state of stage {self.stage} of this split: {', '.join(differing)} differ; start as many processes with "
                "the same split, each with its own stage's state, or load what gather() gave into the plain model"
            )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state["tensors"][name])
        self.optimizer.load_state_dict(state["optimizer"])

    def _pass(self, x: Tensor) -> Tensor | None:
        """A forward pass through all stages; the outputs in the last one, None elsewhere."""
        if (x.shape[1:], x.dtype) != (self._input.shape[1:], self._input.dtype):
            raise ValueError(
                f"the batch is {_shaped(x)}, and the stages were made for an example_input of {_shaped(self._input)}"
            )
        if torch.is_autocast_enabled(self.device.type):
            raise ValueError(
                "stages send what the example showed, without autocast; make the model of the dtype it is to have"
            )
        schedule = self._schedule(len(x))
        return schedule.step(x) if self.stage == 0 else schedule.step()

    def _schedule(self, rows: int) -> ScheduleGPipe:
        """What passes a batch of so many rows: without a loss, PyTorch's schedule makes the forward passes alone."""
        if not rows:
            raise ValueError("the batch is empty; leave it out")
        count = math.gcd(rows, self.microbatches)
        key = rows, count
        if key not in self._schedules:
            given, gives = (
                torch.empty(rows // count, *one.shape[1:], dtype=one.dtype, device=self.device)
                for one in (self._part.given, self._part.gives)
            )
            stage = PipelineStage(self._own, self.stage, self.stages, self.device, given, gives, group=self._roll.group)
            self._schedules[key] = ScheduleGPipe(stage, count)
        return self._schedules[key]

    def _send_to_all(self, tensor: Tensor) -> None:
        distributed.broadcast(tensor, group=self._roll.group, group_src=self.stages - 1)

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        """What ends this stage ends the others as well; what ended another one is told."""
        if self._roll.over is not None:
            raise RuntimeError(f"this pipeline has stopped: {self._roll.over}")
        try:
            yield
        except Exception as error:
            told = self._roll.stop(error)
            if told is None:
                raise
            raise told from error


def _shaped(x: Tensor) -> str:
    return f"[{', '.join(['N', *map(str, x.shape[1:])])}] ({x.dtype})"


def _error_of(outputs: Tensor, y: Any, criterion: Callable[[Tensor, Any], Tensor]) -> tuple[Tensor, Tensor]:
    """The gradient of the loss at the outputs, and the loss."""
    leaf = outputs.detach().requires_grad_()
    loss = criterion(leaf, y)
    if not isinstance(loss, Tensor) or loss.dim():
        got = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"the criterion has to give one number, the batch's loss, got {got}; take its mean or sum")
    (error,) = torch.autograd.grad(loss, leaf)
    return error, loss.detach()

"""The clean pass that a noisy one is compared with: the user's own last pass where it can be used, else one made here.

A phase compares a noisy pass with a clean one. The clean pass is the one that the user's loop has just made: its output, the
errors that went back in it, its random state and the statistics of its batch normalizations are kept until `Learner.adapt`.
Where that pass can't be used (another batch, compiled code, a loss other than the criterion's), one is made for the purpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from apical import capturing
from apical.nested import pick, run
from apical.pathways.checkpointing import recomputing
from apical.phases.conditions import backpropagating, casting
from apical.phases.isolation import learning, unchanged
from apical.phases.noisy_pass import Perturb, perturbing
from apical.phases.recording import Pass, Recorder, another, same

if TYPE_CHECKING:
    from apical.learner import Learner
    from apical.phases.layout import Criterion


class CleanPass:
    """A clean pass with per-sample losses, ready to be compared with others of the same batch.

    Attributes:
        losses: of the clean pass [N]; of copies side by side [N, copies]. errors: their gradient at the output [N, outputs].
        scale: what the errors in `calls` were multiplied with: a loss averaged over the batch has 1/N. On a GPU a number there.
        calls: place and number of the call -> what went through there.
    """

    def __init__(self, learner: Learner, inputs: Any, targets: Any, criterion: Criterion) -> None:
        self.learner, self.inputs, self.targets, self.criterion = learner, inputs, targets, criterion
        recorder = learner.phases.recorder
        assert recorder is not None
        self._recorder = recorder
        found = recorder.heard
        self._cut = learner.phases.cuts
        if self._cut and recorder.newest is not None:
            # Hidden gradients are to fit those that the loop's own backward pass has left.
            if found is None:
                raise RuntimeError(
                    "there was no backward pass since the weights moved, and the noisy pass can't be compared with one before; "
                    "call adapt between backward() and the optimizer's step"
                )
            if another(found, inputs):
                raise RuntimeError(
                    "adapt got another batch than the one that was backpropagated, so the noisy pass can't be compared with it; "
                    "give it the batch of the last backward pass"
                )
        whole = self._cut or all(s.computed or s.weight.requires_grad for s in learner.synapses.values())
        found = found if found is not None and same(found, inputs) else None
        _check_way(recorder, found)
        if whole and found is not None:
            if not recorder.alike:
                capturing.hinder("the loss is no multiple of the criterion's: adapt makes a clean pass of its own")
            look = not (capturing.tried() and recorder.alike)
            self._take(found, look)
            if look:
                recorder.alike = self.scale is not None
        else:
            self._make_own_pass()
        if self.scale is None:
            if self.taken.cuts:
                raise RuntimeError(
                    "the loss that was backpropagated is not a multiple of the criterion's on this batch, so the noisy pass "
                    "can't be compared with it; give adapt the batch of the last backward pass, and the criterion whose mean "
                    "or sum that was"
                )
            self._make_own_pass()
        if self.finite and len(self.losses) and not recorder.checked:
            self._check_repeatable()
            recorder.checked = True

    @property
    def finite(self) -> bool:
        """Whether losses and errors are finite numbers."""
        return self.scale is None or isinstance(self.scale, Tensor) or math.isfinite(self.scale)

    def _take(self, found: Pass, look: bool = True) -> None:
        self.taken, self.calls = found, found.calls
        assert found.output is not None
        with torch.enable_grad(), found.conditions.casting():
            output = found.output.detach().requires_grad_()
            losses = self._judge(output)
            (errors,) = torch.autograd.grad(losses.sum(), output)
        self.output, self.losses, self.errors = output.detach(), losses.detach(), errors
        assert found.error is not None
        self.scale: float | Tensor | None = _scale(found.error, errors, look)

    def _make_own_pass(self) -> None:
        """Take a pass that is made here, without a trace in gradients, statistics or random state."""
        learner, recorder = self.learner, self._recorder
        capturing.hinder(
            "adapt makes a clean pass of its own, as weights are frozen or the loop's pass is of another batch"
        )
        with learner.phases.casting():
            heard, conditions = recorder.heard, recorder.conditions()
        # Frozen layers carry errors as well; but only those that learn may get gradients out of "reinforce".
        with (
            unchanged(learner),
            learner.circuit.ordinary(),
            learning(learner.model, None if self._cut else True) as parameters,
            torch.enable_grad(),
            conditions.again(),
            recorder.recording() as passes,
        ):
            output = pick(run(learner.model, self.inputs), learner.output)
            gradients = torch.autograd.grad(self._judge(output).sum(), parameters, allow_unused=True)
        self._take(passes[0])
        if self.taken.cuts:
            # What was heard in this pass is the sum's; the hidden layers' gradients have to fit those of the loop.
            self.scale = self._scale_of_the_loop(heard, parameters, gradients)

    def _scale_of_the_loop(
        self, heard: Pass | None, parameters: list[nn.Parameter], gradients: tuple[Tensor | None, ...]
    ) -> float | None:
        """What the loop multiplied its loss with, or None if its loss is another one than that of the pass made here.

        From the output's error in the loop's pass, if that was seen; else (compiled code) from the gradients that it left next
        to the output, beside `gradients` of the losses' sum.
        """
        if heard is not None:
            assert heard.error is not None
            return _factor([heard.error], [self.errors]) if heard.error.shape == self.errors.shape else None
        pairs = [
            (p.grad, g) for p, g in zip(parameters, gradients, strict=True) if p.grad is not None and g is not None
        ]
        if not pairs:
            raise RuntimeError(
                "there was no backward pass since the weights moved, so what the loss is multiplied with is not known; call "
                "adapt between backward() and the optimizer's step"
            )
        behind = {id(p) for p, g in zip(parameters, gradients, strict=True) if g is None}
        for name, parameter in self.learner.model.named_parameters():
            # The loop's backward ends at cuts, so this came from a phase before.
            if id(parameter) in behind and parameter.grad is not None and bool(parameter.grad.any()):
                raise RuntimeError(
                    f"'{name}' still has the gradient of an earlier batch, and where a backward pass runs in compiled code, the "
                    "sum of both does not tell what the loss was multiplied with; call zero_grad() before every backward "
                    "pass, or accumulate gradients without torch.compile"
                )
        return _factor(*zip(*pairs, strict=True))

    def perturbed(self, perturb: Perturb) -> Tensor:
        """Losses, shaped like `losses`, of the same pass, in which `perturb` may change the activity at any place."""
        with self._again(), self.taken.conditions.clean_statistics(), perturbing(self.learner, perturb):
            return self._losses()

    def true_signals(
        self, places: list[str], sink: Callable[[str, int, Tensor], None], weights: Tensor | None = None
    ) -> None:
        """Backpropagate the losses' sum: sink(place, call, its gradient through that place alone), as soon as it is known.

        Not all at once, because together they are as large as all activities. With `weights`, shaped to go with the losses,
        the sum is one of weighed losses.
        """
        roots: list[Tensor] = []

        def hear(place: str, call: int, signal: Tensor) -> None:
            # The pass is still going on, under its autocast.
            with casting(self.taken.conditions.kind, None):
                sink(place, call, signal)

        def look(place: str, call: int, activity: Tensor) -> Tensor:
            # Activation checkpointing calls this again inside the backward, for values only.
            again = recomputing()
            if not activity.requires_grad:
                activity = activity.detach().requires_grad_()
                if not again:
                    roots.append(activity)
            # An alias, so that other readers of the same activity don't add to its gradient.
            own = activity.view_as(activity)
            if not again:
                own.register_hook(lambda signal: hear(place, call, signal))
            return own

        # Weights' gradients are not wanted here, and take as long as the signals.
        with (
            self._again(),
            backpropagating(self.learner),
            learning(self.learner.model, False),
            torch.enable_grad(),
            perturbing(self.learner, look, places),
        ):
            losses = self._losses()
            total = (losses if weights is None else losses * weights).sum()
            if roots:
                torch.autograd.grad(total, roots, allow_unused=True)

    @contextmanager
    def _again(self) -> Iterator[None]:
        with unchanged(self.learner), self.taken.conditions.again():
            yield

    def cuts(self) -> dict[tuple[str, int], Tensor]:
        """Place and number of the call -> activity, with the graph of what lies before it, for the scalar pathway."""
        if not self.taken.bypassed:
            return self.taken.cuts
        with self._again(), torch.enable_grad(), self._recorder.recording() as passes:
            self._output()
        return passes[0].cuts

    def _output(self) -> Tensor:
        return pick(self.learner.model(*self.taken.args, **self.taken.kwargs), self.learner.output)

    def _losses(self) -> Tensor:
        return self._judge(self._output())

    def _judge(self, output: Tensor) -> Tensor:
        return self.learner.layout.judge(self.criterion, output, self.targets)

    def _check_repeatable(self) -> None:
        again = self.perturbed(lambda place, call, activity: None)
        coarse = self.output.dtype in (torch.bfloat16, torch.float16) or self.taken.conditions.autocast is not None
        tolerance = 5e-2 if coarse else 1e-3
        bound = tolerance * (1 + self.losses.abs().mean())
        if bool((again - self.losses).abs().max() > bound):
            raise RuntimeError(
                "the model gives another output when the same batch passes under the same random state, so noise of a "
                "perturbation can't be told from its own; draw the model's random numbers from PyTorch's global generator "
                "(as nn.Dropout does), or put what is random in eval mode; let a recurrent network set the state that a pass "
                "starts from in that pass; forward hooks that change the model's output have to be "
                "there before attach"
            )


def _check_way(recorder: Recorder, found: Pass | None) -> None:
    """Raise a RuntimeError if the loop went another way than the model's forward, by which alone a pass can be repeated."""
    if others := recorder.astray.since_step(recorder.learner.synapses) - (
        found.counts.keys() if found is not None else set()
    ):
        names = " and ".join(f"'{name}'" for name in sorted(others))
        raise RuntimeError(
            f"{names} learned from a call that was no part of a forward pass of the model, but adapt passes the batch again by "
            "model(inputs), and so would learn another function than the one that is trained. Either:\n"
            "- call the model itself, model(inputs), not model.forward, another method or a part of it (forward may take an "
            "argument that says which way to go);\n"
            "- or attach to the part that the loop calls"
        )


def _scale(heard: Tensor, errors: Tensor, look: bool) -> float | Tensor | None:
    """S such that `heard` is s times `errors`; None if there is no such number, nan if one of them is not finite.

    On a GPU it stays there, and one wait tells all. Without a look, as where a graph is to be made, it is taken for granted.
    """
    a, b = heard.flatten().double(), errors.flatten().double()
    power = b @ b
    nothing = power == 0  # Then it is 1.
    scale = (a @ b + nothing) / (power + nothing)
    if not look:
        return scale
    square, product, rest, s = torch.stack([power, a @ a, (a - scale * b).norm(), scale]).tolist()
    if not (math.isfinite(square) and math.isfinite(product)):
        return math.nan
    coarse = heard.dtype in (torch.bfloat16, torch.float16)
    fits = not product if square == 0 else s > 0 and rest <= (5e-2 if coarse else 1e-3) * product**0.5
    return (s if heard.is_cpu else scale) if fits else None


def _factor(heard: Sequence[Tensor], own: Sequence[Tensor]) -> float | None:
    """How many times longer `heard` is than `own`; nan where they are not finite, None where they are too different.

    From one batch they may differ: by the masks of dropout, by precision.
    """
    a, b = (torch.cat([one.flatten().double() for one in tensors]) for tensors in (heard, own))
    lengths = float(a.norm()), float(b.norm())
    if not all(map(math.isfinite, lengths)):
        return math.nan
    if lengths == (0, 0):
        return 1.0
    return lengths[0] / lengths[1] if float(a @ b) > 0.5 * lengths[0] * lengths[1] else None

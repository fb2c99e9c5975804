"""One model in several threads: called in one while another trains it, measured, and taught by two at once."""

from __future__ import annotations

import re
import sys
import threading
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import apical
from apical.losses import cross_entropy
from apical.pathways.base import WholePass
from comparison import equal
from networks import seed

X, Y = torch.randn(16, 6, generator=seed(1)), torch.randint(3, (16,), generator=seed(2))
OTHER = torch.randn(5, 6, generator=seed(3))
RULES = ("fa", "kp", "dfa", "ifa", "kp-direct", "brsf", "wm", "np", "np-direct", "sg", "sg-direct", "reinforce")
WHOLE = ("dfa", "ifa", "brsf", "np", "reinforce")  # Whose passes have a state.


FOUND = {}


class Meanwhile(nn.Module):
    """Identity, which lets another thread do something whenever the thread that made it passes, and waits for that."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.call = threading.get_ident(), None
        FOUND[id(self)] = []

    @property
    def found(self):
        """What `call` gave; not the module's own, which measurements put back to where it was."""
        return FOUND[id(self)]

    def forward(self, x):
        if self.call is not None and threading.get_ident() == self.main:
            self.found.append(in_another_thread(self.call))
        return x


def in_another_thread(call):
    """What a call gives in another thread, or the error that it raises there."""
    found = []

    def work() -> None:
        try:
            found.append(call())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)
    return found[0]


def net(norm: type[nn.Module] = nn.LayerNorm) -> nn.Sequential:
    torch.manual_seed(0)
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    return nn.Sequential(first, nn.Tanh(), Meanwhile(), second, norm(6), nn.Tanh(), Meanwhile(), nn.Linear(6, 3))


class Checkpointed(nn.Sequential):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


def step(model: nn.Module, learner: apical.Learner) -> None:
    cross_entropy(model(X), Y).mean().backward()
    learner.adapt(X, Y, cross_entropy)


def train(model: nn.Module, learner: apical.Learner, steps: int) -> dict[str, torch.Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(steps):
        step(model, learner)
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


def trained(rule: str, meanwhile=None, norm: type[nn.Module] = nn.LayerNorm, example=X, steps: int = 3):
    """What a model has learned, while another thread did something in every pass, those of phases too; what that gave."""
    model = net(norm)
    learner = apical.attach(model, rule, example_input=example, generator=seed(4))
    if meanwhile is not None:
        model[2].call = model[6].call = lambda: meanwhile(model)
    learned = train(model, learner, steps)
    return learned, model[2].found + model[6].found


@torch.inference_mode()
def both(model: nn.Module) -> list[torch.Tensor]:
    """Its outputs, and those of a plain model with the same weights."""
    plain = net(type(model[4]))
    for module, other in zip(plain, model, strict=True):
        module.training = other.training
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if key in plain.state_dict()})
    return [model(OTHER), plain(OTHER)]


@pytest.mark.parametrize("rule", RULES)
def test_another_thread_may_evaluate_amid_every_pass(rule):
    learned, found = trained(rule, both)
    equal(learned, trained(rule)[0])
    assert len(found) >= 6
    for outputs in found:
        assert torch.equal(*outputs)


@pytest.mark.parametrize("rule", ["np", "sg-direct", "reinforce"])
def test_batch_normalization_tells_threads_apart(rule):
    """In training mode it takes statistics of its own batch in each; the running ones are the model's, for all threads."""
    learned, found = trained(rule, both, nn.BatchNorm1d)
    running = [key for key in learned if "running" in key or "batches" in key]
    expected = trained(rule, None, nn.BatchNorm1d)[0]
    assert running
    equal(
        {k: v for k, v in learned.items() if k not in running}, {k: v for k, v in expected.items() if k not in running}
    )
    for outputs in found:
        assert torch.equal(*outputs)


def test_the_first_pass_that_learns_shows_silent_synapses_whatever_other_threads_do():
    learned, _ = trained("kp", both, example=None)
    equal(learned, trained("kp", example=None)[0])
    assert "0.feedback" not in learned


@pytest.mark.parametrize("rule", WHOLE)
def test_a_second_pass_with_gradients_is_refused_while_one_goes_on_in_another_thread(rule):
    learned, found = trained(rule, lambda model: model(OTHER))
    equal(learned, trained(rule)[0])
    assert found
    for error in found:
        assert isinstance(error, RuntimeError)
        assert re.search("with gradients .*while another thread", str(error))
        assert "torch.no_grad() where nothing learns" in str(error)


@pytest.mark.parametrize("rule", ["fa", "kp", "wm"])
def test_two_threads_may_pass_with_gradients_where_passes_have_no_state(rule):
    learned, found = trained(rule, lambda model: model(OTHER).shape)
    if rule != "wm":  # Its phase passes through the model, too.
        equal(learned, trained(rule)[0])
        assert set(found) == {torch.Size([5, 3])}


@pytest.mark.parametrize("rule", ["dfa", "brsf", "np-direct"])
def test_a_part_called_in_another_thread_is_none_of_the_pass(rule):
    part = torch.randn(5, 6, generator=seed(5), requires_grad=True)
    learned, found = trained(rule, lambda model: model[3](part))
    equal(learned, trained(rule)[0])
    assert all("'3' was called on its own" in str(error) or "while another thread" in str(error) for error in found)


@pytest.mark.parametrize("measure", [apical.alignment, apical.audit])
def test_no_other_thread_can_learn_while_the_model_is_measured(measure):
    """It would learn by backpropagation, or from weights that are not the model's."""
    model = net()
    learner = apical.attach(model, "fa", example_input=X)
    alone = str(measure(learner, X, Y, cross_entropy))
    calls = [lambda: model(OTHER), lambda: measure(learner, X, Y, cross_entropy)]
    for call in calls:
        model[2].call = call
        assert str(measure(learner, X, Y, cross_entropy)) == alone
        assert all(isinstance(error, RuntimeError) and "another thread" in str(error) for error in model[2].found)
    model[2].call = lambda: both(model)
    model[2].found.clear()
    measure(learner, X, Y, cross_entropy)
    for found in model[2].found:
        if measure is apical.audit:
            assert "while another thread audits the model" in str(found)
        else:
            assert torch.equal(*found)


@pytest.mark.parametrize("measure", [apical.alignment, apical.audit])
def test_no_backward_pass_of_another_thread_learns_while_the_model_is_measured(measure):
    """Gradients are put aside then, and synapses are others."""
    model = net()
    learner = apical.attach(model, "kp", example_input=X)
    loss = cross_entropy(model(X), Y).mean()
    model[2].call = lambda: loss.backward(retain_graph=True)
    measure(learner, X, Y, cross_entropy)
    assert model[2].found
    for error in model[2].found:
        assert "the backward pass came to '7' while another thread was in learner.adapt or measured" in str(error)
    assert all(p.grad is None for p in model.parameters())
    loss.backward()
    assert model[0].weight.grad.any()


@pytest.mark.parametrize("rule", ["dfa", "brsf"])
def test_a_model_that_calls_itself_without_gradients_learns(rule):
    """Passes without gradients go by one that learns in the same thread, too."""
    found = []
    for again in (False, True):
        model = net()
        learner = apical.attach(model, rule, example_input=X, generator=seed(4))

        def call_again(module, args, model=model):
            if torch.is_grad_enabled():
                with torch.no_grad():
                    model[5:](args[0])
                    model(OTHER)

        if again:
            model[5].register_forward_pre_hook(call_again)
        found.append(train(model, learner, 3))
    equal(*found)


@pytest.mark.parametrize("rule", ["np", "sg"])
def test_an_evaluation_may_last_from_before_a_phase_to_amid_one_or_after_it(rule):
    model = net()
    learner = apical.attach(model, rule, example_input=X, generator=seed(4))
    twin = net()
    reference = apical.attach(twin, rule, example_input=X, generator=seed(4))
    phase, inside, outputs = threading.Event(), threading.Event(), []

    class Waits(nn.Module):
        def forward(self, x):
            if threading.current_thread() is evaluation:
                inside.set()
                phase.wait(20)
            return x

    def evaluate() -> None:
        outputs.extend(both(model))

    model[1] = nn.Sequential(Waits(), nn.Tanh())
    evaluation = threading.Thread(target=evaluate)
    cross_entropy(model(X), Y).mean().backward()
    evaluation.start()
    inside.wait(20)

    def amid_a_phase(predicted, targets):
        phase.set()
        evaluation.join(20)
        return cross_entropy(predicted, targets)

    learner.adapt(X, Y, amid_a_phase)
    step(twin, reference)
    assert torch.equal(*outputs)
    assert torch.equal(learner.synapses["7"].feedback, reference.synapses["7"].feedback)


@pytest.mark.parametrize("rule", WHOLE)
@pytest.mark.parametrize("alive", [True, False])
def test_a_pass_that_was_interrupted_in_another_thread_keeps_no_other_from_learning(rule, alive):
    model = net()
    learner = apical.attach(model, rule, example_input=X, generator=seed(4))
    interrupted, done = threading.Event(), threading.Event()

    def work() -> None:
        handle = model[5].register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(X)
        handle.remove()
        interrupted.set()
        if alive:
            done.wait(20)

    thread = threading.Thread(target=work)
    thread.start()
    interrupted.wait(20)
    if not alive:
        thread.join(20)
    step(model, learner)
    done.set()
    thread.join(20)
    assert model[3].weight.grad.any()


def interrupt(module, args, output):
    raise KeyboardInterrupt


@pytest.mark.parametrize("rule", [*WHOLE, "sg", "np-direct"])
def test_the_backward_pass_and_adapt_may_run_in_other_threads(rule):
    """As the backward pass does on a GPU, and activation checkpointing's second forward pass in it."""
    found = []
    for run in (lambda call: call(), in_another_thread):
        model = net()
        block = model[3]
        model[3] = Checkpointed(block)
        learner = apical.attach(model, rule, example_input=X, generator=seed(4))
        run(cross_entropy(model(X), Y).mean().backward)
        run(lambda learner=learner: learner.adapt(X, Y, cross_entropy))
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        found[-1] |= dict(model.named_buffers())
    equal(*found)
    assert found[0]["0.weight"].any()


def test_two_threads_train_two_models():
    expected = {rule: trained(rule)[0] for rule in ("dfa", "reinforce")}
    pairs = [("dfa", "reinforce"), ("reinforce", "dfa")]
    for amid, other in pairs:
        found: list = []
        learned, found = trained(amid, lambda model, rule=other: trained(rule)[0])
        equal(learned, expected[amid])
        equal(found[0], expected[other])


@contextmanager
def evaluated_meanwhile(model: nn.Module):
    """While open, another thread evaluates the model again and again, and threads take turns as often as they can."""
    done, found = threading.Event(), []

    def work() -> None:
        while not done.is_set():
            try:
                found.append(both(model))
            except Exception as error:
                found.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield found
    finally:
        done.set()
        worker.join()
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("rule", ["dfa", "np", "sg", "reinforce"])
def test_evaluations_at_any_moment(rule):
    """Whenever threads take turns. (Outputs may be those of weights between two steps.)"""
    model = net()
    learner = apical.attach(model, rule, example_input=X, generator=seed(4))
    with evaluated_meanwhile(model) as found:
        learned = train(model, learner, 10)
    equal(learned, trained(rule, steps=10)[0])
    assert found
    assert not [error for error in found if isinstance(error, Exception)]


def test_the_first_pass_leaves_a_hook_that_a_refused_thread_may_be_walking_through():
    model = net()
    apical.attach(model, "dfa", example_input=X)
    walks = []

    def meanwhile(model):
        if not walks:
            with pytest.raises(RuntimeError, match="while another thread"):
                model(X)
            walks.append(iter(model._forward_hooks.items()))  # As PyTorch does when a pass fails.
            next(walks[0])

    model[2].call = lambda: meanwhile(model)
    model(X).sum().backward()
    assert len(list(walks[0])) == len(model._forward_hooks) - 1


class Slow(WholePass):
    """Lets another thread go to work between the look whether a pass is open and what then comes."""

    meanwhile = None

    @property
    def open(self) -> bool:
        found, meanwhile, self.meanwhile = self._open, self.meanwhile, None
        if meanwhile is not None and not found:
            meanwhile()
        return found

    @open.setter
    def open(self, value: bool) -> None:
        self._open = value


def test_of_two_threads_that_begin_at_the_same_moment_one_is_refused():
    model, found = nn.Sequential(nn.Linear(6, 3), nn.Identity()), []
    one = Slow("something is drawn for all")
    one.follow(model)

    def call() -> None:
        try:
            found.append(model(OTHER))
        except RuntimeError as error:
            found.append(str(error))

    other = threading.Thread(target=call)
    model[1].register_forward_hook(lambda *_: other.join(20) if threading.current_thread() is not other else None)

    def meanwhile() -> None:
        other.start()
        other.join(0.2)  # It waits for its turn.

    one.meanwhile = meanwhile
    model(X)
    assert "another thread" in found[0]

"""A captured step teaches what the step itself teaches, bit for bit; what can't be captured runs as it is and says why."""

from __future__ import annotations

import copy
import gc
import re
import warnings
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import apical
from apical.cuda_graphs.step import FEW, Captured
from comparison import equal
from cuda_graphs.emulated import Emulated
from learning import RULES, attach
from networks import X, Y, plain_chain, seed

BATCHES = [(torch.randn(8, 4, generator=seed(n)), torch.randint(3, (8,), generator=seed(100 + n))) for n in range(50)]


def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def normed() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))


class Loop:
    """A network that learns by a rule, with its whole step."""

    def __init__(self, rule="fa", optimizer: str = "SGD", model: Callable[[], nn.Module] = plain_chain) -> None:
        self.net = model()
        self.learner = attach(self.net, rule, example=X)
        self.optimizer = (
            apical.LocalSGD(self.learner, lr=0.1, momentum=0.9)
            if optimizer == "LocalSGD"
            else getattr(torch.optim, optimizer)(self.net.parameters(), lr=0.1, momentum=0.9)
        )

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        loss = criterion(self.net(x), y).mean()
        loss.backward()
        self.learner.adapt(x, y, criterion)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    def state(self) -> dict[str, Tensor]:
        own = {
            f"{n}.{k}": v for n, s in enumerate(self.optimizer.state.values()) for k, v in s.items() if v is not None
        }
        return {**self.net.state_dict(), **own, "generator": self.learner.state_dict()["generator"]}


def silent(call, *batch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return call(*batch)


def side_by_side(one: Loop, other: Loop, batches=BATCHES, after=lambda loop: None) -> Captured:
    """The same steps, captured and as they are."""
    graph = Captured(one.step, (X, Y), Emulated())
    losses = []
    for batch in batches:
        losses.append((silent(graph, *batch), other.step(*batch).detach()))
        after(one), after(other)
    assert graph.why is None
    for got, expected in losses:
        assert torch.equal(got, expected)
    equal(one.state(), other.state(), rtol=0, atol=0)
    assert one.learner.adapted == other.learner.adapted
    return graph


@pytest.mark.parametrize(
    ("rule", "optimizer"),
    [
        *((rule, "SGD") for rule in RULES if rule != "brsf"),
        *((rule, "LocalSGD") for rule in ("bp", "fa", "dfa", "kp", "wm", "np", "reinforce")),
    ],
)
def test_fifty_steps_are_those_of_the_step_itself(rule, optimizer):
    graph = side_by_side(Loop(rule, optimizer), Loop(rule, optimizer))
    assert graph.replays == graph._graphs.replayed == len(BATCHES) - FEW - 1
    assert graph._graphs.recorded == 1


class Together(Loop):
    """Two networks side by side."""

    def __init__(self, rule: str) -> None:
        self.net = apical.replicate([plain_chain(), chain_of_another_seed()], example_input=X)
        self.learner = apical.attach(self.net, rule, example_input=X.expand(2, *X.shape), generator=seed(1))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        both = x.expand(2, *x.shape), y.expand(2, *y.shape)
        loss = criterion(self.net(both[0]).flatten(0, 1), both[1].flatten()).sum()
        loss.backward()
        self.learner.adapt(*both, criterion)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss


def chain_of_another_seed() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))


def test_copies_side_by_side_draw_noise_of_their_own():
    side_by_side(Together("wm"), Together("wm"), BATCHES[:12])


class Stepped(Loop):
    """With a schedule, moved after every `every` steps."""

    def __init__(self, every: int, *args, **options) -> None:
        super().__init__(*args, **options)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9)
        self.every, self.count = every, 0

    def tick(self) -> None:
        self.count += 1
        if self.count % self.every == 0:
            self.scheduler.step()


@pytest.mark.parametrize("optimizer", ["SGD", "LocalSGD"])
@pytest.mark.parametrize("rule", ["kp", "wm"])
def test_a_scheduler_sets_rates_between_steps(rule, optimizer):
    graph = side_by_side(Stepped(10, rule, optimizer), Stepped(10, rule, optimizer), after=Stepped.tick)
    assert graph._graphs.recorded == 5


class Filled(Stepped):
    """With a rate that is a tensor, which schedulers fill in place."""

    def __init__(self) -> None:
        super().__init__(1)
        rate = torch.tensor(0.1)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=rate, momentum=0.9, fused=True)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9)


def test_a_rate_that_is_a_tensor_may_change_with_every_step():
    graph = side_by_side(Filled(), Filled(), BATCHES[:20], after=Stepped.tick)
    assert graph._graphs.recorded == 1


def like_the_step(one: Loop, other: Loop, why: str, batches=BATCHES[:8], graphs=None, after=lambda loop: None) -> None:
    """Refused with one warning, and yet the same steps."""
    graph = Captured(one.step, (X, Y), graphs or Emulated())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for batch in batches:
            graph(*batch), other.step(*batch)
            after(one), after(other)
    (only,) = told
    assert re.search(f"runs as it is, not as a CUDA graph: .*{why}", str(only.message))
    assert only.filename == __file__
    equal(one.state(), other.state(), rtol=0, atol=0)


def test_rates_that_change_with_every_step_are_not_captured_for_ever():
    loops = Stepped(1), Stepped(1)
    like_the_step(
        *loops,
        r"captured 8 times in 8 steps, as the optimizer's options \(learning rate\)",
        BATCHES[:20],
        after=Stepped.tick,
    )


class Reads(Loop):
    def step(self, x, y):
        return super().step(x, y).item()


class Schedules(Stepped):
    def step(self, x, y):
        loss = super().step(x, y)
        self.scheduler.step()
        return loss


class Frozen(Loop):
    def step(self, x, y):
        self.net.train(not self.net.training)
        return super().step(x, y)


class Draws(Loop):
    count = 0

    def step(self, x, y):
        self.count += 1
        torch.manual_seed(self.count)
        return super().step(x + 0.1 * torch.randn(4), y)


class Halves(Loop):
    def step(self, x, y):
        loss = criterion(self.net(x), y).mean()
        loss.backward()
        return loss


class OtherBatch(Loop):
    def step(self, x, y):
        loss = criterion(self.net(x), y).mean()
        loss.backward()
        self.learner.adapt(x.clone(), y, criterion)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss


class Weighed(Loop):
    def step(self, x, y):
        loss = (criterion(self.net(x), y) * torch.arange(8.0)).mean()
        loss.backward()
        self.learner.adapt(x, y, criterion)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss


class Counting(torch.optim.SGD):
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["step"] = self.state[parameter].get("step", 0) + 1
        return super().step(closure)


class Counts(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.optimizer = Counting(self.net.parameters(), lr=0.1)


class Dropping(Emulated):
    def random_state(self) -> Tensor:
        return torch.get_rng_state()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (Reads, r"the CPU waits for the device at test_captured\.py:\d+, as to read a number$"),
        (lambda: Schedules(100), "changes its optimizer's options itself"),
        (Frozen, "changes modes of modules"),
        (Draws, "draws random numbers on the CPU"),
        (Halves, "no optimizer takes a step"),
        (Counts, "Counting counts 'step' outside of the device; make it with fused=True or capturable=True"),
        (lambda: Loop("brsf"), "'magnitudes' of LinearSynapse is made anew in every step"),
        (lambda: Weighed("np"), "the loss is no multiple of the criterion's"),
        (lambda: OtherBatch("np"), "adapt is given another tensor than the model was"),
        (lambda: Loop(apical.rule("wm", alternate=True)), "takes every second layer by turns"),
    ],
)
def test_what_cannot_be_captured_runs_as_it_is_and_says_why(make, why):
    like_the_step(make(), make(), why)


def test_a_phase_does_not_pass_again_what_the_graph_would_draw_anew():
    def loop() -> Loop:
        return Loop("np", model=lambda: nn.Sequential(nn.Dropout(0.3), plain_chain()))

    graph = Captured(loop().step, (X, Y), Dropping(), tells=False)
    for batch in BATCHES[:4]:
        graph(*batch)
    assert "a phase passes the batch again, and the model draws random numbers (dropout)" in str(graph.why)


@pytest.mark.parametrize("rule", ["np", "reinforce"])
def test_a_pool_of_noise_is_drawn_in_the_graph(rule, monkeypatch):
    monkeypatch.setattr("apical.noise.POOL", 16)
    side_by_side(Loop(rule), Loop(rule), BATCHES[:12])


def test_a_capture_that_fails_holds_nothing_of_its_graph():
    made = []

    class Loses(Emulated):
        def record(self, run, generators):
            first = None
            try:
                run()
            except RuntimeError as error:
                first = error
            raise first

    class Told(Loop):
        def step(self, x, y):
            output = self.net(x)
            made.append(weakref.ref(output))
            if len(made) >= FEW + 2:
                raise RuntimeError("inside the step")
            loss = criterion(output, y).mean()
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    loop = Told()
    call = Captured(loop.step, (X, Y), Loses())
    for batch in BATCHES[: FEW + 1]:
        call(*batch)
    gc.disable()
    try:
        with pytest.raises(RuntimeError, match="inside the step"):
            call(*BATCHES[0])
        assert made[FEW + 1]() is None
    finally:
        gc.enable()


class Breaks(Emulated):
    def record(self, run, generators):
        run()
        raise RuntimeError("operation not permitted when stream is capturing\nand more")


@pytest.mark.parametrize("optimizer", ["SGD", "LocalSGD"])
@pytest.mark.parametrize("rule", ["fa", "wm", "np"])
def test_a_capture_that_fails_leaves_no_trace_in_python(rule, optimizer):
    class Undone(Breaks):
        """Computes nothing, as a GPU while it captures."""

        def record(self, run, generators):
            held = {name: value.clone() for name, value in one.state().items()}
            try:
                return super().record(run, generators)
            finally:
                with torch.no_grad():
                    for name, value in one.state().items():
                        value.copy_(held[name])

    one, other = Loop(rule, optimizer), Loop(rule, optimizer)
    like_the_step(one, other, "RuntimeError: operation not permitted when stream is capturing$", graphs=Undone())
    assert one.learner.adapted == other.learner.adapted


def test_another_shape_is_a_step_as_it_is():
    odd = [(x[:5], y[:5]) if n % 7 == 6 else (x, y) for n, (x, y) in enumerate(BATCHES[:30])]
    graph = side_by_side(Loop("np", "LocalSGD"), Loop("np", "LocalSGD"), odd)
    assert (graph._graphs.recorded, graph._graphs.replayed) == (1, 30 - 4 - FEW - 1)


def test_weights_stand_still_while_a_rule_warms_up():
    rule = apical.rule("np", warmup=6)
    graph = side_by_side(Loop(rule), Loop(rule), BATCHES[:12])
    assert (graph._graphs.recorded, graph._graphs.replayed) == (1, 12 - 6 - FEW - 1)


def test_gradients_dropped_first_are_dropped_in_the_graph():
    class First(Loop):
        def step(self, x, y):
            self.optimizer.zero_grad()
            loss = criterion(self.net(x), y).mean()
            loss.backward()
            self.optimizer.step()
            return loss

    one, other = First(), First()
    graph = side_by_side(one, other, BATCHES[:12])
    assert graph._graphs.recorded == 1
    for p, q in zip(one.net.parameters(), other.net.parameters(), strict=True):
        assert (p.grad is None and q.grad is None) or torch.equal(p.grad, q.grad)


def loaded(loop: Loop) -> None:
    loop.optimizer.load_state_dict(copy.deepcopy(loop.optimizer.state_dict()))


def frozen(loop: Loop) -> None:
    loop.net[0].requires_grad_(False)


def still(loop: Loop) -> None:
    loop.net.eval()


def other_feedback(loop: Loop) -> None:
    synapse = loop.learner.synapses["3"]
    synapse.feedback = 2 * synapse.feedback


def another_head(loop: Loop) -> None:
    torch.manual_seed(3)
    loop.net[5] = nn.Linear(6, 3)
    loop.learner.refresh()
    loop.optimizer.add_param_group({"params": list(loop.net[5].parameters())})


def detached(loop: Loop) -> None:
    loop.learner.detach()


@pytest.mark.parametrize("change", [loaded, frozen, still, other_feedback, another_head, detached])
def test_what_changes_between_steps_is_noticed(change):
    def after(loop: Loop) -> None:
        loop.steps = getattr(loop, "steps", 0) + 1
        if loop.steps == 8:
            change(loop)

    graph = side_by_side(Loop("fa", model=normed), Loop("fa", model=normed), BATCHES[:16], after)
    assert graph._graphs.recorded == 2


def test_an_unknown_layer_is_refused_as_in_the_step():
    loop = Loop()
    graph = Captured(loop.step, (X, Y), Emulated())
    for batch in BATCHES[:5]:
        graph(*batch)
    loop.net[0] = nn.Linear(4, 6)
    with pytest.raises(RuntimeError, match="refresh"):
        graph(*BATCHES[5])


def test_what_is_returned_stays_as_it_is():
    loop = Loop()
    graph = Captured(lambda x, y: {"loss": loop.step(x, y), "rows": len(x)}, (X, Y), Emulated())
    found = [graph(*batch) for batch in BATCHES[:6]]
    assert len({float(one["loss"]) for one in found}) == 6
    assert all(one["rows"] == 8 and not one["loss"].requires_grad for one in found)


def test_on_the_cpu_it_is_the_step():
    loop, other = Loop("kp"), Loop("kp")
    step = apical.captured(loop.step, X, Y)
    for batch in BATCHES[:6]:
        assert torch.equal(silent(step, *batch), other.step(*batch))
    equal(loop.state(), other.state(), rtol=0, atol=0)


def test_what_makes_no_sense_is_refused_by_name():
    loop = Loop()
    with pytest.raises(TypeError, match="step must be a function"):
        apical.captured(loop.learner, X, Y)
    with pytest.raises(ValueError, match="example holds no tensor"):
        apical.captured(loop.step)
    with pytest.raises(TypeError, match="takes 2 arguments, as its example; got 1"):
        apical.captured(loop.step, X, Y)(X)
    with pytest.warns(UserWarning, match="an input requires a gradient"):
        Captured(loop.step, (X.clone().requires_grad_(), Y), Emulated())(X, Y)

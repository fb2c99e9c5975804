"""Two threads train two models, or one evaluates the model that another one trains: bit for bit as alone, or refused by name."""

import sys
import threading
from functools import partial

import pytest
import torch
import torch._dynamo  # Here, so that children need not: optimizers ask for it.
from torch import nn

from faults.campaign.children import fork, together

pytestmark = pytest.mark.faults

STEPS, TRIES = 60, 3
PAIRS = ["fa dfa", "kp np", "wm reinforce", "sg brsf", "np-direct ifa", "dfa dfa", "np np", "reinforce reinforce"]
RULES = ["fa", "usf", "kp", "kp+local", "wm", "dfa", "ifa", "brsf", "np", "np-direct", "sg", "reinforce"]


class Training:
    """A model that learns by a rule; `learned` is what it has in the end, or the error that stopped it."""

    def __init__(self, spec: str, seed: int) -> None:
        import apical

        torch.manual_seed(seed)
        rule, _, local = spec.partition("+")
        sizes = [nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 4)]
        self.model, self.x, self.y = nn.Sequential(*sizes), torch.randn(16, 12), torch.randint(4, (16,))
        self.learner = apical.attach(self.model, rule, example_input=self.x)
        self.optimizer = (
            apical.LocalSGD(self.learner, lr=0.05) if local else torch.optim.SGD(self.model.parameters(), 0.05)
        )
        self.criterion = nn.CrossEntropyLoss(reduction="none")
        self.learned: object = None

    def run(self) -> None:
        try:
            for _ in range(STEPS):
                self.criterion(self.model(self.x), self.y).mean().backward()
                self.learner.adapt(self.x, self.y, self.criterion)
                self.optimizer.step()
                self.optimizer.zero_grad()
            self.learned = {name: value.tolist() for name, value in self.model.state_dict().items()}
        except Exception as error:
            self.learned = str(error)


def alone(spec: str, seed: int) -> object:
    training = Training(spec, seed)
    training.run()
    return training.learned


def two_models(pair: str, seed: int) -> None:
    expected = [alone(spec, seed) for spec in pair.split()]
    both = [Training(spec, seed) for spec in pair.split()]
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=one.run) for one in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("same" if [one.learned for one in both] == expected else [str(one.learned)[:300] for one in both])


def one_model(spec: str, seed: int, mode) -> None:
    expected, training = alone(spec, seed), Training(spec, seed)
    done, told, calls = threading.Event(), set(), 0

    def call() -> None:
        nonlocal calls
        while not done.is_set():
            try:
                with mode():
                    output = training.model(training.x[:5])
                calls += 1
                told.update(() if output.isfinite().all() else ["not finite"])
            except Exception as error:
                told.add(str(error))

    other = threading.Thread(target=call)
    sys.setswitchinterval(1e-5)
    other.start()
    training.run()
    done.set()
    other.join()
    if isinstance(training.learned, str):
        told.add(training.learned)
    elif training.learned != expected:
        told.add("other weights")
    words = {"refused" if "another thread" in one and "torch.no_grad()" in one else one[:300] for one in told}
    print(*(words or {"same" if calls else "never called"}))


def tried(tmp_path, calls) -> list[tuple[object, str]]:
    """What every call tells, each in a child of its own."""
    starts = [
        partial(fork, call, tmp_path / str(number), cwd=tmp_path, name=name)
        for number, (name, call) in enumerate(calls)
    ]
    return [(child.name, child.output.strip() or child.errors[-300:]) for child in together(starts)]


def test_two_threads_train_two_models(tmp_path, figure):
    found = tried(tmp_path, [(pair, partial(two_models, pair, n)) for pair in PAIRS for n in range(TRIES)])
    wrong = [one for one in found if one[1] != "same"]
    figure("two threads train two models, 8 pairs of rules", f"{len(found) - len(wrong)} of {len(found)} bit-identical")
    assert not wrong


def test_a_model_is_evaluated_while_it_is_trained(tmp_path, figure):
    calls = [(spec, partial(one_model, spec, n, torch.inference_mode)) for spec in RULES for n in range(TRIES)]
    found = tried(tmp_path, calls)
    wrong = [one for one in found if one[1] != "same"]
    figure("one model evaluated from another thread", f"{len(found) - len(wrong)} of {len(found)} bit-identical")
    assert not wrong


def test_a_model_is_called_with_gradients_while_it_is_trained(tmp_path, figure):
    calls = [(spec, partial(one_model, spec, n, torch.enable_grad)) for spec in RULES for n in range(TRIES)]
    found = tried(tmp_path, calls)
    # Passes that may learn draw magnitudes, in whichever thread.
    drawn = [one for one in found if one[0] == "brsf" and "other weights" in one[1]]
    refused, same = ([one for one in found if one[1] == word] for word in ("refused", "same"))
    told = f"{len(same)} of {len(found)} bit-identical, {len(refused)} refused, {len(drawn)} with other draws"
    figure("one model called with gradients from another thread", told)
    assert not [one for one in found if one not in drawn + refused + same]

"""An attached model computes what the plain one does, to the bit, whatever happens to its tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from learning import RULES, WIRED, attach, gradients
from networks import IMAGES, Branching, X, Y, chain


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_outputs_are_bitwise_those_of_the_plain_model(rule, dtype):
    plain, model, x = chain(dtype=dtype), chain(dtype=dtype), X.to(dtype)
    attach(model, rule, x)
    for _ in range(2):
        torch.manual_seed(3)
        expected = plain(x)
        torch.manual_seed(3)
        got = model(x)
        assert got.requires_grad
        assert torch.equal(got, expected)
        assert torch.equal(model[1].running_mean, plain[1].running_mean)
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        plain.eval(), model.eval()
        with context():
            assert torch.equal(model(x), plain(x))
        plain.train(), model.train()
    assert list(dict(plain.named_parameters())) == [n for n, _ in model.named_parameters() if "feedback" not in n]


@pytest.mark.parametrize("rule", [r for r in RULES if r != "ifa"])
def test_outputs_of_a_branching_convolutional_model_are_bitwise_those_of_the_plain_one(rule):
    plain, model = Branching(), Branching()
    token = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
    attach(model, rule, {"x": IMAGES, "token": token})
    for _ in range(2):
        assert torch.equal(model(IMAGES, token), plain(IMAGES, token))
        assert torch.equal(model(IMAGES, token=token), plain(IMAGES, token=token))
    for part, other in zip(model.buffers(), plain.buffers(), strict=False):
        assert part.dtype == other.dtype


def test_an_empty_batch_passes_and_gives_zero_gradients():
    for rule in ("bp", "fa", "kp", "dfa", "kp-direct", "ifa"):
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
        attach(model, rule)
        model(X[:0]).sum().backward()
        for name, p in model.named_parameters():
            assert p.grad is None or not p.grad.any(), name
        assert model[0].weight.grad is not None


@pytest.mark.parametrize("rule", RULES)
def test_the_output_may_be_changed_in_place_as_before(rule):
    """`logits /= temperature`, `out.clamp_(...)`: ordinary uses of an ordinary nn.Module."""
    models = [chain(), chain()]
    for model, in_place in zip(models, (True, False), strict=True):
        model.eval()
        attach(model, rule)
        out = model(X)
        out = out.mul_(0.5) if in_place else out * 0.5
        nn.functional.cross_entropy(out, Y).backward()
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        assert p.grad is None or torch.equal(p.grad, q.grad)


@pytest.mark.parametrize("rule", RULES)
def test_activations_in_place_learn_as_those_that_are_not(rule):
    grads = []
    for in_place in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(4, 6), nn.ReLU(in_place), nn.Linear(6, 6), nn.ReLU(in_place), nn.Linear(6, 6), nn.Linear(6, 3)
        )
        attach(model, rule)
        grads.append(gradients(model))
    assert grads[0].keys() == grads[1].keys()
    for name, g in grads[0].items():
        torch.testing.assert_close(grads[1][name], g, rtol=1e-6, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("rule", [r for r in WIRED if r != "ifa"])
@pytest.mark.parametrize("small", [0, 6 * len(X), 2**16])
def test_signals_made_with_the_error_are_those_made_when_autograd_comes_by(rule, small, monkeypatch):
    """Direct signals of small activities are made at once; none, some and all of them here."""
    found = []
    for limit in (0, small):
        monkeypatch.setattr("apical.pathways.taps.SMALL", limit)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 5), nn.Linear(5, 3))
        attach(model, rule)
        found.append(gradients(model))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[1][name], g) for name, g in found[0].items())


@pytest.mark.parametrize("autocast", [False, True])
def test_an_activity_changed_in_place_behind_a_synapse_that_does_not_keep_it_still_gets_its_signal(autocast):
    """A frozen synapse keeps nothing; under autocast a synapse keeps another tensor."""

    class Behind(nn.Module):
        def __init__(self, in_place: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.side, self.head = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3)
            self.side.requires_grad_(autocast)
            self.in_place = in_place

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x).float()
            side = self.side(hidden)
            hidden = hidden.relu_() if self.in_place else hidden.relu()
            return side + self.head(hidden)

    grads = []
    for in_place in (False, True):
        model = Behind(in_place)
        attach(model, "dfa")
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            grads.append(gradients(model)["first.weight"])
    assert torch.equal(*grads)

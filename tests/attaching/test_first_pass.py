"""The first pass shows which synapses see data, and need no feedback."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import apical
from learning import RULES, TRAINED, attach, step
from networks import X, chain, seed


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shown", [True, False])
def test_the_first_synapse_has_no_feedback_once_its_input_is_known_to_be_data(rule, shown):
    if not shown and apical.rule(rule).direct:
        pytest.skip("needs example_input")
    model = chain()
    learner = apical.attach(model, rule, example_input=X if shown else None, generator=seed())
    keys = set(model.state_dict())
    if not shown:
        with torch.no_grad():
            model(X)  # Nothing learns here, so nothing is decided.
        assert (learner.synapses["0"].feedback is None) == (rule in ("shallow", "reinforce"))
        step(model)
    assert learner.synapses["0"].feedback is None
    assert (learner.synapses["6"].feedback is None) == (rule in ("shallow", "ifa", "reinforce"))
    if rule == "ifa":
        assert learner.synapses["4"].feedback is not None  # The one place where e enters.
        assert learner.synapses["6"].feedback is None
    elif rule not in ("shallow", "reinforce"):
        assert learner.synapses["4"].feedback is not None
    assert not {"0.feedback", "0.magnitudes"} & set(model.state_dict())
    assert set(model.state_dict()) <= keys
    assert len(learner.feedback_parameters()) == (2 if rule in TRAINED else 0)
    with pytest.raises(ValueError, match="'0' has no feedback"):
        learner.synapses["0"].feedback = torch.ones(6, 4)


@pytest.mark.parametrize("rule", ["kp", "urfb", "fa", "usf", "frsf", "bp"])
def test_track_keeps_the_first_synapses_feedback(rule):
    model = chain()
    learner = apical.attach(model, apical.rule(rule, track=True), example_input=X, generator=seed())
    assert learner.synapses["0"].feedback.shape == (6, 4)
    difference = learner.synapses["0"].weight.detach() - learner.synapses["0"].feedback.detach()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        step(model, optimizer)
    feedback = learner.synapses["0"].feedback
    assert feedback is not None
    if rule in TRAINED:
        torch.testing.assert_close(learner.synapses["0"].weight - feedback, difference, rtol=1e-5, atol=1e-6)
        assert float(feedback.grad.abs().sum()) > 0
    x = X.clone().requires_grad_(True)
    model(x).sum().backward()  # With feedback kept, a gradient at the input may be asked for.
    assert float(x.grad.abs().sum()) > 0


@pytest.mark.parametrize("rule", ["bp", "usf"])
def test_a_gradient_at_the_input_needs_no_kept_feedback_where_feedback_is_computed_from_weights(rule):
    """Saliency or adversarial examples after training: bp and usf store nothing, so nothing has been dropped."""
    model = chain().eval()
    attach(model, rule)
    model(X).sum().backward()
    x = X.clone().requires_grad_(True)
    model(x).sum().backward()
    assert float(x.grad.abs().sum()) > 0


@pytest.mark.parametrize("rule", ["fa", "kp", "frsf"])
def test_an_input_that_suddenly_wants_a_gradient_is_refused_with_a_way_out(rule):
    model = chain()
    attach(model, rule)
    model(X).sum().backward()
    with pytest.raises(RuntimeError, match=r"'0'.*track=True"):
        model(X.clone().requires_grad_(True))


class AsksItself(nn.Module):
    """In training it asks for a gradient of its data, as Wav2Vec2 does for its checkpoints."""

    def __init__(self, made: bool) -> None:
        super().__init__()
        self.made, self.layers = made, chain()

    def forward(self, x):
        h = x[:] if self.made else x
        if self.training:
            h.requires_grad = True
        return self.layers(h)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, apical.LocalSGD])
@pytest.mark.parametrize("rule", RULES)
def test_a_gradient_that_the_model_itself_asks_for_at_its_data_goes_nowhere(rule, optimizer):
    model, plain = AsksItself(True), chain()
    for one in (model, plain):
        learner = apical.attach(one, rule, example_input=X, generator=seed())
        moves = apical.LocalSGD(learner, 0.1) if optimizer is apical.LocalSGD else optimizer(one.parameters(), 0.1)
        torch.manual_seed(3)
        for _ in range(2):
            step(one, moves)
    for mine, its in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, its)
    assert apical.learner_of(model).synapses["layers.0"].feedback is None


@pytest.mark.parametrize("rule", ["fa", "kp", "dfa"])
def test_a_gradient_asked_for_at_what_a_model_was_given_is_refused(rule):
    """Whoever has given it may want the gradient."""
    model = AsksItself(False)
    apical.attach(model, rule, example_input=X)
    with pytest.raises(RuntimeError, match=r"'layers\.0'"):
        model(X.clone())
    made = AsksItself(True)
    apical.attach(made, rule, example_input=X)
    with pytest.raises(RuntimeError, match=r"'layers\.0'"):
        made.eval()(X.clone().requires_grad_())


def square(n: int = 3) -> nn.Sequential:
    """Layers of one shape, so that nothing tells when one is taken for another."""
    torch.manual_seed(0)
    return nn.Sequential(*[m for _ in range(n) for m in (nn.Linear(4, 4, bias=False), nn.Tanh())])


@pytest.mark.parametrize("connectivity", [None, 0.5])
@pytest.mark.parametrize("rule", [r for r in RULES if not apical.rule(r).direct])
def test_the_first_pass_leaves_parameters_in_their_places_and_buffers_where_there_are_copies(rule, connectivity):
    model = square()
    learner = apical.attach(model, rule, connectivity=connectivity, generator=seed())
    twin = copy.deepcopy(model)
    before = [dict(model.named_parameters()), {name: b.shape for name, b in model.named_buffers()}]
    step(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert learner.synapses["0"].feedback is None
    after = dict(model.named_parameters())
    assert list(after) == list(before[0])
    assert all(after[name] is p for name, p in before[0].items())
    assert {name: b.shape for name, b in model.named_buffers()} == before[1]
    step(twin)
    assert {name: b.shape for name, b in twin.named_buffers()} == before[1]
    listed = {id(p) for p in (*learner.forward_parameters(), *learner.feedback_parameters())}
    assert {id(p) for p in after.values()} - listed == {id(after[n]) for n in after if n == "0.feedback"}
    assert not any(name.startswith("0.feedback") for name in model.state_dict())


@pytest.mark.parametrize("rule", ["kp", "fa", "frsf"])
@pytest.mark.parametrize("how", ["parameters", "buffers too"])
def test_an_average_begun_before_the_first_pass_averages_like_with_like(rule, how):
    model = square()
    learner = apical.attach(model, rule, generator=seed())
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5), use_buffers=how != "parameters"
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    own = {name: p.detach().clone() for name, p in model.named_parameters() if name.endswith("weight")}
    for times in range(3):
        step(model, optimizer)
        average.update_parameters(model)
        for name, value in own.items():
            now = model.get_parameter(name).detach()
            value.copy_(now if times == 0 else 0.5 * value + 0.5 * now)
            torch.testing.assert_close(average.module.get_parameter(name).detach(), value)
    feedback = apical.learner_of(average.module).synapses["2"].feedback
    torch.testing.assert_close(feedback, learner.synapses["2"].feedback, rtol=1, atol=1)
    average(X)  # The average makes a first pass of its own.


@pytest.mark.parametrize("rule", TRAINED[:3])
def test_a_vector_of_the_parameters_means_the_same_after_the_first_pass(rule):
    model, other = square(), square()
    attach(model, rule), attach(other, rule)
    parameters_to_vector, vector_to_parameters = nn.utils.parameters_to_vector, nn.utils.vector_to_parameters
    kept = parameters_to_vector(model.parameters()).clone()
    step(other)  # One network before its first pass, the other after it.
    vector_to_parameters(kept, other.parameters())
    for (name, mine), its in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, its), name
    other.eval(), model.eval()
    assert torch.equal(other(X), model(X))


@pytest.mark.parametrize("made", ["before", "after"])
def test_an_optimizers_state_fits_a_network_before_and_after_its_first_pass(made):
    model, other = square(), square()
    learner, again = attach(model, "kp"), attach(other, "kp")
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(2):
        step(model, optimizer)
    if made == "after":
        again.load_state_dict(learner.state_dict())
    its = torch.optim.Adam(other.parameters())
    its.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other.load_state_dict(model.state_dict())
    again.load_state_dict(learner.state_dict())
    for _ in range(2):
        step(model, optimizer), step(other, its)
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        if name != "0.feedback":
            assert torch.equal(mine, theirs), name


@pytest.mark.parametrize("rule", TRAINED[:3])
@pytest.mark.parametrize("thawed", [False, True])
def test_feedback_out_of_use_gets_no_gradient_and_no_optimizer_needs_to_hold_it(rule, thawed):
    model = square()
    learner = attach(model, rule)
    model(X).sum().backward()
    assert dict(model.named_parameters())["0.feedback"].grad is None
    if thawed:
        model.requires_grad_(True)
    optimizer = torch.optim.SGD([*learner.forward_parameters(), *learner.feedback_parameters()], lr=0.1)
    before = dict(model.named_parameters())["0.feedback"].detach().clone()
    other = square()
    local = apical.LocalSGD(attach(other, rule), lr=0.1, momentum=0.9)
    for _ in range(2):
        step(model, optimizer), step(other, local)
    assert dict(other.named_parameters())["0.feedback"].grad is None
    assert torch.equal(dict(model.named_parameters())["0.feedback"], before)
    assert dict(model.named_parameters())["0.feedback"].grad is None

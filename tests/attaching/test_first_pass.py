"""The first pass shows which synapses see data, and need no feedback."""

from __future__ import annotations

import pytest
import torch

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

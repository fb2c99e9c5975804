"""Where feedback is drawn from: every paper's distribution, and one's own."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import apical
from apical.plasticity.initialization import draw
from comparison import anatomy, untouched
from learning import RULES, attach
from networks import X, chain, seed

WIDE = torch.randn(2, 300, generator=seed(1))


def wide() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(300, 200), nn.Tanh(), nn.Linear(200, 100), nn.Tanh(), nn.Linear(100, 10))


def drawn(rule: str, **hyperparameters) -> apical.Learner:
    chosen = apical.rule(rule, **hyperparameters)
    return apical.attach(wide(), chosen, example_input=WIDE, generator=seed(3))


def uniform(values: Tensor, bound: float) -> None:
    assert float(values.abs().max()) <= bound * (1 + 1e-6)
    assert stats.kstest(values.flatten().numpy(), stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-3


def normal(values: Tensor, sd: float) -> None:
    assert stats.kstest(values.flatten().numpy(), stats.norm(0, sd).cdf).pvalue > 1e-3


# Synapse 2 has 200 inputs and 100 outputs; its layer-wise signal arrives at 200 units, D is [10, 200].
LAW = {
    ("fa", "lillicrap2016"): (uniform, 0.5),
    ("fa", "nokland2016"): (uniform, 200**-0.5),
    ("fa", "akrout2019"): (normal, 300**-0.5),
    ("fa", "amit2019"): (uniform, math.sqrt(6 / 300)),
    ("fa", "lansdell2020"): (normal, math.sqrt(2 / 200)),
    ("kp", "akrout2019"): (normal, 300**-0.5),
    ("dfa", "lillicrap2016"): (uniform, 0.5),
    ("dfa", "nokland2016"): (uniform, 200**-0.5),
    ("dfa", "weights"): (uniform, 200**-0.5),
    ("dfa", "akrout2019"): (normal, 210**-0.5),
    ("dfa", "amit2019"): (uniform, math.sqrt(6 / 210)),
    ("kp-direct", "weights"): (uniform, 200**-0.5),
}


@pytest.mark.parametrize(("rule", "init"), LAW)
def test_every_papers_initialization_has_its_distribution(rule, init):
    check, scale = LAW[rule, init]
    feedback = drawn(rule, init=init).synapses["2"].feedback
    check(feedback.detach(), scale)


@pytest.mark.parametrize("rule", ["frfb", "urfb"])
def test_amit2019_rules_draw_glorot_uniform(rule):
    uniform(drawn(rule).synapses["2"].feedback.detach(), math.sqrt(6 / 300))


@pytest.mark.parametrize("rule", ["frsf", "brsf"])
def test_sign_rules_draw_magnitudes_and_take_signs(rule):
    synapse = drawn(rule).synapses["2"].requires_grad_(False)
    assert torch.equal(torch.sign(synapse.feedback), torch.sign(synapse.weight))
    bound = math.sqrt(6 / 300)
    magnitudes = synapse.feedback.abs().flatten().numpy()
    assert stats.kstest(magnitudes, stats.uniform(0, bound).cdf).pvalue > 1e-3
    correlation = torch.corrcoef(torch.stack([synapse.feedback.abs().flatten(), synapse.weight.abs().flatten()]))[0, 1]
    assert abs(float(correlation)) < 0.03


def test_uniform_signs_have_one_scale():
    synapse = drawn("usf").synapses["2"]
    torch.testing.assert_close(synapse.feedback, torch.sign(synapse.weight) * math.sqrt(2 / 300))
    synapse = drawn("usf", scale=1.0).synapses["2"]
    assert torch.equal(synapse.feedback, torch.sign(synapse.weight))
    with torch.no_grad():
        synapse.weight.neg_()
    assert torch.equal(synapse.feedback, torch.sign(synapse.weight))


def test_batchwise_magnitudes_are_new_at_every_pass_that_learns_and_only_there():
    model = chain()
    learner = attach(model, "brsf")
    synapse = learner.synapses["4"]
    seen = [synapse.feedback.clone()]
    for _ in range(2):
        model(X)
        seen.append(synapse.feedback.clone())
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])
    state = learner.generator.get_state()
    with torch.no_grad():
        model(X)
    with torch.inference_mode():
        model(X)
    assert torch.equal(learner.generator.get_state(), state)
    assert torch.equal(synapse.feedback, seen[2])


@pytest.mark.parametrize("scale", ["default", "bimodal", "convolution"])
def test_feedback_drawn_from_the_weights_has_their_distribution(scale):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 30, 3), nn.Conv2d(30, 40, 3)) if scale == "convolution" else wide()
    if scale == "bimodal":
        with torch.no_grad():
            model[2].weight.copy_(torch.where(torch.rand(100, 200) < 0.2, 5.0, torch.randn(100, 200)))
    learner = apical.attach(model, apical.rule("fa", track=True), generator=seed(4))
    for synapse in learner.synapses.values():
        weights, feedback = synapse.weight.detach().flatten(), synapse.feedback.flatten()
        assert stats.ks_2samp(weights.numpy(), feedback.numpy()).pvalue > 1e-3
        assert set(feedback.tolist()) <= set(weights.tolist())
        assert abs(float(torch.corrcoef(torch.stack([weights, feedback]))[0, 1])) < 0.05
        assert synapse.feedback.shape == synapse.weight.shape


def test_feedback_for_weights_that_are_all_zero_is_not_zero():
    """nokland2016 starts from zero weights; feedback that were drawn from them would carry nothing, for ever."""
    model = wide()
    for p in model.parameters():
        nn.init.zeros_(p)
    learner = apical.attach(model, "fa", generator=seed(4))
    uniform(learner.synapses["2"].feedback, 200**-0.5)


@pytest.mark.parametrize(
    ("init", "check"),
    [
        (nn.init.normal_, lambda t: normal(t, 1.0)),
        (functools.partial(nn.init.normal_, std=0.1), lambda t: normal(t, 0.1)),
        (functools.partial(nn.init.uniform_, a=-0.2, b=0.2), lambda t: uniform(t, 0.2)),
        (nn.init.xavier_uniform_, lambda t: uniform(t, math.sqrt(6 / 300))),
        (nn.init.kaiming_normal_, lambda t: normal(t, math.sqrt(2 / 200))),
        (nn.init.orthogonal_, lambda t: torch.testing.assert_close(t @ t.T, torch.eye(100), atol=1e-4, rtol=0)),
        (lambda t: nn.init.constant_(t, 0.25), lambda t: torch.testing.assert_close(t, torch.full_like(t, 0.25))),
        (lambda t: t.normal_(0, 0.3), lambda t: normal(t, 0.3)),
    ],
)
@pytest.mark.parametrize("rule", ["fa", "kp"])
def test_any_function_that_fills_a_tensor_is_an_initialization(rule, init, check):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    model = wide()
    torch.set_rng_state(state)
    first = apical.attach(model, apical.rule(rule, init=init), generator=seed(3))
    assert torch.equal(torch.get_rng_state(), state)
    check(first.synapses["2"].feedback.detach())
    torch.rand(17)  # Whatever the global state: the generator alone decides.
    again = apical.attach(wide(), apical.rule(rule, init=init), generator=seed(3))
    other = apical.attach(wide(), apical.rule(rule, init=init), generator=seed(4))
    assert torch.equal(again.synapses["2"].feedback, first.synapses["2"].feedback)
    constant = bool((first.synapses["2"].feedback == 0.25).all())
    assert torch.equal(other.synapses["2"].feedback, first.synapses["2"].feedback) == constant


@pytest.mark.parametrize("rule", RULES)
def test_the_generator_alone_decides_and_the_global_seed_stays_untouched(rule):
    feedback = []
    for global_seed, own in ((0, 1), (50, 1), (0, 2)):
        model = chain()
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        learner = attach(model, rule, n=own)
        assert torch.equal(torch.get_rng_state(), state)
        model.eval()
        model(X)  # The pass itself draws from the learner's generator, if at all.
        assert torch.equal(torch.get_rng_state(), state)
        feedback.append(
            torch.cat(
                [s.feedback.flatten() for s in learner.synapses.values() if s.feedback is not None] or [torch.ones(1)]
            )
        )
    assert torch.equal(feedback[0], feedback[1])
    assert torch.equal(feedback[0], feedback[2]) == (rule in ("bp", "shallow", "usf", "reinforce"))


def test_without_a_generator_the_global_seed_decides():
    draws = []
    for n in (0, 0, 1):
        model = chain()
        torch.manual_seed(n)
        draws.append(apical.attach(model, "fa").synapses["4"].feedback)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_the_dry_run_leaves_random_state_statistics_and_modes_alone():
    model = chain()
    model[1].eval()
    before, state = anatomy(model), torch.get_rng_state()
    learner = apical.attach(model, "dfa", example_input=X, generator=seed())
    assert torch.equal(torch.get_rng_state(), state)
    learner.detach()
    untouched(before, anatomy(model))
    assert not model[1].training
    assert model.training


@pytest.mark.parametrize("init", ["nonsense", 3, None])
def test_an_unknown_initialization_names_the_known_ones(init):
    model = chain()
    before = anatomy(model)
    with pytest.raises(ValueError, match=r"weights, lillicrap2016"):
        apical.attach(model, apical.Rule("layer-wise", apical.Fixed(init)))
    untouched(before, anatomy(model))


@pytest.mark.parametrize("init", [lambda t: t.fill_(float("nan")), lambda t: 1 / 0, nn.init.dirac_, lambda: 0])
def test_an_initialization_that_fails_midway_leaves_the_model_as_it_was(init):
    model = chain()
    before, state = anatomy(model), torch.get_rng_state()
    with pytest.raises((ValueError, ZeroDivisionError, TypeError)):
        apical.attach(model, apical.rule("fa", init=init), generator=seed())
    untouched(before, anatomy(model))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_large_layers_feedback_is_drawn_in_parts_from_the_stream_of_one_draw():
    like = torch.randn(3, 2**19 + 5, generator=seed(1))
    drawn = draw("weights", like.shape, fans=(3, 4), generator=seed(2), like=like)
    index = torch.randint(like.numel(), (like.numel(),), generator=seed(2))
    assert torch.equal(drawn, like.flatten()[index].view(like.shape))

"""Nøkland 2016: its training, networks and theorem against NumPy, and what its tables print."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import apical
from apical import data as images
from apical.papers.experiment import Task
from apical.papers.nokland2016.fig2_left import FIG2_LEFT
from apical.papers.nokland2016.fig2_right import FIG2_RIGHT
from apical.papers.nokland2016.fig3 import FIG3, activities, neighbour_error
from apical.papers.nokland2016.tables import TABLE1, TABLE2, TABLE3, Cell, rows_of
from apical.papers.nokland2016.text_ifa import TEXT_IFA
from apical.papers.nokland2016.theorem1 import THEOREM1, Layers, held_cost, held_error
from apical.papers.nokland2016.training import BATCH, Net, Training, start
from apical.papers.record import Curve, Record

RATE = 1e-3


@pytest.fixture(scope="module")
def digits():
    return images.load("digits")


def logistic(a):
    return 1 / (1 + np.exp(-a))


def expected_gradients(rule, x, y, weights, biases, feedback):
    """Summed gradients of a tanh network's cost, from the paper's equations (sections 2 and 3)."""
    h = [x]
    for W, b in zip(weights[:-1], biases[:-1], strict=True):
        h.append(np.tanh(h[-1] @ W.T + b))
    e = logistic(h[-1] @ weights[-1].T + biases[-1]) - y
    slopes = [1 - one**2 for one in h[1:]]
    deltas = [None] * len(slopes) + [e]
    for layer in reversed(range(len(slopes))):
        if rule == "bp":
            deltas[layer] = (deltas[layer + 1] @ weights[layer + 1]) * slopes[layer]
        elif rule == "fa":
            deltas[layer] = (deltas[layer + 1] @ feedback[layer + 1]) * slopes[layer]
        elif rule == "dfa":
            deltas[layer] = (e @ feedback[layer + 1]) * slopes[layer]
    if rule == "ifa":
        deltas[0] = (e @ feedback[1]) * slopes[0]
        for layer in range(1, len(slopes)):
            deltas[layer] = (deltas[layer - 1] @ weights[layer].T) * slopes[layer]
    return [d.T @ below for d, below in zip(deltas, h, strict=True)], [d.sum(0) for d in deltas]


@pytest.mark.parametrize("rule", ["bp", "fa", "dfa", "ifa"])
def test_two_steps_are_those_of_rmsprop_on_the_papers_update_directions(digits, rule):
    learner = start(Net(3, 12), rule, digits, 3, zero=False)
    training = Training(learner.model, digits, (3,), rate=RATE)
    synapses = list(learner.synapses.values())

    def values(name):
        return [getattr(s, name).detach().double().numpy().copy() for s in synapses]

    weights, biases = values("weight"), values("bias")
    feedback = [None if s.feedback is None else s.feedback.detach().double().numpy() for s in synapses]
    mean_squares = [np.zeros_like(p) for p in (*weights, *biases)]
    draw = torch.Generator().manual_seed(4 * 1_000_003)
    order = torch.randperm(len(digits.train), generator=draw)
    for step in range(2):
        training.learn(step)
        x, labels = digits.train.batch(order[step * BATCH : (step + 1) * BATCH])
        y = np.eye(10)[labels.numpy()]
        per_layer = expected_gradients(rule, x.flatten(1).double().numpy(), y, weights, biases, feedback)
        gradients = [*per_layer[0], *per_layer[1]]
        for parameter, g, mean_square in zip((*weights, *biases), gradients, mean_squares, strict=True):
            mean_square *= 0.99
            mean_square += 0.01 * g**2
            parameter -= RATE * g / (np.sqrt(mean_square) + 1e-8)
    for ours, theirs in zip((*values("weight"), *values("bias")), (*weights, *biases), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
        assert np.abs(theirs).max() > 1e-3


def test_it_stops_when_the_running_mean_that_starts_at_one_has_come_to_1e_4(digits):
    training = Training(start(Net(1, 4), "bp", digits, 0).model, digits, (0,), rate=RATE)
    measured = 0
    while not training.done.all():
        training.seen = 1
        last = training.measure()
        measured += 1
    assert measured == int(np.ceil(np.log(1e-4) / np.log(0.75)))
    training.seen = 1
    assert np.isfinite(last["test error"]).all()
    assert np.isnan(training.measure()["test error"]).all()


def test_training_error_is_that_of_the_minibatches_before_they_are_learned(digits):
    training = Training(start(Net(1, 8), "bp", digits, 0).model, digits, (0,), rate=1e-30)
    for step in range(training.per_epoch):
        training.learn(step)
    outputs = training.model(digits.train.batch(torch.arange(len(digits.train)))[0].flatten(1)).argmax(1)
    wrong = 100 * float((outputs != digits.train.labels).double().mean())
    assert training.measure()["train error"] == pytest.approx([wrong])


@pytest.mark.parametrize(
    ("activation", "rule", "zero"),
    [
        ("tanh", "dfa", True),
        ("tanh", "fa", True),
        ("logistic", "dfa", True),
        ("relu", "dfa", False),
        ("tanh", "bp", False),
    ],
)
def test_weights_start_at_zero_or_within_one_over_the_root_of_fan_in(digits, activation, rule, zero):
    learner = start(Net(2, 100, activation), rule, digits, 0)
    for synapse, fan_in in zip(learner.synapses.values(), (64, 100, 100), strict=True):
        for values in (synapse.weight.detach(), synapse.bias.detach()):
            assert float(values.abs().max()) <= fan_in**-0.5
            assert bool((values == 0).all()) is zero
        if not zero:
            assert float(synapse.weight.detach().std()) == pytest.approx((3 * fan_in) ** -0.5, rel=0.1)
    if rule != "bp":
        feedback = learner.synapses["2"].feedback
        assert feedback is not None
        assert float(feedback.abs().max()) <= 0.1
        assert float(feedback.std()) == pytest.approx(0.1 / 3**0.5, rel=0.1)


def test_fa_and_dfa_are_one_rule_with_one_hidden_layer(digits):
    fa, dfa = (start(Net(1, 20), rule, digits, 1) for rule in ("fa", "dfa"))
    dfa.synapses["2"].feedback = fa.synapses["2"].feedback
    for learner in (fa, dfa):
        training = Training(learner.model, digits, (1,), rate=RATE)
        for step in range(5):
            training.learn(step)
    for name in fa.synapses:
        torch.testing.assert_close(fa.synapses[name].weight, dfa.synapses[name].weight, rtol=1e-5, atol=1e-7)


def test_adversarial_inputs_are_a_step_along_the_sign_of_backpropagations_gradient(digits):
    learner = start(Net(2, 20, "tanh", "ADV"), "dfa", digits, 1, zero=False)
    training = Training(learner.model, digits, (1,), rate=RATE, adversarial=0.08)
    x, y = digits.train.batch(torch.arange(10))
    x = x.flatten(1)
    plain = x.clone().requires_grad_()
    h = plain
    for name in ("0", "2"):
        h = torch.tanh(F.linear(h, learner.synapses[name].weight.detach(), learner.synapses[name].bias.detach()))
    outputs = F.linear(h, learner.synapses["4"].weight.detach(), learner.synapses["4"].bias.detach())
    F.binary_cross_entropy_with_logits(outputs, F.one_hot(y, 10).float(), reduction="sum").backward()
    assert plain.grad is not None
    torch.testing.assert_close(training._worsened(x.clone(), y), x + 0.08 * plain.grad.sign())
    training.learn(0)
    assert learner.rule.name == "dfa"


def test_dropout_is_at_the_input_and_at_every_hidden_layer(digits):
    net = start(Net(2, 4, "tanh", "DO"), "dfa", digits, 0).model
    assert [m.p for m in net if isinstance(m, torch.nn.Dropout)] == [0.1, 0.5, 0.5]


def test_training_goes_on_from_its_state_in_the_middle_of_an_epoch(digits):
    def fresh():
        return Training(start(Net(2, 10), "dfa", digits, 5).model, digits, (5,), rate=RATE, decay=40)

    whole, first, second = fresh(), fresh(), fresh()
    for step in range(30):
        whole.learn(step)
    for step in range(25):
        first.learn(step)
    second.load_state_dict(first.state_dict())
    for step in range(25, 30):
        second.learn(step)
    for ours, theirs in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert second.measure() == whole.measure()


def test_the_frozen_phase_is_the_same_for_both_rules_and_the_first_layer_learns_only_after_it(digits, tmp_path):
    lengths = {"frozen": 30, "unfrozen": 30}
    records, layers = {}, {}
    for rule in FIG2_LEFT.conditions:
        task = Task(rule, (0, 1), 1.0, lengths, tmp_path / rule, digits)
        layers[rule] = FIG2_LEFT._networks(task).model.get_submodule("0").weight.detach().clone()
        records[rule] = FIG2_LEFT.run(task)
        kept = {
            name: task.restore(name)["parts"]["training"]["model"]["model.0.weight"] for name in ("frozen", "unfrozen")
        }
        assert torch.equal(kept["frozen"], layers[rule])
        assert not torch.equal(kept["unfrozen"], layers[rule])
    bp, dfa = (records[rule].curves["test error"] for rule in ("bp", "dfa"))
    count = sum(x * 23 <= 30 for x in bp.x)
    np.testing.assert_allclose(bp.values[:, :count], dfa.values[:, :count], atol=1e-9)
    assert not np.allclose(bp.values, dfa.values)
    assert FIG2_LEFT.outcome(records).panels


@pytest.mark.parametrize(
    ("first", "half", "late", "rises"), [(9.0, 0.05, 0.05, True), (4.0, 1.0, 0.05, False), (9.0, 0.2, 0.2, True)]
)
def test_what_figure_2_left_shows_is_judged_by_means_over_epochs(first, half, late, rises):
    x = np.arange(0.25, 25.1, 0.25)
    errors = np.select([x <= 5, x <= 6, x <= 10, x <= 15], [5.0, first, 1.0, half], late)
    # One point that does not belong decides nothing.
    errors[-1], errors[22] = 0.1 - late / 5, 7.0 - first / 3
    made = Record(
        curves={"train error": Curve(x.tolist(), [errors.tolist()])},
        numbers={"frozen": [5.0], "test error": [3.0]},
        arrays={"unfrozen at": 5.0},
    )
    shown = FIG2_LEFT.outcome({"dfa": made})
    # The paper's time is half of what is run.
    assert [claim.holds for claim in shown.claims] == [half < 0.1, rises, True]
    assert [(row.label, row.agrees) for row in shown.rows if row.published] == [
        ("dfa: train error, first layer frozen", True),
        ("dfa: train error, 10 epochs after", half < 0.1),
        ("dfa: train error at the end", late < 0.1),
    ]
    # A rise that backpropagation has as well is none of DFA's.
    claims = FIG2_LEFT.outcome({"bp": made, "dfa": made}).claims
    assert [claim.holds for claim in claims if "first rises" in claim.text] == [False]


def test_a_blank_cell_is_a_bound():
    def agree(train: float, cell: Cell) -> list[bool | None]:
        made = Record(numbers={"test error": [1.6]}, curves={"train error": Curve([1.0], [[train]])})
        return [row.agrees for row in rows_of("", made, cell)]

    assert agree(0.01, Cell(1.60, 0.06)) == [True, True]
    assert agree(0.02, Cell(1.60, 0.06)) == [True, False]
    assert agree(0.12, Cell(1.60, 0.06, 0.12)) == [True, True]
    assert agree(0.0, Cell(1.60, 0.06, 0.12)) == [True, False]


def test_a_step_of_the_weights_changes_l_by_what_the_theorem_says():
    """dL_k = -eta K_k ||da||^2, and L_{k+1} by the same times ||dh_k|| / ||dh_{k+1}||, with f' held."""
    rng = np.random.default_rng(0)
    h, dh, dh_upper = rng.normal(size=(6, 5)), rng.normal(size=(6, 5)), rng.normal(size=(6, 4))
    W, b = rng.normal(size=(4, 5)), rng.normal(size=4)
    upper = np.tanh(h @ W.T + b)
    layers = Layers(*(torch.from_numpy(one) for one in (h, dh, upper, dh_upper, W, b)))
    for sample in range(6):
        da = dh_upper[sample] * (1 - upper[sample] ** 2)
        K = dh[sample] @ h[sample] / np.linalg.norm(dh[sample])
        ratio = np.linalg.norm(dh[sample]) / np.linalg.norm(dh_upper[sample])
        found, raised = layers.step(sample, 1e-3, held_slope=True)
        assert found == pytest.approx(K)
        assert raised == pytest.approx(-1e-3 * K * (da @ da) * (1 + ratio))
        _, free = layers.step(sample, 1e-9, held_slope=False)
        assert free != raised
    assert layers.identity < 1e-15
    assert layers.steepest() < 1e-15


def test_held_directions_are_those_of_the_untrained_network():
    outputs, y = torch.randn(3, 10, dtype=torch.float64, requires_grad=True), torch.tensor([1, 2, 3])
    held_cost(outputs, y).sum().backward()
    assert outputs.grad is not None
    torch.testing.assert_close(outputs.grad, 0.5 - torch.eye(10, dtype=torch.float64)[y])
    assert torch.equal(held_error(outputs, y), outputs.grad)


def test_layers_of_the_theorem_are_those_that_dfa_trains(digits):
    learner = start(Net(2, 20), "dfa", digits, 0, zero=False)
    x, y = digits.train.batch(torch.arange(7))
    layers = Layers.of(learner, x.flatten(1), y, held=False)
    lower, upper = activities(learner.model, x.flatten(1))[1:]
    torch.testing.assert_close(layers.h_lower.float(), lower)
    torch.testing.assert_close(layers.h_upper.float(), upper)
    learner.model(x.flatten(1))
    outputs = learner.model(x.flatten(1))
    F.binary_cross_entropy_with_logits(outputs, F.one_hot(y, 10).float(), reduction="sum").backward()
    weight = learner.synapses["2"].weight.grad
    assert weight is not None
    torch.testing.assert_close(
        weight.double(), (layers.dh_upper * layers.slope).t() @ layers.h_lower, rtol=1e-4, atol=1e-6
    )


def test_a_few_minibatches_of_another_epoch_are_no_training_error():
    def shown(x, *y):
        record = Record(numbers={"test error": [2.0] * len(y)}, curves={"train error": Curve(x, y)})
        return list(rows_of("1x800 tanh, bp", record, None)[1].ours)

    assert shown([1.0, 2.0, 2.02], [3.0, 1.0, 50.0], [3.0, float("nan"), float("nan")]) == [1.0, 3.0]
    assert shown([1.0, 2.0], [3.0, 1.0]) == [1.0]
    assert shown([0.25, 0.5], [80.0, 70.0]) == [70.0]


def test_nearest_neighbours_of_another_class():
    points = np.array([[0.0, 0], [1, 0], [10, 0], [11, 0], [12.5, 0]])
    assert neighbour_error(points, np.array([0, 0, 1, 1, 2])) == pytest.approx(20)


def test_published_cells():
    assert len(TABLE1.conditions) == 30
    assert [row.net.name for row in TABLE1.rows[:2]] == ["7x240 tanh", "100x240 tanh"]
    cells = {
        f"{row.net.name}, {rule}": getattr(row, rule)
        for t in (TABLE1, TABLE2)
        for row in t.rows
        for rule in ("bp", "fa", "dfa")
    }
    assert cells["100x240 tanh, bp"] is cells["100x240 tanh, fa"] is None
    assert (cells["100x240 tanh, dfa"].test, cells["100x240 tanh, dfa"].train) == (3.92, 0.12)
    assert (cells["2x800 tanh + ADV, dfa"].test, cells["2x800 tanh + ADV, dfa"].spread) == (1.02, 0.05)
    assert (cells["3x1000 tanh + DO, fa"].test, cells["3x1000 tanh + DO, fa"].train) == (46.9, 48.9)
    assert [row.bp.tag for row in TABLE3.rows] == ["M", "P", "M"]
    assert (TABLE2.data, TABLE3.data, FIG3.net.name) == ("uoft-cs/cifar10", "uoft-cs/cifar100", "3x400 tanh")


@pytest.mark.parametrize("experiment", [FIG2_RIGHT, TEXT_IFA, THEOREM1], ids=lambda one: one.name)
def test_lengths_are_epochs_of_the_data_given(digits, experiment):
    epochs = {"nokland2016/theorem1": 5}.get(experiment.name, 300)
    assert experiment.steps(digits) == {"steps": epochs * 23}


def test_rules_are_attached_by_name(digits):
    assert {rule: start(Net(1, 4), rule, digits, 0).name for rule in ("bp", "fa", "dfa", "ifa")} == {
        rule: rule for rule in ("bp", "fa", "dfa", "ifa")
    }
    assert isinstance(start(Net(1, 4), "fa", digits, 0).rule.plasticity, apical.Fixed)

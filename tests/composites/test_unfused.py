"""Composite layers taken apart: same output and gradients as the plain ones, and every weight a synapse."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import apical
from composites.alike import end_alike

X = torch.randn(5, 3, 6, generator=torch.Generator().manual_seed(0))
Q = torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(1))
K = torch.randn(7, 3, 8, generator=torch.Generator().manual_seed(2))
CAUSAL = nn.Transformer.generate_square_subsequent_mask(5)


def packed(x, lengths):
    return pack_padded_sequence(x, lengths, enforce_sorted=False)


def state(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


LAYERS = {
    "lstm": (lambda: nn.LSTM(6, 4), (X,), {}),
    "lstm with a state": (lambda: nn.LSTM(6, 4), (X, (state(1, 3, 4), state(1, 3, 4))), {}),
    "lstm deep": (lambda: nn.LSTM(6, 4, 2, bidirectional=True, batch_first=True), (X,), {}),
    "lstm projected": (lambda: nn.LSTM(6, 4, 2, proj_size=3, bidirectional=True), (X,), {}),
    "lstm packed": (lambda: nn.LSTM(6, 4, 2, bidirectional=True), (packed(X, [2, 5, 3]),), {}),
    "lstm alone": (lambda: nn.LSTM(6, 4), (X[:, 0], (state(1, 4), state(1, 4))), {}),
    "gru": (lambda: nn.GRU(6, 4, bias=False), (X, state(1, 3, 4)), {}),
    "gru packed": (lambda: nn.GRU(6, 4, bidirectional=True), (packed(X, [5, 1, 4]), state(2, 3, 4)), {}),
    "rnn": (lambda: nn.RNN(6, 4, 2), (X,), {}),
    "rnn relu": (lambda: nn.RNN(6, 4, nonlinearity="relu", batch_first=True), (X,), {}),
    "lstm cell": (lambda: nn.LSTMCell(6, 4), (X[0],), {}),
    "gru cell": (lambda: nn.GRUCell(6, 4, bias=False), (X[0], state(3, 4)), {}),
    "rnn cell alone": (lambda: nn.RNNCell(6, 4), (X[0, 0],), {}),
    "bilinear": (lambda: nn.Bilinear(6, 8, 3), (X, Q), {}),
    "bilinear without bias": (lambda: nn.Bilinear(6, 8, 3, bias=False), (X[0], Q[0]), {}),
    "attention to itself": (lambda: nn.MultiheadAttention(8, 2), (Q, Q, Q), {}),
    "attention without weights": (lambda: nn.MultiheadAttention(8, 2), (Q, Q, Q), {"need_weights": False}),
    "attention batch first": (lambda: nn.MultiheadAttention(8, 2, batch_first=True), (Q, Q, Q), {}),
    "attention to others": (lambda: nn.MultiheadAttention(8, 2, bias=False), (Q, K, K), {}),
    "attention of three": (lambda: nn.MultiheadAttention(8, 4), (Q, K, K + 1), {"average_attn_weights": False}),
    "attention of other sizes": (
        lambda: nn.MultiheadAttention(8, 2, kdim=6, vdim=4),
        (Q, X, X[..., :4]),
        {"need_weights": False},
    ),
    "attention with masks": (
        lambda: nn.MultiheadAttention(8, 2),
        (Q, K, K),
        {"key_padding_mask": torch.tensor([[0.0] * 6 + [-torch.inf]] * 3), "attn_mask": state(5, 7)},
    ),
    "attention with a mask a head": (
        lambda: nn.MultiheadAttention(8, 2, add_bias_kv=True, add_zero_attn=True),
        (Q, K, K),
        {"attn_mask": state(6, 5, 7) > 0.5},
    ),
    "attention causal": (
        lambda: nn.MultiheadAttention(8, 2),
        (Q, Q, Q),
        {"attn_mask": CAUSAL, "is_causal": True, "need_weights": False},
    ),
    "attention alone": (lambda: nn.MultiheadAttention(8, 2), (Q[:, 0], K[:, 0], K[:, 0]), {}),
    "encoder layer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.0), (Q,), {}),
    "encoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 2),
        (Q,),
        {},
    ),
    "transformer": (lambda: nn.Transformer(8, 2, 1, 1, 16, 0.0), (K, Q), {"tgt_mask": CAUSAL, "tgt_is_causal": True}),
}
each = pytest.mark.parametrize("case", LAYERS)
# PyTorch's own words about nested tensors, which its encoder doesn't use with an odd number of heads and the like.
pytestmark = pytest.mark.filterwarnings(
    "ignore:enable_nested_tensor is True", "ignore:LSTM with projections is not supported with oneDNN"
)


def made(case):
    torch.manual_seed(0)
    make, args, kwargs = LAYERS[case]
    plain = make()
    with torch.no_grad():
        for p in plain.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    return plain, copy.deepcopy(plain), args, kwargs


def tensors(result):
    if isinstance(result, PackedSequence):
        return [result.data, result.batch_sizes]
    if torch.is_tensor(result):
        return [result]
    return [] if result is None else [one for part in result for one in tensors(part)]


def learn(net, args, kwargs):
    """Outputs and gradients of one pass."""
    net.zero_grad()
    outputs = [one for one in tensors(net(*args, **kwargs)) if one.requires_grad]
    weights = [state(*one.shape).to(one) for one in outputs]
    sum((one * w).sum() for one, w in zip(outputs, weights, strict=True)).backward()
    return outputs, {name: p.grad for name, p in net.named_parameters() if not name.endswith("feedback")}


def same(one, other):
    assert one[1].keys() == other[1].keys()
    pairs = [*zip(one[0], other[0], strict=True), *((one[1][name], other[1][name]) for name in one[1])]
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("case", "rule"), [(case, rule) for case in LAYERS for rule in ("bp", "kp")] + [("lstm", "fa")]
)
def test_same_output_and_with_the_weights_as_feedback_the_same_gradients(case, rule):
    net, plain, args, kwargs = made(case)
    # The inputs need signals too, as those of a layer in the middle of a network.
    learner = apical.attach(net, apical.rule(rule, track=True) if rule == "fa" else rule)
    for synapse in learner.synapses.values():
        if rule != "bp" and synapse.feedback is not None:
            synapse.feedback = synapse.weight
    same(learn(net, args, kwargs), learn(plain, args, kwargs))
    if rule == "kp":
        for synapse in learner.synapses.values():
            if synapse.feedback is not None:
                torch.testing.assert_close(synapse.feedback.grad, synapse.weight.grad)


@each
def test_the_weights_of_a_network_keep_names_and_places(case):
    net, plain, args, kwargs = made(case)
    names, keys = [n for n, _ in plain.named_parameters()], list(plain.state_dict())
    modules = [name for name, _ in net.named_modules()]
    held = {id(p) for p in net.parameters()}
    learner = apical.attach(net, "fa")
    assert [n for n, _ in net.named_parameters()] == names
    assert [key for key in net.state_dict() if not key.endswith("feedback")] == keys
    assert {id(s.weight) for s in learner.synapses.values()} <= held
    net.load_state_dict(plain.state_dict())
    net.load_state_dict({key: value.clone() for key, value in net.state_dict().items()}, assign=True)
    same(learn(copy.deepcopy(net), args, kwargs), learn(pickle.loads(pickle.dumps(net)), args, kwargs))
    learner.detach()
    assert [name for name, _ in net.named_modules()] == modules
    assert [type(m) for m in net.modules()] == [type(m) for m in plain.modules()]
    same(learn(net, args, kwargs), learn(plain, args, kwargs))


def classifier(kind):
    """A network of a layer, its input [4, 5, 6], and outputs [4, 3]."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
            self.layer = (
                nn.LSTM(8, 8, batch_first=True)
                if kind == "lstm"
                else nn.Bilinear(8, 8, 8)
                if kind == "bilinear"
                else nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
            )

        def forward(self, x):
            h = self.first(x).tanh()
            h = self.layer(h, h) if kind == "bilinear" else self.layer(h)
            return self.last((h[0] if kind == "lstm" else h)[:, -1].tanh())

    torch.manual_seed(0)
    return Net()


BATCH, TARGETS = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(4)), torch.tensor([0, 1, 2, 0])
LOSSES = nn.CrossEntropyLoss(reduction="none")


@pytest.mark.parametrize("kind", ["lstm", "attention", "bilinear"])
@pytest.mark.parametrize("rule", ["fa", "dfa", "usf", "kp", "wm", "np", "reinforce", "sg"])
def test_rules_learn_and_nothing_is_transported(kind, rule):
    if kind == "bilinear" and rule in ("np", "sg"):
        pytest.skip("layer-wise regression is for linear layers")
    net = classifier(kind)
    learner = apical.attach(net, rule, example_input=BATCH)
    report = apical.audit(learner, BATCH, TARGETS, LOSSES)
    own = {name: kind for name, kind in report.transported.items() if kind not in ("nothing", "normalization scale")}
    assert all(value == ("signs" if rule == "usf" else "weights" if rule == "sg" else None) for value in own.values())
    before = {name: s.weight.detach().clone() for name, s in learner.synapses.items()}
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        LOSSES(net(BATCH), TARGETS).mean().backward()
        learner.adapt(BATCH, TARGETS, LOSSES)
        optimizer.step()
    for name, weight in before.items():
        assert not torch.equal(learner.synapses[name].weight, weight)


@pytest.mark.parametrize("kind", ["lstm", "attention", "bilinear"])
def test_kolen_pollacks_law(kind):
    net = classifier(kind)
    learner = apical.attach(net, "kp", example_input=BATCH)
    apart = {n: s.weight.detach() - s.feedback.detach() for n, s in learner.synapses.items() if s.feedback is not None}
    optimizer = torch.optim.SGD(net.parameters(), 0.1, weight_decay=1e-2)
    for _ in range(10):
        optimizer.zero_grad()
        LOSSES(net(BATCH), TARGETS).mean().backward()
        optimizer.step()
    assert apart
    for name, difference in apart.items():
        s = learner.synapses[name]
        torch.testing.assert_close(s.weight - s.feedback, difference * (1 - 1e-3) ** 10, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["lstm", "attention", "bilinear"])
@pytest.mark.parametrize("rule", ["fa", "kp"])
def test_local_updates_are_those_of_sgd(kind, rule):
    nets = [classifier(kind).double() for _ in range(2)]
    x = BATCH.double()
    learners = [apical.attach(net, rule, example_input=x, generator=torch.Generator().manual_seed(5)) for net in nets]
    optimizers = [
        torch.optim.SGD(nets[0].parameters(), 0.1, momentum=0.9),
        apical.LocalSGD(learners[1], lr=0.1, momentum=0.9),
    ]
    end_alike(nets, optimizers, x, TARGETS, LOSSES)


def test_an_encoder_in_eval_mode_does_not_take_its_fused_path(monkeypatch):
    def fused(*args, **kwargs):
        raise AssertionError("the fused path reads the weights itself")

    net, plain, args, kwargs = made("encoder")
    apical.attach(net, "fa", example_input=Q)
    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", fused)
    net.eval()
    with torch.no_grad():
        y = net(*args, **kwargs)
    monkeypatch.undo()
    torch.testing.assert_close(y, plain(*args, **kwargs), rtol=1e-5, atol=1e-6)


def test_an_attachment_that_fails_leaves_the_layers_as_they_were():
    net = nn.Sequential(nn.LSTM(6, 4))
    with pytest.raises(ValueError, match="does not pass"):
        apical.attach(net, "dfa", example_input=torch.randn(2, 3, 5))
    assert type(net[0]) is nn.LSTM
    assert not list(net[0].children())


def test_inputs_that_do_not_fit_are_told_as_by_the_plain_layer():
    net = nn.LSTM(6, 4)
    apical.attach(net, "fa")
    with pytest.raises(RuntimeError, match="Expected 6, got 5"):
        net(torch.randn(2, 3, 5))
    with pytest.raises(ValueError, match="2D or 3D"):
        net(torch.randn(6))

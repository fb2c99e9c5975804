"""Every network of the zoo; those of `torch.nn` are part of the suite, the others of `make zoo`."""

import pytest
import torch
from torch import nn

from apical.nested import over_tensors
from zoo import of_torch
from zoo.checks import attached, built, gradients, targets_of
from zoo.networks import Network
from zoo.rows import row

try:
    from zoo.all_of_them import NETWORKS
except ImportError:
    NETWORKS = of_torch.NETWORKS
QUICK = ("GRU", "TransformerEncoder", "Transformer", "Autoencoder of convolutions")


@pytest.mark.parametrize("network", [one for one in of_torch.NETWORKS if one.name in QUICK], ids=str)
def test_a_network_of_torch(network: Network):
    assert row(network).synapses


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_a_network(network: Network):
    row(network)


TIED = ("GPT-2", "BERT, tied head", "T5", "BART", "Gemma", "Whisper")


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("network", [one for one in NETWORKS if one.name in TIED], ids=str)
def test_kolen_pollacks_law_holds_for_heads_tied_to_embeddings(network: Network):
    """W - B goes by momentum and weight decay alone: the same for every layer, whatever it learns."""
    model, example = (
        built(network).double(),
        over_tensors(network.example(), lambda x: x.double() if x.is_floating_point() else x),
    )
    targets = targets_of(model, network, example)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    learner = attached(model, network, "kp", example)
    pairs = {name: s for name, s in learner.synapses.items() if s.feedback is not None}
    assert any(id(synapse.weight) in embeddings for synapse in pairs.values())
    expected = {name: (s.weight - s.feedback).detach() for name, s in pairs.items()}
    speed = {name: torch.zeros_like(gap) for name, gap in expected.items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5, weight_decay=0.1)
    for _ in range(4):
        gradients(model, network, example, targets)
        optimizer.step()
        speed = {name: 0.5 * speed[name] + 0.1 * gap for name, gap in expected.items()}
        expected = {name: gap - 0.1 * speed[name] for name, gap in expected.items()}
    for name, synapse in pairs.items():
        torch.testing.assert_close(synapse.weight - synapse.feedback, expected[name], rtol=1e-9, atol=1e-9)

"""Every network of the zoo; those of `torch.nn` are part of the suite, the others of `make zoo`."""

import pytest

from zoo import of_torch
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

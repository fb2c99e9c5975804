"""The papers' architectures, as plain PyTorch networks, and building one by name."""

from apical.networks.by_name import NETWORKS, build
from apical.networks.cnn import lansdell2020_cnn
from apical.networks.mlp import ACTIVATIONS, lansdell2020_mlp, mlp, parse_sizes
from apical.networks.resnet import resnet20

__all__ = ["ACTIVATIONS", "NETWORKS", "build", "lansdell2020_cnn", "lansdell2020_mlp", "mlp", "parse_sizes", "resnet20"]

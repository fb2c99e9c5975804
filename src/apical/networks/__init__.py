"""The papers' architectures and the field's yardsticks, as plain PyTorch networks, and building one by name."""

from apical.networks.by_name import NETWORKS, build
from apical.networks.cnn import lansdell2020_cnn
from apical.networks.mlp import ACTIVATIONS, lansdell2020_mlp, mlp, parse_sizes
from apical.networks.resnet import resnet18, resnet20, resnet50
from apical.networks.transformer import gpt_124m, vit_s16
from apical.synapses.locally_connected import LocallyConnected2d

__all__ = [
    "ACTIVATIONS",
    "NETWORKS",
    "LocallyConnected2d",
    "build",
    "gpt_124m",
    "lansdell2020_cnn",
    "lansdell2020_mlp",
    "mlp",
    "parse_sizes",
    "resnet18",
    "resnet20",
    "resnet50",
    "vit_s16",
]

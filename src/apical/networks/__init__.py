"""The papers' architectures and the field's yardsticks, as plain PyTorch networks, and building one by name."""

from apical.networks.amit2019 import amit2019_deepernet, amit2019_deepnet, amit2019_deepnet_s, amit2019_simpnet
from apical.networks.by_name import NETWORKS, build
from apical.networks.cnn import lansdell2020_cnn, nokland2016_conv
from apical.networks.layers import SaturatedLinearity, UnscaledDropout, ZeroPaddedMaxPool2d, glorot
from apical.networks.mlp import ACTIVATIONS, lansdell2020_mlp, mlp, parse_sizes
from apical.networks.resnet import resnet18, resnet20, resnet32, resnet50, resnet56
from apical.networks.speedrun import Whitening, speedrun
from apical.networks.transformer import gpt, gpt_124m, vit_s16
from apical.networks.untied import untie
from apical.synapses.locally_connected import LocallyConnected2d

__all__ = [
    "ACTIVATIONS",
    "NETWORKS",
    "LocallyConnected2d",
    "SaturatedLinearity",
    "UnscaledDropout",
    "Whitening",
    "ZeroPaddedMaxPool2d",
    "amit2019_deepernet",
    "amit2019_deepnet",
    "amit2019_deepnet_s",
    "amit2019_simpnet",
    "build",
    "glorot",
    "gpt",
    "gpt_124m",
    "lansdell2020_cnn",
    "lansdell2020_mlp",
    "mlp",
    "nokland2016_conv",
    "parse_sizes",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet50",
    "resnet56",
    "speedrun",
    "untie",
    "vit_s16",
]

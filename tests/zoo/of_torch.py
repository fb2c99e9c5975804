"""Networks of `torch.nn` itself."""

from __future__ import annotations

import torch
from torch import nn

from zoo.networks import Network, noise, tokens


class Classifier(nn.Module):
    """A recurrent layer over embedded words, and a linear readout of the mean over steps."""

    def __init__(self, kind: type[nn.RNNBase], **options) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 16)
        self.memory = kind(16, 16, batch_first=True, **options)
        self.head = nn.Linear(32 if options.get("bidirectional") else 16, 5)

    def forward(self, x):
        return self.head(self.memory(self.words(x))[0].mean(1))


class Encoder(nn.Module):
    """Embedded words and positions, encoder layers, and a readout of the mean."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(50, 16), nn.Parameter(torch.randn(1, 8, 16) * 0.1)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, **options)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.layers(self.words(x) + self.positions).mean(1))


class Pair(nn.Module):
    """Two inputs that meet in a bilinear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.both = nn.Linear(8, 6), nn.Linear(8, 5), nn.Bilinear(6, 5, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x, y):
        return self.head(self.both(self.left(x).tanh(), self.right(y).tanh()).relu())


def autoencoder() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.GroupNorm(2, 8),
        nn.GELU(),
        nn.Conv2d(8, 16, 3, 2, 1),
        nn.PReLU(),
        nn.ConvTranspose2d(16, 8, 2, 2),
        nn.InstanceNorm2d(8, affine=True),
        nn.SiLU(),
        nn.ConvTranspose2d(8, 3, 2, 2),
    )


def network(name: str, build, example=tokens, **options) -> Network:
    return Network(name, "torch.nn", build, example, **options)


NETWORKS = [
    network("LSTM", lambda: Classifier(nn.LSTM)),
    network("LSTM, 2 layers, both directions", lambda: Classifier(nn.LSTM, num_layers=2, bidirectional=True)),
    network("GRU", lambda: Classifier(nn.GRU)),
    network("RNN", lambda: Classifier(nn.RNN)),
    network("TransformerEncoder", Encoder),
    network("TransformerEncoder, norm first", lambda: Encoder(norm_first=True, activation="gelu")),
    network(
        "Transformer",
        lambda: nn.Transformer(16, 2, 2, 2, 32, dropout=0.0, batch_first=True),
        lambda: (noise(2, 8, 16), noise(2, 6, 16)),
        no_dfa="the decoder's attention projects source and target, of different lengths, by one layer",
    ),
    network("Bilinear", Pair, lambda: (noise(4, 8), noise(4, 8))),
    network("Autoencoder of convolutions", autoencoder, lambda: noise(2, 3, 16, 16)),
]

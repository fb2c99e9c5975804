"""The convolutional network of lansdell2020."""

from __future__ import annotations

from torch import nn


def lansdell2020_cnn(classes: int = 10, dropout: float = 0.5) -> nn.Sequential:
    """CNN for 3 x 32 x 32 images: x [N, 3, 32, 32] -> [N, classes] (lansdell2020 C.4, as printed).

    Convolutions 3x3 with 32 maps, 5x5 with 128 and 5x5 with 256, each followed by tanh and 3x3 max-pooling with stride 2;
    two hidden layers of 2048 with dropout after each. The released code pads everything to SAME and has 5x5 with 96 maps in
    its first layer; tanh and the padding are the code's, the sizes the paper's. Dropout rescales as PyTorch's does; the code
    masks without rescaling.

    >>> import torch
    >>> lansdell2020_cnn()(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    layers: list[nn.Module] = []
    for before, after, kernel in ((3, 32, 3), (32, 128, 5), (128, 256, 5)):
        # SAME as TensorFlow has it for even sizes: the last window is cut off at the edge, 32 -> 16 -> 8 -> 4.
        layers += [nn.Conv2d(before, after, kernel, padding=kernel // 2), nn.Tanh(), nn.MaxPool2d(3, 2, ceil_mode=True)]
    layers += [nn.Flatten()]
    for before in (4096, 2048):
        layers += [nn.Linear(before, 2048), nn.Tanh(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(2048, classes))

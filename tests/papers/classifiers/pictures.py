"""Small coloured images of three classes that can be told apart, for experiments with convolutional networks."""

import torch
from torch import nn

from apical.data import ImageData, Split

CLASSES = ("a", "b", "c")


def tiny(shape, classes):
    """Three convolutions and a linear layer, with batch normalization after the ReLU."""
    layers = []
    for before, after, stride in ((shape[0], 4, 1), (4, 6, 2), (6, 6, 1)):
        layers += [nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.ReLU(), nn.BatchNorm2d(after)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes))


def pictures(train=70, test=20, size=8):
    draw = torch.Generator().manual_seed(0)
    prototypes = torch.randint(0, 256, (3, 3, size, size), generator=draw)

    def split(n):
        labels = torch.arange(n) % 3
        noise = torch.randint(0, 64, (n, 3, size, size), generator=draw)
        return Split(((prototypes[labels] * 3 + noise * 4) // 4).clamp(max=255).to(torch.uint8), labels)

    return ImageData("drawn", split(train), split(test), 3, CLASSES)

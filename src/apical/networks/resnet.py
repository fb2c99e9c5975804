"""Residual networks for small images (He et al. 2016, section 4.2)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

Norm = Literal["before", "after"]
"""Where batch normalization stands: before the ReLU, as He et al. have it, or after it (akrout2019 D.1)."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: x [N, before, H, W] -> [N, after, H / stride, W / stride].

    Where shapes change, the shortcut is a 1x1 convolution (option B of the paper).
    """

    def __init__(self, before: int, after: int, stride: int, norm: Norm = "before") -> None:
        super().__init__()
        self.norm = norm
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            convolution = nn.Conv2d(before, after, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(after)) if norm == "before" else convolution

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        if self.norm == "after":
            branch = self.conv2(self.bn1(self.relu1(self.conv1(x))))
            return self.bn2(self.relu2(branch + self.shortcut(x)))
        branch = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(branch + self.shortcut(x))


def resnet20(classes: int = 10, channels: int = 3, norm: Norm = "before") -> nn.Sequential:
    """ResNet-20: x [N, channels, H, W] -> [N, classes], 16, 32 and 64 maps in three stages of three blocks.

    Args:
        classes: values of the output. channels: of the images. norm: where batch normalization stands.

    >>> sum(p.numel() for p in resnet20().parameters())
    272474
    """
    stem = [nn.BatchNorm2d(16), nn.ReLU()]
    layers: list[nn.Module] = [
        nn.Conv2d(channels, 16, 3, padding=1, bias=False),
        *(stem if norm == "before" else reversed(stem)),
    ]
    width = 16
    for stage, after in enumerate((16, 32, 64)):
        for number in range(3):
            layers.append(BasicBlock(width, after, 2 if stage and not number else 1, norm))
            width = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))

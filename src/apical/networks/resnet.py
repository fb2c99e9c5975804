"""Residual networks (He et al. 2016): for small images (section 4.2), and for ImageNet's (table 1)."""

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


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut: x [N, before, H, W] -> [N, 4 width, H / stride, W / stride].

    The stride is the 3x3 convolution's, as everybody has had it since the paper ("v1.5").
    """

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = 4 * width
        self.conv1 = nn.Conv2d(before, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, after, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        self.relu3 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        branch = self.relu1(self.bn1(self.conv1(x)))
        branch = self.relu2(self.bn2(self.conv2(branch)))
        return self.relu3(self.bn3(self.conv3(branch)) + self.shortcut(x))


def resnet18(classes: int = 1000, channels: int = 3) -> nn.Sequential:
    """ResNet-18 for ImageNet: x [N, channels, H, W] -> [N, classes], four stages of two `BasicBlock`, 64 to 512 maps.

    Convolutions start as He et al. 2015 have it, normal with sd sqrt(2 / fan out).

    Args:
        classes: values of the output. channels: of the images.

    >>> import torch
    >>> with torch.device("meta"):  # shapes alone
    ...     sum(p.numel() for p in resnet18().parameters())
    11689512
    """
    blocks, maps = _stages(BasicBlock, (2, 2, 2, 2), 1)
    return _for_large_images(blocks, maps, classes, channels)


def resnet50(classes: int = 1000, channels: int = 3) -> nn.Sequential:
    """ResNet-50 for ImageNet: x [N, channels, H, W] -> [N, classes], stages of 3, 4, 6 and 3 `Bottleneck`, 256 to 2048 maps.

    Convolutions start as in `resnet18`.

    Args:
        classes: values of the output. channels: of the images.

    >>> import torch
    >>> with torch.device("meta"):  # shapes alone
    ...     sum(p.numel() for p in resnet50().parameters())
    25557032
    """
    blocks, maps = _stages(Bottleneck, (3, 4, 6, 3), 4)
    return _for_large_images(blocks, maps, classes, channels)


def _stages(
    block: type[BasicBlock] | type[Bottleneck], depths: tuple[int, ...], growth: int
) -> tuple[list[nn.Module], int]:
    """Blocks of stages of widths 64, 128, ..., with outputs `growth` times as wide; and how many maps the last one gives."""
    blocks: list[nn.Module] = []
    before = 64
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        for number in range(depth):
            blocks.append(block(before, width, 2 if stage and not number else 1))
            before = growth * width
    return blocks, before


def _for_large_images(blocks: list[nn.Module], width: int, classes: int, channels: int) -> nn.Sequential:
    stem = [nn.Conv2d(channels, 64, 7, 2, padding=3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]
    model = nn.Sequential(*stem, nn.MaxPool2d(3, 2, padding=1), *blocks, *head)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


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

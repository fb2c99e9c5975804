"""Residual networks (He et al. 2016): for small images (section 4.2), and for ImageNet's (table 1)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

Norm = Literal["before", "after"]
"""Where batch normalization stands: before the ReLU, as He et al. have it, or after it (akrout2019 D.1)."""

Stem = Literal["large", "small"]
"""How a ResNet-18 or -50 begins: for large images with 7x7, stride 2 and max pooling; for small ones, of 32 pixels, with 3x3."""


def _normalized(maps: int, norm: Norm) -> list[nn.Module]:
    """ReLU and batch normalization, in their order."""
    if norm not in ("before", "after"):
        raise ValueError(f"norm must be 'before' or 'after' the ReLU, got {norm!r}")
    layers = [nn.BatchNorm2d(maps), nn.ReLU()]
    return layers if norm == "before" else layers[::-1]


def _shortcut(before: int, after: int, stride: int, norm: Norm) -> nn.Module:
    """Where shapes change, a 1x1 convolution (option B of the paper)."""
    if stride == 1 and before == after:
        return nn.Identity()
    convolution = nn.Conv2d(before, after, 1, stride, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after)) if norm == "before" else convolution


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
        self.shortcut = _shortcut(before, after, stride, norm)

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

    def __init__(self, before: int, width: int, stride: int, norm: Norm = "before") -> None:
        super().__init__()
        self.norm = norm
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
        self.shortcut = _shortcut(before, after, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        if self.norm == "after":
            branch = self.bn1(self.relu1(self.conv1(x)))
            branch = self.bn2(self.relu2(self.conv2(branch)))
            return self.bn3(self.relu3(self.conv3(branch) + self.shortcut(x)))
        branch = self.relu1(self.bn1(self.conv1(x)))
        branch = self.relu2(self.bn2(self.conv2(branch)))
        return self.relu3(self.bn3(self.conv3(branch)) + self.shortcut(x))


def resnet18(classes: int = 1000, channels: int = 3, norm: Norm = "before", stem: Stem = "large") -> nn.Sequential:
    """ResNet-18 for ImageNet: x [N, channels, H, W] -> [N, classes], four stages of two `BasicBlock`, 64 to 512 maps.

    He et al. 2016, table 1. Convolutions start as He et al. 2015 have it, normal with sd sqrt(2 / fan out).

    Args:
        classes: values of the output. channels: of the images. norm: where batch normalization stands.
        stem: "large", or "small" for images of 32 pixels: 3x3, no stride, no pooling, as is usual for CIFAR (not in the paper).

    >>> import torch
    >>> with torch.device("meta"):  # shapes alone
    ...     sum(p.numel() for p in resnet18().parameters())
    11689512
    """
    blocks, maps = _stages(BasicBlock, (2, 2, 2, 2), 1, norm)
    return _in_four_stages(blocks, maps, classes, channels, norm, stem)


def resnet50(classes: int = 1000, channels: int = 3, norm: Norm = "before", stem: Stem = "large") -> nn.Sequential:
    """ResNet-50 for ImageNet: x [N, channels, H, W] -> [N, classes], stages of 3, 4, 6 and 3 `Bottleneck`, 256 to 2048 maps.

    He et al. 2016, table 1. Convolutions start as in `resnet18`.

    Args:
        classes: values of the output. channels: of the images. norm, stem: as for `resnet18`.

    >>> import torch
    >>> with torch.device("meta"):  # shapes alone
    ...     sum(p.numel() for p in resnet50().parameters())
    25557032
    """
    blocks, maps = _stages(Bottleneck, (3, 4, 6, 3), 4, norm)
    return _in_four_stages(blocks, maps, classes, channels, norm, stem)


def _stages(
    block: type[BasicBlock] | type[Bottleneck], depths: tuple[int, ...], growth: int, norm: Norm, width: int = 64
) -> tuple[list[nn.Module], int]:
    """Blocks of stages of doubling widths, with outputs `growth` times as wide; and how many maps the last one gives."""
    blocks: list[nn.Module] = []
    before = width
    for stage, depth in enumerate(depths):
        for number in range(depth):
            blocks.append(block(before, width * 2**stage, 2 if stage and not number else 1, norm))
            before = growth * width * 2**stage
    return blocks, before


def _in_four_stages(
    blocks: list[nn.Module], width: int, classes: int, channels: int, norm: Norm, stem: Stem
) -> nn.Sequential:
    if stem == "large":
        first = nn.Conv2d(channels, 64, 7, 2, padding=3, bias=False)
        pool: list[nn.Module] = [nn.MaxPool2d(3, 2, padding=1)]
    elif stem == "small":
        first, pool = nn.Conv2d(channels, 64, 3, padding=1, bias=False), []
    else:
        raise ValueError(f"stem must be 'large' or 'small', for images of 32 pixels, got {stem!r}")
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]
    model = nn.Sequential(first, *_normalized(64, norm), *pool, *blocks, *head)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def resnet20(classes: int = 10, channels: int = 3, norm: Norm = "before") -> nn.Sequential:
    """ResNet-20: x [N, channels, H, W] -> [N, classes], 16, 32 and 64 maps in three stages of three blocks (section 4.2).

    Args:
        classes: values of the output. channels: of the images. norm: where batch normalization stands.

    >>> sum(p.numel() for p in resnet20().parameters())
    272474
    """
    return _in_three_stages(3, classes, channels, norm)


def resnet32(classes: int = 10, channels: int = 3, norm: Norm = "before") -> nn.Sequential:
    """ResNet-32: as `resnet20`, with five blocks a stage (He et al. 2016, section 4.2).

    >>> sum(p.numel() for p in resnet32().parameters())
    466906
    """
    return _in_three_stages(5, classes, channels, norm)


def resnet56(classes: int = 10, channels: int = 3, norm: Norm = "before") -> nn.Sequential:
    """ResNet-56: as `resnet20`, with nine blocks a stage (He et al. 2016, section 4.2).

    >>> sum(p.numel() for p in resnet56().parameters())
    855770
    """
    return _in_three_stages(9, classes, channels, norm)


def _in_three_stages(depth: int, classes: int, channels: int, norm: Norm) -> nn.Sequential:
    stem = [nn.Conv2d(channels, 16, 3, padding=1, bias=False), *_normalized(16, norm)]
    blocks, width = _stages(BasicBlock, (depth,) * 3, 1, norm, 16)
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))

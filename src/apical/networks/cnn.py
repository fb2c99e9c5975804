"""The convolutional networks of lansdell2020 and nokland2016."""

from __future__ import annotations

from torch import nn

from apical.networks.layers import Form, UnscaledDropout, check_form


def lansdell2020_cnn(classes: int = 10, dropout: float = 0.5, form: Form = "paper") -> nn.Sequential:
    """CNN for 3 x 32 x 32 images: x [N, 3, 32, 32] -> [N, classes] (lansdell2020 C.4, as printed).

    Convolutions 3x3 with 32 maps, 5x5 with 128 and 5x5 with 256, each followed by tanh and 3x3 max-pooling with stride 2;
    two hidden layers of 2048 with dropout after each. The released code pads everything to SAME and has 5x5 with 96 maps in
    its first layer; tanh and the padding are the code's, the sizes the paper's. Dropout rescales as PyTorch's does; the code
    masks without rescaling.

    Args:
        classes: values of the output. dropout: the fraction dropped.
        form: "paper"; or "code": 5x5 with 96 maps first, masks without rescaling, biases that start at 0.1, linear weights at
            U(+-1/sqrt(fan in)), convolutions at U(+-1/sqrt(h w c)) with the size of their *inputs*. That code feeds pixels of
            0 to 255 as they are.

    >>> import torch
    >>> lansdell2020_cnn()(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    check_form(form)
    first = (3, 32, 3) if form == "paper" else (3, 96, 5)
    layers: list[nn.Module] = []
    for before, after, kernel in (first, (first[1], 128, 5), (128, 256, 5)):
        # SAME as TensorFlow has it for even sizes: the last window is cut off at the edge, 32 -> 16 -> 8 -> 4.
        layers += [nn.Conv2d(before, after, kernel, padding=kernel // 2), nn.Tanh(), nn.MaxPool2d(3, 2, ceil_mode=True)]
    layers += [nn.Flatten()]
    drop = nn.Dropout if form == "paper" else UnscaledDropout
    for before in (4096, 2048):
        layers += [nn.Linear(before, 2048), nn.Tanh(), drop(dropout)]
    net = nn.Sequential(*layers, nn.Linear(2048, classes))
    if form == "code":
        _start_as_released(net)
    return net


def _start_as_released(net: nn.Sequential) -> None:
    size = 32
    for layer in net:
        if isinstance(layer, nn.Conv2d):
            bound = (size**2 * layer.in_channels) ** -0.5
            size //= 2
        elif isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
        else:
            continue
        nn.init.uniform_(layer.weight, -bound, bound)
        if layer.bias is not None:
            nn.init.constant_(layer.bias, 0.1)


def nokland2016_conv(classes: int = 10, channels: int = 3, *, zero: bool = False) -> nn.Sequential:
    """CONV of nokland2016 tables 2 and 3: x [N, channels, 32, 32] -> [N, classes] (sizes from the released code).

    Convolutions 5x5 with 96, 128 and 256 maps and padding 2, each followed by tanh and 3x3 max-pooling with stride 2 and no
    padding (32 -> 15 -> 7 -> 3), two hidden layers of 2048 with tanh, linear output (logistic in the loss).

    Args:
        classes: values of the output. channels: of the images.
        zero: weights and biases start at zero, as for FA and DFA; else at U(+-1/sqrt(fan in)), as for BP (section 4).

    >>> import torch
    >>> nokland2016_conv(zero=True)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    layers: list[nn.Module] = []
    for before, after in ((channels, 96), (96, 128), (128, 256)):
        layers += [nn.Conv2d(before, after, 5, padding=2), nn.Tanh(), nn.MaxPool2d(3, 2)]
    layers += [nn.Flatten(), nn.Linear(2304, 2048), nn.Tanh(), nn.Linear(2048, 2048), nn.Tanh()]
    net = nn.Sequential(*layers, nn.Linear(2048, classes))
    for parameter in net.parameters() if zero else ():  # PyTorch's own start is the other one.
        nn.init.zeros_(parameter)
    return net

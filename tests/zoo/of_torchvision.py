"""Networks of torchvision."""

from __future__ import annotations

import importlib
from functools import partial

import torch
from torch import nn

from zoo.libraries import torchvision
from zoo.networks import Network, images, noise

models = torchvision.models


def resnet(block: str, **options) -> nn.Module:
    return models.resnet.ResNet(getattr(models.resnet, block), [1, 1, 1, 1], num_classes=10, **options)


def small_classifier(make, features: int) -> nn.Module:
    """A network with a classifier of a thousandth of the size; the large one is never filled."""
    with torch.device("meta"):
        model = make()
    model.classifier = nn.Sequential(nn.Linear(features, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10))
    model.to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return model


def vgg() -> nn.Module:
    layers = [8, "M", 16, "M", 32, 32, "M"]
    make = models.vgg.make_layers
    return small_classifier(lambda: models.vgg.VGG(make(layers, batch_norm=True), init_weights=False), 32 * 49)


def efficientnet(fused: bool) -> nn.Module:
    of = models.efficientnet
    first = of.FusedMBConvConfig(1, 3, 1, 8, 8, 1) if fused else of.MBConvConfig(1, 3, 1, 8, 8, 1)
    settings = [first, of.MBConvConfig(4, 3, 2, 8, 16, 2), of.MBConvConfig(4, 5, 2, 16, 24, 1)]
    return of.EfficientNet(settings, dropout=0.2, num_classes=10, last_channel=64)


def regnet() -> nn.Module:
    of = models.regnet
    sizes = of.BlockParams.from_init_params(depth=4, w_0=16, w_a=16.0, w_m=2.0, group_width=8, se_ratio=0.25)
    return of.RegNet(sizes, num_classes=10)


def convnext() -> nn.Module:
    of = models.convnext
    return of.ConvNeXt([of.CNBlockConfig(16, 32, 2), of.CNBlockConfig(32, None, 1)], num_classes=10)


def swin(**options) -> nn.Module:
    kind = models.swin_transformer.SwinTransformer
    return kind([4, 4], 16, [2, 2], [2, 2], [4, 4], num_classes=10, stochastic_depth_prob=0.0, **options)


def swin_v2() -> nn.Module:
    of = models.swin_transformer
    return swin(block=of.SwinTransformerBlockV2, downsample_layer=of.PatchMergingV2)


def googlenet() -> nn.Module:
    of = importlib.import_module("torchvision.models.googlenet")
    blocks = [thin(of.BasicConv2d), partial(of.Inception, conv_block=thin(of.BasicConv2d)), of.InceptionAux]
    model = of.GoogLeNet(10, aux_logits=False, transform_input=True, init_weights=False, blocks=blocks)
    model.fc = nn.Linear(128, 10)
    return model


def inception() -> nn.Module:
    of = models.inception
    parts = [getattr(of, f"Inception{letter}") for letter in "ABCDE"]
    blocks = [thin(of.BasicConv2d), *(partial(one, conv_block=thin(of.BasicConv2d)) for one in parts), of.InceptionAux]
    model = of.Inception3(10, aux_logits=False, init_weights=False, inception_blocks=blocks)
    model.fc = nn.Linear(256, 10)
    return model


def thin(block: type[nn.Module]):
    """Blocks of an eighth of the channels."""
    return lambda inward, outward, **options: block(inward if inward == 3 else inward // 8, outward // 8, **options)


def segmentation(head: str) -> nn.Module:
    backbone = models._utils.IntermediateLayerGetter(resnet("BasicBlock"), {"layer2": "out"})
    of = models.segmentation
    if head == "fcn":
        return of.fcn.FCN(backbone, of.fcn.FCNHead(128, 4))
    return of.deeplabv3.DeepLabV3(backbone, of.deeplabv3.DeepLabHead(128, 4, (1, 2, 3)))


def video(makers: str, stem: str) -> nn.Module:
    of = models.video.resnet
    return of.VideoResNet(of.BasicBlock, [getattr(of, makers)] * 4, [1, 1, 1, 1], getattr(of, stem), num_classes=10)


def video_swin() -> nn.Module:
    kind = models.video.swin_transformer.SwinTransformer3d
    return kind([2, 4, 4], 16, [2, 2], [2, 2], [2, 4, 4], num_classes=10, stochastic_depth_prob=0.0)


def video_mvit() -> nn.Module:
    of = models.video.mvit
    blocks = [of.MSBlockConfig(1, 16, 32, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 2, 2])]
    blocks += [of.MSBlockConfig(2, 32, 32, [], [3, 3, 3], [], [1, 1, 1])]
    return of.MViT((16, 16), 4, blocks, True, True, False, 0.0, num_classes=10)


FUNCTIONAL = "weights are used outside of their layers, by a function that takes them"


def network(name: str, build, example=None, **options) -> Network:
    return Network(name, "torchvision", build, images() if example is None else example, **options)


NETWORKS = [
    network("ResNet", partial(resnet, "BasicBlock")),
    network("ResNet with bottlenecks", partial(resnet, "Bottleneck", width_per_group=16)),
    network("ResNeXt", partial(resnet, "Bottleneck", groups=8, width_per_group=4)),
    network("DenseNet", lambda: models.DenseNet(8, (2, 2, 2), 16, num_classes=10)),
    network("MobileNetV2", lambda: models.MobileNetV2(10, 0.25, [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 1, 2]])),
    network("MobileNetV3", lambda: models.mobilenet_v3_small(weights=None, width_mult=0.25, num_classes=10)),
    network("EfficientNet", partial(efficientnet, False)),
    network("EfficientNetV2", partial(efficientnet, True)),
    network("ShuffleNetV2", lambda: models.ShuffleNetV2([1, 2, 1], [8, 16, 32, 64, 64], num_classes=10)),
    network("MNASNet", lambda: models.MNASNet(0.25, num_classes=10), images(64)),
    network("RegNet", regnet),
    network("SqueezeNet", lambda: models.SqueezeNet("1_1", num_classes=10)),
    network("GoogLeNet", googlenet),
    network("Inception v3", inception, images(80)),
    network("VGG with batch normalization", vgg),
    network("AlexNet", lambda: small_classifier(models.AlexNet, 256 * 36), images(64)),
    network("ConvNeXt", convnext),
    network("Swin", swin, refused=FUNCTIONAL),
    network("Swin v2", swin_v2, refused=FUNCTIONAL),
    network("ViT", lambda: models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=10)),
    network("MaxViT", lambda: models.MaxVit((32, 32), 8, 4, [8, 16], [1, 1], 8, 0.0, num_classes=10)),
    network("FCN", partial(segmentation, "fcn"), output="out"),
    network("DeepLabV3", partial(segmentation, "deeplab"), output="out"),
    network("R3D (video)", partial(video, "Conv3DSimple", "BasicStem"), lambda: noise(2, 3, 4, 16, 16)),
    network("R(2+1)D (video)", partial(video, "Conv2Plus1D", "R2Plus1dStem"), lambda: noise(2, 3, 4, 16, 16)),
    network("Swin3D (video)", video_swin, lambda: noise(2, 3, 4, 16, 16), refused=FUNCTIONAL),
    network("MViT (video)", video_mvit, lambda: noise(2, 3, 4, 16, 16), no_dfa="heads are laid into the batch"),
]

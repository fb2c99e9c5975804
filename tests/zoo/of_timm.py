"""Networks of timm."""

from __future__ import annotations

from functools import partial

from torch import nn

from zoo.libraries import timm
from zoo.networks import Network, images

models = timm.models


def network(name: str, build, size: int = 32, **options) -> Network:
    return Network(name, "timm", partial(build, num_classes=10), images(size), **options)


def named(model: str, **options):
    """What builds timm's `model` with other sizes."""
    return partial(timm.create_model, model, pretrained=False, **options)


def mlp_mixer(block: str, **options):
    of = models.mlp_mixer
    return partial(
        of.MlpMixer, img_size=32, patch_size=8, num_blocks=2, embed_dim=16, block_layer=getattr(of, block), **options
    )


def poolformer(**options) -> nn.Module:
    return models.metaformer.MetaFormer(
        depths=(1, 1, 1, 1),
        dims=(8, 16, 16, 16),
        downsample_norm=None,
        mlp_act=nn.GELU,
        mlp_bias=True,
        norm_layers=models.metaformer.GroupNorm1,
        layer_scale_init_values=1e-5,
        res_scale_init_values=None,
        use_mlp_head=False,
        **options,
    )


def mobilevit(**options) -> nn.Module:
    of = models.mobilevit
    sizes = {"transformer_dim": 16, "transformer_depth": 1, "patch_size": 2, "br": 2.0}
    blocks = (of._inverted_residual_block(d=1, c=8, s=1, br=2.0), of._mobilevit_block(d=1, c=16, s=2, **sizes))
    config = of.ByoModelCfg(blocks=blocks, stem_chs=8, stem_type="3x3", stem_pool="", downsample="", act_layer="silu")
    return of.ByobNet(config, **options)


def normalizer_free(**options) -> nn.Module:
    of = models.nfnet
    sizes = {"depths": (1, 1, 1, 1), "channels": (16, 32, 32, 32), "stem_chs": 16, "group_size": 8, "num_features": 32}
    settings = {"stem_type": "deep_quad", "attn_layer": "eca", "attn_kwargs": {}, "extra_conv": True, "skipinit": True}
    return of.NormFreeNet(of.NfCfg(**sizes, **settings), **options)


def hrnet(**options) -> nn.Module:
    def stage(block: str, *channels: int) -> dict:
        branches = len(channels)
        sizes = {"num_branches": branches, "num_blocks": (1,) * branches, "num_channels": channels}
        return {"num_modules": 1, "block_type": block, "fuse_method": "SUM", **sizes}

    sizes = [(8,), (8, 16), (8, 16, 16), (8, 16, 16, 16)]
    stages = {f"stage{1 + i}": stage("BASIC" if i else "BOTTLENECK", *channels) for i, channels in enumerate(sizes)}
    return models.hrnet.HighResolutionNet({"stem_width": 8, **stages}, **options)


def ghostnet(**options) -> nn.Module:
    # Kernel, inner and outer channels, squeeze and excitation, stride.
    blocks = [[[3, 16, 16, 0, 1]], [[3, 48, 24, 0, 2]], [[5, 72, 40, 0.25, 2]]]
    return models.ghostnet.GhostNet(blocks, width=0.5, **options)


def efficientnet(**options) -> nn.Module:
    make = models.efficientnet._gen_efficientnet
    return make("efficientnet_b0", channel_multiplier=0.25, depth_multiplier=0.3, pretrained=False, **options)


def with_bias_apart(model: str, **options):
    """Of BEiT's kind: the bias is added to what the layer gives, instead of the layer's weight being used elsewhere."""

    def build(**more) -> nn.Module:
        made = timm.create_model(model, pretrained=False, **options, **more)
        for module in made.modules():
            if hasattr(module, "qkv_bias_separate"):
                module.qkv_bias_separate = True
        return made

    return build


TINY = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 2}
SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 2), "drop_path_rate": 0.0}
STAGES = {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 16)}
PYRAMID = {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 16, 32), "num_heads": (1, 1, 2, 2)}
LEVIT = {"embed_dim": (16, 16, 16), "depth": (1, 1, 1), "num_heads": (2, 2, 2), "key_dim": 8, "img_size": 64}
COATNET = {"depths": (1, 1, 1, 1), "embed_dim": (8, 32, 32, 32), "stem_width": (8, 8), "img_size": 64}
WINDOWS = "windows are laid into the batch"
COMPUTED = "weights are computed from others in every pass"
FUSED = "qkv's weight is used outside of its layer, with a bias put together for it"

NETWORKS = [
    network("ViT", named("vit_tiny_patch16_224", **TINY)),
    network("ViT with layer scale and registers (DINOv2)", named("vit_small_patch14_reg4_dinov2", **TINY)),
    network("DeiT, distilled", named("deit_tiny_distilled_patch16_224", **TINY)),
    network("BEiT", named("beit_base_patch16_224", **TINY), refused=FUSED),
    network("BEiT, qkv_bias_separate = True", with_bias_apart("beit_base_patch16_224", init_values=1.0, **TINY)),
    network("EVA-02", named("eva02_base_patch14_224", **TINY)),
    network("CaiT", named("cait_xxs24_224", **TINY)),
    network("Swin", named("swin_tiny_patch4_window7_224", **SWIN), no_dfa=WINDOWS),
    network("Swin v2", named("swinv2_tiny_window8_256", **SWIN), refused=FUSED),
    network("Swin v2, qkv_bias_separate = True", with_bias_apart("swinv2_tiny_window8_256", **SWIN), no_dfa=WINDOWS),
    network("ConvNeXt", named("convnext_atto", **STAGES)),
    network("ConvNeXt V2", named("convnextv2_atto", **STAGES)),
    network("ConvMixer", partial(models.convmixer.ConvMixer, 16, 2, 3, 4)),
    network("MLP-Mixer", mlp_mixer("MixerBlock")),
    network("ResMLP", mlp_mixer("ResBlock", mlp_ratio=4, norm_layer=models.mlp_mixer.Affine)),
    network("gMLP", mlp_mixer("SpatialGatingBlock", mlp_ratio=4, mlp_layer=timm.layers.GatedMlp)),
    network("PoolFormer", poolformer),
    network("XCiT", named("xcit_nano_12_p16_224", **TINY)),
    network("CoAtNet", named("coatnet_nano_rw_224", **COATNET), 64),
    network("PVT v2", named("pvt_v2_b0", **PYRAMID), 64),
    network("Twins", named("twins_svt_small", img_size=64, **PYRAMID), 64),
    network("LeViT", named("levit_128s", **LEVIT), 64),
    network("MobileViT", mobilevit, no_dfa="patches are laid into the batch"),
    network("EfficientFormer", named("efficientformer_l1", depths=(1, 1, 1, 1), embed_dims=(8, 16, 16, 16)), 224),
    network("NFNet", normalizer_free, no_kp=COMPUTED),
    network(
        "ResNetV2 with standardized weights",
        partial(
            models.resnetv2.ResNetV2,
            [1, 1],
            (32, 64),
            stem_chs=32,
            norm_layer=partial(timm.layers.GroupNormAct, num_groups=4),
        ),
        no_kp=COMPUTED,
    ),
    network("ResNeSt", named("resnest14d", stem_width=8, base_width=16)),
    network("HRNet", hrnet, 64),
    network("GhostNet", ghostnet),
    network("EfficientNet", efficientnet, 64),
]

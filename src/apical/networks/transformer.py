"""Transformers on `nn.Linear` and PyTorch's scaled dot-product attention: of images, and of text."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEAD = 64
"""Units of a head of attention in GPTs by name, as GPT-2 has them."""


class SelfAttention(nn.Module):
    """Self-attention with several heads: x [N, T, width] -> [N, T, width].

    Args:
        width: of a position. heads: how many; they divide `width`.
        causal: whether a position sees none after it.
    """

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """What the positions gather from each other."""
        # [N, T, 3 width] -> three of [N, heads, T, width / heads]
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        gathered = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(gathered.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Attention and a layer four times as wide, each normalized before and added: x [N, T, width] -> [N, T, width].

    Args:
        width, heads, causal: as `SelfAttention` has them. eps: of the normalizations.
    """

    def __init__(self, width: int, heads: int, *, causal: bool, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps)
        self.attention = SelfAttention(width, heads, causal=causal)
        self.norm2 = nn.LayerNorm(width, eps)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Vision transformer (Dosovitskiy et al. 2021): x [N, channels, size, size] -> [N, classes], read from a class token.

    Args:
        size: side of the images. patch: side of a patch; it divides `size`. channels: of the images.
        width: of a position. depth: number of blocks. heads: of attention. classes: values of the output.

    Raises:
        ValueError: if patches don't fill the images.

    >>> VisionTransformer(size=32, patch=16, width=8, depth=2, heads=2, classes=5)(torch.zeros(3, 3, 32, 32)).shape
    torch.Size([3, 5])
    """

    def __init__(
        self, *, size: int, patch: int, width: int, depth: int, heads: int, classes: int, channels: int = 3
    ) -> None:
        super().__init__()
        if size % patch:
            raise ValueError(f"images of {size} x {size} are not made of patches of {patch} x {patch}; resize them")
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, 1 + (size // patch) ** 2, width))
        self.blocks = nn.Sequential(
            *(TransformerBlock(width, heads, causal=False, eps=1e-6) for _ in range(depth)),
        )
        self.norm = nn.LayerNorm(width, 1e-6)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """The outputs."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1).to(x.dtype), x], 1) + self.places
        return self.head(self.norm(self.blocks(x)[:, 0]))


def vit_s16(classes: int = 1000, channels: int = 3, size: int = 224) -> VisionTransformer:
    """ViT-S/16 (Touvron et al. 2021): patches of 16 x 16, 12 blocks of width 384 with 6 heads.

    Args:
        classes: values of the output. channels: of the images. size: side of the images.

    >>> with torch.device("meta"):  # shapes alone
    ...     sum(p.numel() for p in vit_s16().parameters())
    22050664
    """
    return VisionTransformer(size=size, patch=16, width=384, depth=12, heads=6, classes=classes, channels=channels)


class GPT(nn.Module):
    """Decoder that predicts each next token (Radford et al. 2019): tokens [N, T] -> [N, T, vocabulary], T <= context.

    There is no dropout.

    Args:
        vocabulary: number of tokens. context: the most positions. width: of a position. depth: number of blocks.
        heads: of attention. tied: whether the output's weights are the tokens' embedding.

    >>> GPT(vocabulary=11, context=6, width=8, depth=2, heads=2)(torch.zeros(3, 5, dtype=torch.long)).shape
    torch.Size([3, 5, 11])
    """

    def __init__(self, *, vocabulary: int, context: int, width: int, depth: int, heads: int, tied: bool = True) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, causal=True, eps=1e-5) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, 0.0, 0.02)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """The outputs at every position."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.places(places))))


def gpt(width: int, depth: int, *, vocabulary: int = 256, context: int = 128) -> GPT:
    """A small GPT for bytes, whose output has weights of its own; a head for every 64 units.

    Args:
        width: of a position: less than 64, or a multiple of it. depth: number of blocks. vocabulary: number of tokens.
        context: the most positions.

    Raises:
        ValueError: if heads don't fill the width.

    >>> sum(p.numel() for p in gpt(256, 4).parameters())
    3323392
    """
    if width > HEAD and width % HEAD:
        raise ValueError(f"width must be less than {HEAD}, or a multiple of it, the units of a head, got {width}")
    heads = max(1, width // HEAD)
    return GPT(vocabulary=vocabulary, context=context, width=width, depth=depth, heads=heads, tied=False)


def gpt_124m(vocabulary: int = 50257, context: int = 1024) -> GPT:
    """GPT-2's smallest (Radford et al. 2019): 12 blocks of width 768 with 12 heads, 124 million parameters.

    Args:
        vocabulary: number of tokens. context: the most positions.

    >>> with torch.device("meta"):  # shapes alone
    ...     sum(p.numel() for p in gpt_124m().parameters())
    124439808
    """
    return GPT(vocabulary=vocabulary, context=context, width=768, depth=12, heads=12)

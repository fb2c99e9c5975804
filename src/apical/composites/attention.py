"""Multi-head attention whose projections are layers (`torch.nn.MultiheadAttention`)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from typing_extensions import override

from apical.composites.projection import Projection
from apical.composites.unfused import Unfused, unfuses
from apical.synapses.kinds.linear import LinearSynapse
from apical.synapses.registry import register_synapse

register_synapse(NonDynamicallyQuantizableLinear, LinearSynapse)


@unfuses
class UnfusedAttention(Unfused, nn.MultiheadAttention):
    """Attention with the projections "in_proj" (or "q_proj", "k_proj", "v_proj") and "out_proj" as layers."""

    plain = nn.MultiheadAttention
    in_proj: Projection
    q_proj: Projection
    k_proj: Projection
    v_proj: Projection
    # What nn.TransformerEncoder asks before it takes its fused path, which reads the weights itself.
    _qkv_same_embed_dim = property(lambda self: False)

    @override
    def projections(self) -> Iterable[tuple[str, str, str | None]]:
        if self.in_proj_weight is not None:
            return [("in_proj", "in_proj_weight", None if self.in_proj_bias is None else "in_proj_bias")]
        return [(name, f"{name}_weight", None) for name in ("q_proj", "k_proj", "v_proj")]

    @override
    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Output and attention weights, as the plain layer gives them."""
        self.link()
        if is_causal and attn_mask is None:
            raise RuntimeError(
                "is_causal=True is a hint about attn_mask, which is missing; give attn_mask too, as "
                "nn.Transformer.generate_square_subsequent_mask(length) makes it"
            )
        alone = query.dim() == 2
        leading = [self._leading(x, alone) for x in (query, key, value)]
        q, k, v = self._project(*leading, query_is_key=query is key, key_is_value=key is value)
        if alone and key_padding_mask is not None:
            key_padding_mask = key_padding_mask.unsqueeze(0)
        added = 0
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (torch.cat([x, b.expand(len(x), 1, -1)], 1) for x, b in ((k, self.bias_k), (v, self.bias_v)))
            added += 1
        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in (q, k, v))
        if self.add_zero_attn:
            k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
            added += 1
        mask = self._mask(q, attn_mask, key_padding_mask, added)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            y = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        if alone:
            return y.squeeze(0), None if weights is None else weights.squeeze(0)
        return (y if self.batch_first else y.transpose(0, 1)), weights

    def _leading(self, x: Tensor, alone: bool) -> Tensor:
        """An input with the batch in front, [N, L, E], as direct signals need it."""
        return x.unsqueeze(0) if alone else x if self.batch_first else x.transpose(0, 1)

    def _project(
        self, query: Tensor, key: Tensor, value: Tensor, *, query_is_key: bool, key_is_value: bool
    ) -> Iterable[Tensor]:
        if self.in_proj_weight is None:
            biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
            maps = ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
            return [y if b is None else y + b for (f, x), b in zip(maps, biases, strict=True) for y in (f(x),)]
        E = self.embed_dim
        if key_is_value and query_is_key:
            return self.in_proj(query).chunk(3, -1)
        if key_is_value:
            return (self.in_proj(query, 0, E), *self.in_proj(key, E, 3 * E).chunk(2, -1))
        return [self.in_proj(x, i * E, (i + 1) * E) for i, x in enumerate((query, key, value))]

    def _mask(self, q: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None, added: int) -> Tensor | None:
        """What is added to the scores [N, heads, L, S]."""
        masks = []
        if attn_mask is not None:
            mask = _additive(attn_mask, q.dtype)
            masks.append(mask if mask.dim() == 2 else mask.unflatten(0, (len(q), self.num_heads)))
        if key_padding_mask is not None:
            masks.append(_additive(key_padding_mask, q.dtype)[:, None, None, :])
        return F.pad(sum(masks[1:], masks[0]), (0, added)) if masks else None


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask that is added; True of a boolean one means: not to be looked at."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(mask, -torch.inf)

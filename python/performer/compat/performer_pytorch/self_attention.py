# SPDX-License-Identifier: Apache-2.0
"""Attention with its projections: of a sequence to itself, or to a context."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from performer.compat._local import LocalAttention
from performer.compat.performer_pytorch.fast_attention import Activation, FastAttention


def apply_rotary_pos_emb(q: Tensor, k: Tensor, sinu_pos: Tensor) -> tuple[Tensor, Tensor]:
    """Neighbouring channels of q and k [B, H, L, D] turned by a table [1, L, D] of sines and cosines."""
    sine, cosine = (part.to(q.dtype) for part in sinu_pos[0].chunk(2, dim=-1))

    def turned(x: Tensor) -> Tensor:
        first, second = x[..., ::2], x[..., 1::2]
        return torch.stack([first * cosine - second * sine, second * cosine + first * sine], -1).flatten(-2)

    return turned(q), turned(k)


class Attention(nn.Module):
    """Attention with its projections; base of SelfAttention and CrossAttention, which say what is attended to."""

    def __init__(
        self,
        dim: int,
        causal: bool = False,
        heads: int = 8,
        dim_head: int | None = 64,
        local_heads: int = 0,
        local_window_size: int = 256,
        nb_features: int | None = None,
        feature_redraw_interval: int | None = 1000,
        generalized_attention: bool = False,
        kernel_fn: Activation = F.relu,
        dropout: float = 0.0,
        no_projection: bool = False,
        qkv_bias: bool = False,
        attn_out_bias: bool = True,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim ({dim}) must be divisible by heads ({heads})")
        dim_head = dim_head or dim // heads
        inner = dim_head * heads
        self.fast_attention = FastAttention(
            dim_head,
            nb_features,
            causal=causal,
            generalized_attention=generalized_attention,
            kernel_fn=kernel_fn,
            no_projection=no_projection,
        )
        self.heads, self.global_heads = heads, heads - local_heads
        self.local_attn = LocalAttention(dim_head, local_window_size, causal, dropout) if local_heads else None
        self.to_q = nn.Linear(dim, inner, bias=qkv_bias)
        self.to_k = nn.Linear(dim, inner, bias=qkv_bias)
        self.to_v = nn.Linear(dim, inner, bias=qkv_bias)
        self.to_out = nn.Linear(inner, dim, bias=attn_out_bias)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        pos_emb: Tensor | None = None,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """x [B, L, D] -> same; masks bool, True keeps."""
        cross = context is not None
        source = x if context is None else context
        key_mask = context_mask if context_mask is not None else None if cross else mask
        q, k, v = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, y in ((self.to_q, x), (self.to_k, source), (self.to_v, source))
        )
        outputs = []
        split = self.global_heads
        if split:
            gq, gk, gv = q[:, :split], k[:, :split], v[:, :split]
            if key_mask is not None:
                gv = gv.masked_fill(~key_mask[:, None, :, None], 0.0)
            if pos_emb is not None and not cross:
                gq, gk = apply_rotary_pos_emb(gq, gk, pos_emb)
            outputs.append(self.fast_attention(gq, gk, gv))
        if self.local_attn is not None:
            if cross:
                raise ValueError("local attention is not compatible with cross attention")
            outputs.append(self.local_attn(q[:, split:], k[:, split:], v[:, split:], input_mask=mask))
        out = torch.cat(outputs, 1).transpose(1, 2).flatten(-2)
        return cast(Tensor, self.dropout(self.to_out(out)))


class SelfAttention(Attention):
    """Attention to the own sequence."""

    def forward(self, *args: Any, context: Tensor | None = None, **kwargs: Any) -> Tensor:
        """x [B, L, D] -> same; raises ValueError for a context."""
        if context is not None:
            raise ValueError("self attention takes no context: use CrossAttention")
        return super().forward(*args, **kwargs)


class CrossAttention(Attention):
    """Attention to a context [B, S, D]."""

    def forward(self, *args: Any, context: Tensor | None = None, **kwargs: Any) -> Tensor:
        """x [B, L, D] -> same; raises ValueError without a context."""
        if context is None:
            raise ValueError("cross attention needs a context")
        kwargs["context"] = context
        return super().forward(*args, **kwargs)

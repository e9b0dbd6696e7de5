# SPDX-License-Identifier: Apache-2.0
"""The stack and the language model, under the module name that they have in performer-pytorch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from performer.compat.performer_pytorch.fast_attention import (
    Activation,
    FastAttention,
    ProjectionUpdater,
    causal_linear_attention,
    causal_linear_attention_noncuda,
    gaussian_orthogonal_random_matrix,
    generalized_kernel,
    linear_attention,
    softmax_kernel,
)
from performer.compat.performer_pytorch.layers import (
    AbsolutePositionalEmbedding,
    Always,
    AxialPositionalEmbedding,
    Chunk,
    FeedForward,
    FixedPositionalEmbedding,
    PreLayerNorm,
    PreScaleNorm,
    PreShiftTokens,
    ReZero,
)
from performer.compat.performer_pytorch.reversible import ReversibleSequence, SequentialSequence
from performer.compat.performer_pytorch.self_attention import (
    Attention,
    CrossAttention,
    SelfAttention,
    apply_rotary_pos_emb,
)

__all__ = [
    "AbsolutePositionalEmbedding",
    "Always",
    "Attention",
    "AxialPositionalEmbedding",
    "Chunk",
    "CrossAttention",
    "FastAttention",
    "FeedForward",
    "FixedPositionalEmbedding",
    "Performer",
    "PerformerLM",
    "PreLayerNorm",
    "PreScaleNorm",
    "PreShiftTokens",
    "ProjectionUpdater",
    "ReZero",
    "SelfAttention",
    "apply_rotary_pos_emb",
    "causal_linear_attention",
    "causal_linear_attention_noncuda",
    "gaussian_orthogonal_random_matrix",
    "generalized_kernel",
    "linear_attention",
    "softmax_kernel",
]


class Performer(nn.Module):
    """A stack of blocks: x [B, L, D] -> same. Arguments are performer-pytorch's, whose examples leave dim_head out."""

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        dim_head: int | None = 64,
        local_attn_heads: int | Sequence[int] = 0,
        local_window_size: int = 256,
        causal: bool = False,
        ff_mult: int = 4,
        nb_features: int | None = None,
        feature_redraw_interval: int | None = 1000,
        reversible: bool = False,
        ff_chunks: int = 1,
        generalized_attention: bool = False,
        kernel_fn: Activation = F.relu,
        use_scalenorm: bool = False,
        use_rezero: bool = False,
        ff_glu: bool = False,
        ff_dropout: float = 0.0,
        attn_dropout: float = 0.0,
        cross_attend: bool = False,
        no_projection: bool = False,
        auto_check_redraw: bool = True,
        qkv_bias: bool = True,
        attn_out_bias: bool = True,
        shift_tokens: bool = False,
    ) -> None:
        super().__init__()
        local = (local_attn_heads,) * depth if isinstance(local_attn_heads, int) else tuple(local_attn_heads)
        local = local * depth if len(local) == 1 else local
        if len(local) != depth or not all(0 <= n <= heads for n in local):
            raise ValueError(
                f"local_attn_heads {local} must be one number from 0 to {heads} for each of {depth} layers"
            )

        def wrapped(module: nn.Module) -> nn.Module:
            if use_scalenorm:
                return PreScaleNorm(dim, module)
            return ReZero(module) if use_rezero else PreLayerNorm(dim, module)

        def attention(kind: type[Attention], is_causal: bool, local_heads: int) -> nn.Module:
            return kind(
                dim,
                causal=is_causal,
                heads=heads,
                dim_head=dim_head,
                local_heads=local_heads,
                local_window_size=local_window_size,
                nb_features=nb_features,
                generalized_attention=generalized_attention,
                kernel_fn=kernel_fn,
                dropout=attn_dropout,
                no_projection=no_projection,
                qkv_bias=qkv_bias,
                attn_out_bias=attn_out_bias,
            )

        def feed_forward() -> nn.Module:
            return Chunk(ff_chunks, FeedForward(dim, ff_mult, ff_dropout, glu=ff_glu), along_dim=1)

        shifts = (0, 1) if causal else (-1, 0, 1)

        def shifted(module: nn.Module) -> nn.Module:
            return PreShiftTokens(shifts, module) if shift_tokens else module

        layers = nn.ModuleList()
        for local_heads in local:
            own = (shifted(attention(SelfAttention, causal, local_heads)), shifted(feed_forward()))
            layers.append(nn.ModuleList(wrapped(module) for module in own))
            if cross_attend:
                cross = (attention(CrossAttention, False, 0), feed_forward())
                layers.append(nn.ModuleList(wrapped(module) for module in cross))
        to_self = ((True, False), (False, False)) if cross_attend else ((True, False),)
        to_cross = ((False, False), (True, False)) if cross_attend else ((False, False),)
        route = dict.fromkeys(("mask", "pos_emb"), to_self * depth)
        if cross_attend:
            route |= dict.fromkeys(("context", "context_mask"), to_cross * depth)
        self.net = ReversibleSequence(layers, route) if reversible else SequentialSequence(layers, route)
        self.auto_check_redraw = auto_check_redraw
        self.proj_updater = ProjectionUpdater(self.net, feature_redraw_interval)

    def fix_projection_matrices_(self) -> None:
        """Never redraws projections again."""
        self.proj_updater.feature_redraw_interval = None

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """x [B, L, D]; keywords mask, pos_emb, context, context_mask."""
        if self.auto_check_redraw:
            self.proj_updater.redraw_projections()
        return cast(Tensor, self.net(x, **kwargs))


class PerformerLM(nn.Module):
    """A language model: tokens [B, L] -> logits [B, L, num_tokens]. Arguments are performer-pytorch's."""

    def __init__(
        self,
        *,
        num_tokens: int,
        max_seq_len: int,
        dim: int,
        depth: int,
        heads: int,
        dim_head: int | None = 64,
        local_attn_heads: int | Sequence[int] = 0,
        local_window_size: int = 256,
        causal: bool = False,
        ff_mult: int = 4,
        nb_features: int | None = None,
        feature_redraw_interval: int | None = 1000,
        reversible: bool = False,
        ff_chunks: int = 1,
        ff_glu: bool = False,
        emb_dropout: float = 0.0,
        ff_dropout: float = 0.0,
        attn_dropout: float = 0.0,
        generalized_attention: bool = False,
        kernel_fn: Activation = F.relu,
        use_scalenorm: bool = False,
        use_rezero: bool = False,
        cross_attend: bool = False,
        no_projection: bool = False,
        tie_embed: bool = False,
        rotary_position_emb: bool = True,
        axial_position_emb: bool = False,
        axial_position_shape: Sequence[int] | None = None,
        auto_check_redraw: bool = True,
        qkv_bias: bool = False,
        attn_out_bias: bool = False,
        shift_tokens: bool = False,
    ) -> None:
        super().__init__()
        self.max_seq_len = max_seq_len
        self.token_emb = nn.Embedding(num_tokens, dim)
        self.pos_emb: nn.Module
        self.layer_pos_emb: nn.Module
        if rotary_position_emb:
            self.pos_emb = FixedPositionalEmbedding(dim, max_seq_len)
            self.layer_pos_emb = FixedPositionalEmbedding(dim_head or dim // heads, max_seq_len)
        elif axial_position_emb:
            shape = axial_position_shape or (math.ceil(max_seq_len / 64), 64)
            self.pos_emb, self.layer_pos_emb = AxialPositionalEmbedding(dim, shape), Always(None)
        else:
            self.pos_emb, self.layer_pos_emb = AbsolutePositionalEmbedding(dim, max_seq_len), Always(None)
        self.dropout = nn.Dropout(emb_dropout)
        self.performer = Performer(
            dim,
            depth,
            heads,
            dim_head,
            local_attn_heads,
            local_window_size,
            causal,
            ff_mult,
            nb_features,
            feature_redraw_interval,
            reversible,
            ff_chunks,
            generalized_attention,
            kernel_fn,
            use_scalenorm,
            use_rezero,
            ff_glu,
            ff_dropout,
            attn_dropout,
            cross_attend,
            no_projection,
            auto_check_redraw,
            qkv_bias,
            attn_out_bias,
            shift_tokens,
        )
        self.norm = nn.LayerNorm(dim)
        self.to_out = None if tie_embed else nn.Linear(dim, num_tokens)
        nn.init.normal_(self.token_emb.weight, std=0.02)

    def check_redraw_projections(self) -> None:
        """Counts a training call of the stack (auto_check_redraw=False)."""
        self.performer.proj_updater.redraw_projections()

    def fix_projection_matrices_(self) -> None:
        """Never redraws projections again."""
        self.performer.fix_projection_matrices_()

    def forward(self, x: Tensor, return_encodings: bool = False, **kwargs: Any) -> Tensor:
        """Logits, or with return_encodings the final norm's output.

        Raises:
            ValueError: for a sequence beyond max_seq_len.
        """
        if x.shape[1] > self.max_seq_len:
            raise ValueError(f"sequence length {x.shape[1]} must be at most max_seq_len {self.max_seq_len}")
        positions = self.layer_pos_emb(x.float() if isinstance(self.layer_pos_emb, FixedPositionalEmbedding) else x)
        embedded = self.token_emb(x)
        embedded = self.dropout(embedded + self.pos_emb(embedded))
        encoded = self.norm(self.performer(embedded, pos_emb=positions, **kwargs))
        if return_encodings:
            return cast(Tensor, encoded)
        if self.to_out is None:
            return cast(Tensor, encoded @ self.token_emb.weight.t())
        return cast(Tensor, self.to_out(encoded))

# SPDX-License-Identifier: Apache-2.0
"""Exact attention to the keys of the largest scores."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from performer.compat.fast_transformers.attention._softmax_attention import SoftmaxAttention
from performer.compat.fast_transformers.attention_registry import AttentionRegistry, Int, Optional
from performer.compat.fast_transformers.attention_registry.parameters import SOFTMAX
from performer.compat.fast_transformers.masking import BaseMask


class ExactTopKAttention(SoftmaxAttention):
    """Softmax attention of each query to those `topk` keys that it scores highest."""

    def __init__(
        self,
        topk: int = 32,
        softmax_temp: float | None = None,
        attention_dropout: float = 0.1,
        event_dispatcher: Any = "",
    ) -> None:
        super().__init__(softmax_temp, attention_dropout, event_dispatcher)
        self.topk = topk

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        attn_mask: BaseMask,
        query_lengths: BaseMask | None,
        key_lengths: BaseMask | None,
    ) -> Tensor:
        """[N, L, H, E]."""
        temperature = self._temperature(queries)
        scores = torch.einsum("nlhe,nshe->nhls", queries, keys)
        if not attn_mask.all_ones:
            scores = scores + attn_mask.additive_matrix.to(scores.dtype)
        if key_lengths is not None:
            scores = scores + key_lengths.additive_matrix[:, None, None].to(scores.dtype)
        best = scores.topk(min(self.topk, keys.shape[1]), sorted=False).indices
        kept = torch.full_like(scores, -math.inf).scatter(-1, best, 0.0)
        weights = self.dropout((temperature * (scores + kept)).softmax(-1))
        return torch.einsum("nhls,nshd->nlhd", weights, values).contiguous()


AttentionRegistry.register("exact-topk", ExactTopKAttention, [("topk", Optional(Int, 32)), *SOFTMAX])

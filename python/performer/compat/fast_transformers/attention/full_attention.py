# SPDX-License-Identifier: Apache-2.0
"""Exact attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from performer.compat.fast_transformers.attention_registry import AttentionRegistry
from performer.compat.fast_transformers.attention_registry.parameters import SOFTMAX
from performer.compat.fast_transformers.events import AttentionEvent, EventDispatcher
from performer.compat.fast_transformers.masking import BaseMask


class FullAttention(nn.Module):
    """Exact softmax attention."""

    def __init__(
        self, softmax_temp: float | None = None, attention_dropout: float = 0.1, event_dispatcher: Any = ""
    ) -> None:
        super().__init__()
        self.softmax_temp = softmax_temp
        self.dropout = nn.Dropout(attention_dropout)
        self.event_dispatcher = EventDispatcher.get(event_dispatcher)

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
        temperature = self.softmax_temp or 1 / math.sqrt(queries.shape[-1])
        scores = torch.einsum("nlhe,nshe->nhls", queries * temperature, keys)
        if not attn_mask.all_ones:
            scores = scores + attn_mask.additive_matrix.to(scores.dtype)
        if key_lengths is not None and not key_lengths.all_ones:
            scores = scores + key_lengths.additive_matrix[:, None, None].to(scores.dtype)
        weights = self.dropout(scores.softmax(-1))
        self.event_dispatcher.dispatch(AttentionEvent(self, weights))
        return torch.einsum("nhls,nshd->nlhd", weights, values).contiguous()


AttentionRegistry.register("full", FullAttention, SOFTMAX)

# SPDX-License-Identifier: Apache-2.0
"""Exact attention of short sequences, another attention of long ones."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from performer.compat.fast_transformers.attention.full_attention import FullAttention
from performer.compat.fast_transformers.attention_registry import AttentionRegistry, Int, Optional
from performer.compat.fast_transformers.attention_registry.parameters import SOFTMAX
from performer.compat.fast_transformers.events import EventDispatcher
from performer.compat.fast_transformers.masking import BaseMask


class ConditionalFullAttention(nn.Module):
    """`other_attention` where there are more than `length_limit` queries or keys, otherwise exact attention."""

    def __init__(
        self,
        other_attention: nn.Module,
        length_limit: int = 512,
        softmax_temp: float | None = None,
        attention_dropout: float = 0.1,
        event_dispatcher: Any = "",
    ) -> None:
        super().__init__()
        self.full_attention = FullAttention(softmax_temp, attention_dropout)
        self.other_attention = other_attention
        self.length_limit = length_limit
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
        longest = max(queries.shape[1], values.shape[1])
        chosen = self.full_attention if longest <= self.length_limit else self.other_attention
        return cast(Tensor, chosen(queries, keys, values, attn_mask, query_lengths, key_lengths))


AttentionRegistry.register(
    "conditional-full", ConditionalFullAttention, [("length_limit", Optional(Int, 512)), *SOFTMAX]
)

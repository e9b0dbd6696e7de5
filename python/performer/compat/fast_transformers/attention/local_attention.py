# SPDX-License-Identifier: Apache-2.0
"""Exact attention to the keys around a query."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from performer.compat.fast_transformers.attention._softmax_attention import SoftmaxAttention
from performer.compat.fast_transformers.attention_registry import AttentionRegistry, Int
from performer.compat.fast_transformers.attention_registry.parameters import SOFTMAX
from performer.compat.fast_transformers.local_product import local_dot_product, local_weighted_average
from performer.compat.fast_transformers.masking import BaseMask


class LocalAttention(SoftmaxAttention):
    """Softmax attention of query i to the `local_context` keys from i - local_context // 2 on.

    Masks are finite: a query whose keys are all hidden averages what is in its context.
    """

    def __init__(
        self,
        local_context: int,
        softmax_temp: float | None = None,
        attention_dropout: float = 0.1,
        event_dispatcher: Any = "",
    ) -> None:
        super().__init__(softmax_temp, attention_dropout, event_dispatcher)
        if local_context < 1:
            raise ValueError(f"local_context must be at least 1, found {local_context}")
        self.local_context = local_context

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        attn_mask: BaseMask,
        query_lengths: BaseMask | None,
        key_lengths: BaseMask,
    ) -> Tensor:
        """[N, L, H, E]."""
        temperature = self._temperature(queries)
        q, k, v = (x.transpose(1, 2) for x in (queries, keys, values))
        scores = local_dot_product(q, k, attn_mask.additive_matrix_finite, key_lengths.lengths, self.local_context)
        weights = self.dropout((temperature * scores).softmax(-1))
        return local_weighted_average(weights, v).transpose(1, 2).contiguous()


AttentionRegistry.register("local", LocalAttention, [("local_context", Int), *SOFTMAX])

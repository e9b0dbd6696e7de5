# SPDX-License-Identifier: Apache-2.0
"""Linear attention."""

from __future__ import annotations

from torch import Tensor

from performer.compat import _arithmetic
from performer.compat.fast_transformers.attention._feature_map_attention import FeatureMapAttention
from performer.compat.fast_transformers.attention_registry import AttentionRegistry
from performer.compat.fast_transformers.attention_registry.parameters import LINEAR
from performer.compat.fast_transformers.masking import BaseMask


class LinearAttention(FeatureMapAttention):
    """Bidirectional linear attention; raises RuntimeError for masks of single queries."""

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
        if not attn_mask.all_ones:
            raise RuntimeError("LinearAttention does not support arbitrary attention masks")
        q, k = self._features(queries, keys, key_lengths)
        return self._normalized(*_arithmetic.linear_attention(q, k, values.transpose(1, 2)), values.dtype)


AttentionRegistry.register("linear", LinearAttention, LINEAR)

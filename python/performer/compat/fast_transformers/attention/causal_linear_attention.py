# SPDX-License-Identifier: Apache-2.0
"""Causal linear attention."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from performer.compat import _arithmetic
from performer.compat.fast_transformers.attention._feature_map_attention import FeatureMapAttention
from performer.compat.fast_transformers.attention_registry import AttentionRegistry
from performer.compat.fast_transformers.attention_registry.parameters import LINEAR
from performer.compat.fast_transformers.masking import BaseMask


class CausalLinearAttention(FeatureMapAttention):
    """Causal linear attention; raises RuntimeError for other than triangular masks."""

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        attn_mask: BaseMask,
        query_lengths: BaseMask | None,
        key_lengths: BaseMask | None,
    ) -> Tensor:
        """[N, L, H, E]; keys beyond the L-th are dropped, and missing ones are taken for zeros."""
        if not attn_mask.lower_triangular:
            raise RuntimeError("CausalLinearAttention only supports full lower triangular masks")
        length = queries.shape[1]
        q, k = self._features(queries, keys, key_lengths)
        v = values.transpose(1, 2)
        missing = max(0, length - keys.shape[1])
        k, v = (F.pad(x[:, :, :length], (0, 0, 0, missing)) for x in (k, v))
        return self._normalized(*_arithmetic.causal_linear_attention(q, k, v), values.dtype)


AttentionRegistry.register("causal-linear", CausalLinearAttention, LINEAR)

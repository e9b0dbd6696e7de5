# SPDX-License-Identifier: Apache-2.0
"""Exact attention."""

from __future__ import annotations

import torch
from torch import Tensor

from performer.compat.fast_transformers.attention._softmax_attention import SoftmaxAttention
from performer.compat.fast_transformers.attention_registry import AttentionRegistry
from performer.compat.fast_transformers.attention_registry.parameters import SOFTMAX
from performer.compat.fast_transformers.events import AttentionEvent
from performer.compat.fast_transformers.masking import BaseMask


class FullAttention(SoftmaxAttention):
    """Exact softmax attention."""

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
        scores = torch.einsum("nlhe,nshe->nhls", queries * temperature, keys)
        if not attn_mask.all_ones:
            scores = scores + attn_mask.additive_matrix.to(scores.dtype)
        if key_lengths is not None and not key_lengths.all_ones:
            scores = scores + key_lengths.additive_matrix[:, None, None].to(scores.dtype)
        weights = self.dropout(scores.softmax(-1))
        self.event_dispatcher.dispatch(AttentionEvent(self, weights))
        return torch.einsum("nhls,nshd->nlhd", weights, values).contiguous()


AttentionRegistry.register("full", FullAttention, SOFTMAX)

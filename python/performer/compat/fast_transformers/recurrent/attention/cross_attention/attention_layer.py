# SPDX-License-Identifier: Apache-2.0
"""Projections around recurrent cross-attentions."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from performer.compat.fast_transformers.attention import AttentionLayer
from performer.compat.fast_transformers.masking import BaseMask
from performer.compat.fast_transformers.recurrent._state import State


class RecurrentCrossAttentionLayer(AttentionLayer):
    """Projections around a recurrent cross-attention; keys and values are read when there is no state."""

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        key_lengths: BaseMask | None = None,
        state: State | None = None,
    ) -> tuple[Tensor, State]:
        """Query [N, d_model], keys and values [N, S, d_model_keys] -> ([N, d_model], state)."""
        k = v = None
        if state is None:
            k, v = self._heads(self.key_projection(keys)), self._heads(self.value_projection(values))
        q = self._heads(self.query_projection(query))
        out, state = self.inner_attention(q, k, v, key_lengths, state=state)
        return self.out_projection(out.flatten(-2)), cast(State, state)

# SPDX-License-Identifier: Apache-2.0
"""Projections around recurrent self-attentions."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from performer.compat.fast_transformers.attention import AttentionLayer
from performer.compat.fast_transformers.recurrent._state import State, check_state


class RecurrentAttentionLayer(AttentionLayer):
    """Projections around a recurrent self-attention."""

    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, state: State | None = None, memory: State | None = None
    ) -> tuple[Tensor, State]:
        """[N, d_model] -> ([N, d_model], state)."""
        projected = (
            self._heads(self.query_projection(query)),
            self._heads(self.key_projection(key)),
            self._heads(self.value_projection(value)),
        )
        out, state = self.inner_attention(*projected, check_state(state, memory))
        return self.out_projection(out.flatten(-2)), cast(State, state)

# SPDX-License-Identifier: Apache-2.0
"""One more token of causal linear attention."""

from __future__ import annotations

import torch
from torch import Tensor

from performer.compat.fast_transformers.attention._feature_map_attention import FeatureMapAttention
from performer.compat.fast_transformers.attention_registry import RecurrentAttentionRegistry
from performer.compat.fast_transformers.attention_registry.parameters import LINEAR
from performer.compat.fast_transformers.recurrent._state import State, check_state


class RecurrentLinearAttention(FeatureMapAttention):
    """One more token of causal linear attention; the state is [S [N, H, M, E], Z [N, H, M]]."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, state: State | None = None, memory: State | None = None
    ) -> tuple[Tensor, State]:
        """Query, key [N, H, D], value [N, H, E] -> ([N, H, E], state).

        Raises:
            ValueError: when the batch size changes.
        """
        state = check_state(state, memory)
        if state is None:
            self.feature_map.new_feature_map(query.device)
        q, k = self.feature_map.forward_queries(query), self.feature_map.forward_keys(key)
        if state is None:
            state = [value.new_zeros(*k.shape, value.shape[-1]), torch.zeros_like(k)]
        if state[0].shape[0] != query.shape[0]:
            raise ValueError("The batch size changed during iteration")
        sums, total = state[0] + k.unsqueeze(-1) * value.unsqueeze(-2), state[1] + k
        scale = 1.0 / ((q * total).sum(-1, keepdim=True) + self.eps)
        return (q.unsqueeze(-2) @ sums).squeeze(-2) * scale, [sums, total]


RecurrentAttentionRegistry.register("linear", RecurrentLinearAttention, LINEAR)
RecurrentAttentionRegistry.register("causal-linear", RecurrentLinearAttention, LINEAR)

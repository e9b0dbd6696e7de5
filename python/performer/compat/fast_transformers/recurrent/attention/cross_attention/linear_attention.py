# SPDX-License-Identifier: Apache-2.0
"""Linear attention of one query to a memory."""

from __future__ import annotations

import torch
from torch import Tensor

from performer.compat.fast_transformers.attention._feature_map_attention import FeatureMapAttention
from performer.compat.fast_transformers.attention_registry import RecurrentCrossAttentionRegistry
from performer.compat.fast_transformers.attention_registry.parameters import LINEAR
from performer.compat.fast_transformers.masking import BaseMask
from performer.compat.fast_transformers.recurrent._state import State


class RecurrentCrossLinearAttention(FeatureMapAttention):
    """One query to a memory; the state is [S [N, H, E, M], Z [N, H, M]]."""

    def forward(
        self,
        query: Tensor,
        keys: Tensor | None,
        values: Tensor | None,
        key_lengths: BaseMask | None,
        state: State | None = None,
    ) -> tuple[Tensor, State]:
        """Query [N, H, D] -> ([N, H, E], state); keys and values are read when there is no state."""
        if state is None:
            if keys is None or values is None:
                raise ValueError("cross-attention without a state needs keys and values, found None")
            self.feature_map.new_feature_map(query.device)
            k = self.feature_map.forward_keys(keys)
            if key_lengths is not None:
                k = k * key_lengths.float_matrix[:, :, None, None].to(k.dtype)
            state = [torch.einsum("nshm,nshe->nhem", k, values), k.sum(1)]
        q = self.feature_map.forward_queries(query)
        scale = 1.0 / ((q * state[1]).sum(-1, keepdim=True) + self.eps)
        return (state[0] @ q.unsqueeze(-1)).squeeze(-1) * scale, state


RecurrentCrossAttentionRegistry.register("linear", RecurrentCrossLinearAttention, LINEAR)

# SPDX-License-Identifier: Apache-2.0
"""One more token of causal exact attention."""

from __future__ import annotations

import torch
from torch import Tensor

from performer.compat.fast_transformers.attention._softmax_attention import SoftmaxAttention
from performer.compat.fast_transformers.attention_registry import RecurrentAttentionRegistry
from performer.compat.fast_transformers.attention_registry.parameters import SOFTMAX
from performer.compat.fast_transformers.events import AttentionEvent
from performer.compat.fast_transformers.recurrent._state import State, check_state


class RecurrentFullAttention(SoftmaxAttention):
    """One more token of causal exact attention; the state, keys and values [N, H, S, .], grows with each token."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, state: State | None = None, memory: State | None = None
    ) -> tuple[Tensor, State]:
        """Query, key [N, H, D], value [N, H, E] -> ([N, H, E], state)."""
        state = check_state(state, memory)
        keys, values = key.unsqueeze(2), value.unsqueeze(2)
        if state is not None:
            keys, values = torch.cat([state[0], keys], 2), torch.cat([state[1], values], 2)
        temperature = self._temperature(query)
        scores = torch.einsum("nhd,nhsd->nhs", query, keys)
        weights = self.dropout((temperature * scores).softmax(-1))
        self.event_dispatcher.dispatch(AttentionEvent(self, weights))
        return torch.einsum("nhs,nhse->nhe", weights, values).contiguous(), [keys, values]


RecurrentAttentionRegistry.register("full", RecurrentFullAttention, SOFTMAX)

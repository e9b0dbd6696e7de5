# SPDX-License-Identifier: Apache-2.0
"""One more token of causal exact attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from performer.compat.fast_transformers.attention_registry import RecurrentAttentionRegistry
from performer.compat.fast_transformers.attention_registry.parameters import SOFTMAX
from performer.compat.fast_transformers.events import AttentionEvent, EventDispatcher
from performer.compat.fast_transformers.recurrent._state import State, check_state


class RecurrentFullAttention(nn.Module):
    """One more token of causal exact attention; the state, keys and values [N, H, S, .], grows with each token."""

    def __init__(
        self, softmax_temp: float | None = None, attention_dropout: float = 0.1, event_dispatcher: Any = ""
    ) -> None:
        super().__init__()
        self.softmax_temp = softmax_temp
        self.dropout = nn.Dropout(attention_dropout)
        self.event_dispatcher = EventDispatcher.get(event_dispatcher)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, state: State | None = None, memory: State | None = None
    ) -> tuple[Tensor, State]:
        """Query, key [N, H, D], value [N, H, E] -> ([N, H, E], state)."""
        state = check_state(state, memory)
        keys, values = key.unsqueeze(2), value.unsqueeze(2)
        if state is not None:
            keys, values = torch.cat([state[0], keys], 2), torch.cat([state[1], values], 2)
        temperature = self.softmax_temp or 1 / math.sqrt(query.shape[-1])
        scores = torch.einsum("nhd,nhsd->nhs", query, keys)
        weights = self.dropout((temperature * scores).softmax(-1))
        self.event_dispatcher.dispatch(AttentionEvent(self, weights))
        return torch.einsum("nhs,nhse->nhe", weights, values).contiguous(), [keys, values]


RecurrentAttentionRegistry.register("full", RecurrentFullAttention, SOFTMAX)

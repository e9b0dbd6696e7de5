# SPDX-License-Identifier: Apache-2.0
"""Exact attention of one query to a memory."""

from __future__ import annotations

import torch
from torch import Tensor

from performer.compat.fast_transformers.attention._softmax_attention import SoftmaxAttention
from performer.compat.fast_transformers.attention_registry import RecurrentCrossAttentionRegistry
from performer.compat.fast_transformers.attention_registry.parameters import SOFTMAX
from performer.compat.fast_transformers.events import AttentionEvent
from performer.compat.fast_transformers.masking import BaseMask
from performer.compat.fast_transformers.recurrent._state import State


class RecurrentCrossFullAttention(SoftmaxAttention):
    """Exact attention of one query to a memory; the state is its keys and values [N, S, H, .]."""

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
            state = [keys, values]
        temperature = self._temperature(query)
        scores = torch.einsum("nhd,nshd->nsh", query, state[0])
        if key_lengths is not None:
            scores = scores + key_lengths.additive_matrix.unsqueeze(-1).to(scores.dtype)
        weights = self.dropout((temperature * scores).softmax(1))
        self.event_dispatcher.dispatch(AttentionEvent(self, weights))
        return torch.einsum("nsh,nshe->nhe", weights, state[1]).contiguous(), state


RecurrentCrossAttentionRegistry.register("full", RecurrentCrossFullAttention, SOFTMAX)

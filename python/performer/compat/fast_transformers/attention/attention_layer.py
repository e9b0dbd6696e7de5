# SPDX-License-Identifier: Apache-2.0
"""Projections around attentions."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from performer.compat.fast_transformers.events import EventDispatcher, QKVEvent
from performer.compat.fast_transformers.masking import BaseMask


class AttentionLayer(nn.Module):
    """Projections around an attention."""

    def __init__(
        self,
        attention: nn.Module,
        d_model: int,
        n_heads: int,
        d_keys: int | None = None,
        d_values: int | None = None,
        d_model_keys: int | None = None,
        event_dispatcher: Any = "",
    ) -> None:
        super().__init__()
        d_keys, d_values = d_keys or d_model // n_heads, d_values or d_model // n_heads
        source = d_model_keys or d_model
        self.inner_attention = attention
        self.query_projection = nn.Linear(d_model, d_keys * n_heads)
        self.key_projection = nn.Linear(source, d_keys * n_heads)
        self.value_projection = nn.Linear(source, d_values * n_heads)
        self.out_projection = nn.Linear(d_values * n_heads, d_model)
        self.n_heads = n_heads
        self.event_dispatcher = EventDispatcher.get(event_dispatcher)

    def _heads(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.n_heads, -1)

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        attn_mask: BaseMask,
        query_lengths: BaseMask | None = None,
        key_lengths: BaseMask | None = None,
    ) -> Tensor:
        """Queries [N, L, d_model], keys and values [N, S, d_model_keys] -> [N, L, d_model]."""
        projected = (
            self._heads(self.query_projection(queries)),
            self._heads(self.key_projection(keys)),
            self._heads(self.value_projection(values)),
        )
        self.event_dispatcher.dispatch(QKVEvent(self, *projected))
        out = self.inner_attention(*projected, attn_mask, query_lengths, key_lengths)
        return cast(Tensor, self.out_projection(out.flatten(-2)))

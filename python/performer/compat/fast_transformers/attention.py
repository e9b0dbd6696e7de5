# SPDX-License-Identifier: Apache-2.0
"""Attentions of fast-transformers: queries [N, L, H, D], keys [N, S, H, D], values [N, S, H, E] -> [N, L, H, E]."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from performer.compat import _arithmetic
from performer.compat.fast_transformers.feature_maps import FeatureMap, elu_feature_map
from performer.compat.fast_transformers.masking import BaseMask, FullMask, LengthMask

State = list[Tensor]


def causal_dot_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Rows sum_{s <= l} (q_l . k_s) v_s, of q, k [N, H, L, M] and v [N, H, L, E]."""
    return _arithmetic.causal_linear_attention(q, k, v)[0].to(v.dtype)


class _FeatureMapAttention(nn.Module):
    def __init__(
        self, query_dimensions: int, feature_map: Any = None, eps: float = 1e-6, event_dispatcher: Any = ""
    ) -> None:
        super().__init__()
        self.feature_map: FeatureMap = (feature_map or elu_feature_map)(query_dimensions)
        self.eps = eps

    def _features(self, queries: Tensor, keys: Tensor, key_lengths: BaseMask | None) -> tuple[Tensor, Tensor]:
        """[N, H, L, M] and [N, H, S, M]."""
        self.feature_map.new_feature_map(queries.device)
        q = self.feature_map.forward_queries(queries)
        k = self.feature_map.forward_keys(keys)
        if key_lengths is not None:
            k = k * key_lengths.float_matrix[:, :, None, None].to(k.dtype)
        return q.transpose(1, 2), k.transpose(1, 2)

    def _normalized(self, numerator: Tensor, denominator: Tensor, dtype: torch.dtype) -> Tensor:
        return (numerator / (denominator + self.eps)).transpose(1, 2).to(dtype).contiguous()


class LinearAttention(_FeatureMapAttention):
    """Bidirectional linear attention; raises RuntimeError for masks of single queries."""

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
        if not attn_mask.all_ones:
            raise RuntimeError("LinearAttention does not support arbitrary attention masks")
        q, k = self._features(queries, keys, key_lengths)
        return self._normalized(*_arithmetic.linear_attention(q, k, values.transpose(1, 2)), values.dtype)


class CausalLinearAttention(_FeatureMapAttention):
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


class FullAttention(nn.Module):
    """Exact softmax attention."""

    def __init__(
        self, softmax_temp: float | None = None, attention_dropout: float = 0.1, event_dispatcher: Any = ""
    ) -> None:
        super().__init__()
        self.softmax_temp = softmax_temp
        self.dropout = nn.Dropout(attention_dropout)

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
        temperature = self.softmax_temp or 1 / math.sqrt(queries.shape[-1])
        scores = torch.einsum("nlhe,nshe->nhls", queries * temperature, keys)
        if not attn_mask.all_ones:
            scores = scores + attn_mask.additive_matrix.to(scores.dtype)
        if key_lengths is not None and not key_lengths.all_ones:
            scores = scores + key_lengths.additive_matrix[:, None, None].to(scores.dtype)
        return torch.einsum("nhls,nshd->nlhd", self.dropout(scores.softmax(-1)), values).contiguous()


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
        out = self.inner_attention(*projected, attn_mask, query_lengths, key_lengths)
        return cast(Tensor, self.out_projection(out.flatten(-2)))


class RecurrentLinearAttention(_FeatureMapAttention):
    """One more token of causal linear attention; the state is [S [N, H, M, E], Z [N, H, M]]."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, state: State | None = None, memory: State | None = None
    ) -> tuple[Tensor, State]:
        """Query, key [N, H, D], value [N, H, E] -> ([N, H, E], state).

        Raises:
            ValueError: when the batch size changes.
        """
        state = memory if state is None else state
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


class RecurrentCrossLinearAttention(_FeatureMapAttention):
    """One query to a memory; the state is [S [N, H, E, M], Z [N, H, M]]."""

    def forward(
        self, query: Tensor, keys: Tensor, values: Tensor, key_lengths: BaseMask | None, state: State | None = None
    ) -> tuple[Tensor, State]:
        """Query [N, H, D] -> ([N, H, E], state); keys and values are read when there is no state."""
        if state is None:
            self.feature_map.new_feature_map(query.device)
        q = self.feature_map.forward_queries(query)
        if state is None:
            k = self.feature_map.forward_keys(keys)
            if key_lengths is not None:
                k = k * key_lengths.float_matrix[:, :, None, None].to(k.dtype)
            state = [torch.einsum("nshm,nshe->nhem", k, values), k.sum(1)]
        scale = 1.0 / ((q * state[1]).sum(-1, keepdim=True) + self.eps)
        return (state[0] @ q.unsqueeze(-1)).squeeze(-1) * scale, state


class RecurrentAttentionLayer(AttentionLayer):
    """Projections around a recurrent self-attention."""

    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, state: State | None = None
    ) -> tuple[Tensor, State]:
        """[N, d_model] -> ([N, d_model], state)."""
        projected = (
            self._heads(self.query_projection(query)),
            self._heads(self.key_projection(key)),
            self._heads(self.value_projection(value)),
        )
        out, state = self.inner_attention(*projected, state)
        return self.out_projection(out.flatten(-2)), cast(State, state)


class RecurrentCrossAttentionLayer(AttentionLayer):
    """Projections around a recurrent cross-attention."""

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        key_lengths: BaseMask | None = None,
        state: State | None = None,
    ) -> tuple[Tensor, State]:
        """Query [N, d_model], keys and values [N, S, d_model] -> ([N, d_model], state)."""
        q = self._heads(self.query_projection(query))
        k = v = q
        if state is None:
            k, v = self._heads(self.key_projection(keys)), self._heads(self.value_projection(values))
        out, state = self.inner_attention(q, k, v, key_lengths, state)
        return self.out_projection(out.flatten(-2)), cast(State, state)


def default_lengths(x: Tensor) -> LengthMask:
    """All tokens of x [N, L, ...]."""
    return LengthMask(torch.full((x.shape[0],), x.shape[1], dtype=torch.int64, device=x.device), x.shape[1])


def default_mask(rows: int, columns: int, device: torch.device) -> FullMask:
    """Everything is seen."""
    return FullMask(rows, columns, device=str(device))

# SPDX-License-Identifier: Apache-2.0
"""Transformers of fast-transformers: norms after the residuals, projections with biases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from performer.compat.fast_transformers.events import EventDispatcher
from performer.compat.fast_transformers.masking import BaseMask, FullMask, LengthMask


def default_lengths(x: Tensor) -> LengthMask:
    """All tokens of x [N, L, ...]."""
    return LengthMask(torch.full((x.shape[0],), x.shape[1], dtype=torch.int64, device=x.device), x.shape[1])


def default_mask(rows: int, columns: int, device: torch.device) -> FullMask:
    """Everything is seen."""
    return FullMask(rows, columns, device=str(device))


class _Layer(nn.Module):
    def __init__(
        self, d_model: int, d_ff: int | None, dropout: float, activation: str, norms: int, event_dispatcher: Any
    ) -> None:
        super().__init__()
        self.event_dispatcher = EventDispatcher.get(event_dispatcher)
        d_ff = d_ff or 4 * d_model
        self.linear1 = nn.Linear(d_model, d_ff)
        self.linear2 = nn.Linear(d_ff, d_model)
        for number in range(1, norms + 1):
            self.add_module(f"norm{number}", nn.LayerNorm(d_model))
        self.dropout = nn.Dropout(dropout)
        self.activation: Callable[[Tensor], Tensor] = F.relu if activation == "relu" else F.gelu
        self._last = norms

    def _add(self, number: int, x: Tensor, branch: Tensor) -> Tensor:
        return cast(Tensor, self.get_submodule(f"norm{number}")(x + self.dropout(branch)))

    def _feed_forward(self, x: Tensor) -> Tensor:
        inner = self.dropout(self.activation(self.linear1(x)))
        return cast(Tensor, self.get_submodule(f"norm{self._last}")(x + self.dropout(self.linear2(inner))))


class TransformerEncoderLayer(_Layer):
    """Self-attention and a feed-forward part."""

    def __init__(
        self,
        attention: nn.Module,
        d_model: int,
        d_ff: int | None = None,
        dropout: float = 0.1,
        activation: str = "relu",
        event_dispatcher: Any = "",
    ) -> None:
        super().__init__(d_model, d_ff, dropout, activation, 2, event_dispatcher)
        self.attention = attention

    def forward(self, x: Tensor, attn_mask: BaseMask | None = None, length_mask: BaseMask | None = None) -> Tensor:
        """[N, L, d_model] -> same."""
        mask = attn_mask or default_mask(x.shape[1], x.shape[1], x.device)
        lengths = length_mask or default_lengths(x)
        return self._feed_forward(self._add(1, x, self.attention(x, x, x, mask, lengths, lengths)))


class TransformerEncoder(nn.Module):
    """Layers, and a norm at the end."""

    def __init__(
        self, layers: list[nn.Module], norm_layer: nn.Module | None = None, event_dispatcher: Any = ""
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm_layer
        self.event_dispatcher = EventDispatcher.get(event_dispatcher)

    def forward(self, x: Tensor, attn_mask: BaseMask | None = None, length_mask: BaseMask | None = None) -> Tensor:
        """[N, L, d_model] -> same."""
        for layer in self.layers:
            x = layer(x, attn_mask=attn_mask, length_mask=length_mask)
        return x if self.norm is None else cast(Tensor, self.norm(x))


class TransformerDecoderLayer(_Layer):
    """Self-attention, attention to a memory, and a feed-forward part."""

    def __init__(
        self,
        self_attention: nn.Module,
        cross_attention: nn.Module,
        d_model: int,
        d_ff: int | None = None,
        dropout: float = 0.1,
        activation: str = "relu",
        event_dispatcher: Any = "",
    ) -> None:
        super().__init__(d_model, d_ff, dropout, activation, 3, event_dispatcher)
        self.self_attention, self.cross_attention = self_attention, cross_attention

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        x_mask: BaseMask | None = None,
        x_length_mask: BaseMask | None = None,
        memory_mask: BaseMask | None = None,
        memory_length_mask: BaseMask | None = None,
    ) -> Tensor:
        """x [N, L, d_model], memory [N, S, d_model] -> [N, L, d_model]."""
        x_mask = x_mask or default_mask(x.shape[1], x.shape[1], x.device)
        x_lengths = x_length_mask or default_lengths(x)
        memory_mask = memory_mask or default_mask(x.shape[1], memory.shape[1], x.device)
        lengths = memory_length_mask or default_lengths(memory)
        x = self._add(1, x, self.self_attention(x, x, x, x_mask, x_lengths, x_lengths))
        x = self._add(2, x, self.cross_attention(x, memory, memory, memory_mask, x_lengths, lengths))
        return self._feed_forward(x)


class TransformerDecoder(nn.Module):
    """Layers, and a norm at the end."""

    def __init__(
        self, layers: list[nn.Module], norm_layer: nn.Module | None = None, event_dispatcher: Any = ""
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm_layer
        self.event_dispatcher = EventDispatcher.get(event_dispatcher)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        x_mask: BaseMask | None = None,
        x_length_mask: BaseMask | None = None,
        memory_mask: BaseMask | None = None,
        memory_length_mask: BaseMask | None = None,
    ) -> Tensor:
        """x [N, L, d_model], memory [N, S, d_model] -> [N, L, d_model]."""
        for layer in self.layers:
            x = layer(x, memory, x_mask, x_length_mask, memory_mask, memory_length_mask)
        return x if self.norm is None else cast(Tensor, self.norm(x))

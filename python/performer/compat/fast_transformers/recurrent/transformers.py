# SPDX-License-Identifier: Apache-2.0
"""Transformers token by token; a batch's state says what came before."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from performer.compat.fast_transformers.masking import BaseMask
from performer.compat.fast_transformers.recurrent._state import State, check_state
from performer.compat.fast_transformers.transformers import (
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
    default_lengths,
)


class RecurrentTransformerEncoderLayer(TransformerEncoderLayer):
    """The same, token by token."""

    def forward(  # type: ignore[override]
        self, x: Tensor, state: State | None = None, memory: State | None = None
    ) -> tuple[Tensor, State]:
        """[N, d_model] -> ([N, d_model], state)."""
        out, state = self.attention(x, x, x, check_state(state, memory))
        return self._feed_forward(self._add(1, x, out)), cast(State, state)


class RecurrentTransformerEncoder(TransformerEncoder):
    """The same, token by token."""

    def forward(  # type: ignore[override]
        self, x: Tensor, state: list[State | None] | None = None, memory: list[State | None] | None = None
    ) -> tuple[Tensor, list[State | None]]:
        """[N, d_model] -> ([N, d_model], state)."""
        state = check_state(state, memory)
        state = [None] * len(self.layers) if state is None else list(state)
        for index, layer in enumerate(self.layers):
            x, state[index] = layer(x, state[index])
        return (x if self.norm is None else self.norm(x)), state


class RecurrentTransformerDecoderLayer(TransformerDecoderLayer):
    """The same, token by token."""

    def forward(  # type: ignore[override]
        self, x: Tensor, memory: Tensor, memory_length_mask: BaseMask | None = None, state: Any = None
    ) -> tuple[Tensor, Any]:
        """x [N, d_model], memory [N, S, d_model] -> ([N, d_model], state)."""
        own, cross = (None, None) if state is None else state
        out, own = self.self_attention(x, x, x, state=own)
        x = self._add(1, x, out)
        lengths = memory_length_mask or default_lengths(memory)
        out, cross = self.cross_attention(x, memory, memory, lengths, state=cross)
        return self._feed_forward(self._add(2, x, out)), [own, cross]


class RecurrentTransformerDecoder(TransformerDecoder):
    """The same, token by token."""

    def forward(  # type: ignore[override]
        self, x: Tensor, memory: Tensor, memory_length_mask: BaseMask | None = None, state: Any = None
    ) -> tuple[Tensor, Any]:
        """x [N, d_model], memory [N, S, d_model] -> ([N, d_model], state)."""
        state = [None] * len(self.layers) if state is None else list(state)
        for index, layer in enumerate(self.layers):
            x, state[index] = layer(x, memory, memory_length_mask, state[index])
        return (x if self.norm is None else self.norm(x)), state

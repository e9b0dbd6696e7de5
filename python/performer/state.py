# SPDX-License-Identifier: Apache-2.0
"""The state of linear attention: what it keeps of the keys and values that it has read, and its own algebra."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from performer._arguments import (
    NO_STATE,
    NO_STATISTICS,
    Features,
    Layout,
    autocast,
    check_layout,
    cpu_bounds,
    feature_map,
    scaled,
    weights_of,
)
from performer._library import ops
from performer.features import MapStatistics, MapWeights


class State(NamedTuple):
    """What linear attention keeps of the keys and values of B sequences, at a size that does not grow with them.

    Shapes: kv [B, H, M, E], key_sum [B, H, M], log_scale [B, H, M]. The sums are exp(log_scale) * (kv, key_sum).
    """

    kv: Tensor
    key_sum: Tensor
    log_scale: Tensor

    def select(self, rows: Tensor) -> State:
        """The states of the sequences `rows` (int64), in that order; a row may be named twice (beams)."""
        return State(*(part.index_select(0, rows) for part in self))

    def clone(self) -> State:
        """A copy, for a stream that forks."""
        return State(*(part.clone() for part in self))


def key_state(
    key: Tensor,
    value: Tensor,
    features: Features = "softmax",
    weights: MapWeights | None = None,
    statistics: MapStatistics | None = None,
    *,
    key_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    state: State | None = None,
    layout: Layout = "bhtd",
    seed: int = 0,
    backend: str = "",
) -> State:
    """The state of keys and values alone, for example of an encoded source that a decoder reads.

    Queries read it by ``mapped_attention(query, key[:, :, :0], value[:, :, :0], ..., state=state)``, which is not
    causal. Arguments and errors are those of :func:`mapped_attention`; a state of no keys is that of an empty sequence.
    """
    described = feature_map(features)
    check_layout(layout)
    if layout == "bhtd":
        key, value = key.transpose(1, 2), value.transpose(1, 2)
    key, _, value = autocast(key, key, value)
    projection, matrix, bias = weights_of(described, weights, key.shape[2], key.shape[3], seed, key.device)
    moments = statistics or NO_STATISTICS
    return State(
        *ops.mapped_key_state(
            key,
            value,
            *described.arguments,
            projection,
            matrix,
            bias,
            *moments,
            key_mask,
            cpu_bounds(cu_seqlens),
            *(state or NO_STATE),
            0,
            backend,
        )
    )


def empty_state(
    query: Tensor,
    value: Tensor,
    features: Features = "softmax",
    weights: MapWeights | None = None,
    *,
    seed: int = 0,
) -> State:
    """The state of sequences without tokens, for :func:`favor_step`: of query [B, H, D] and value [B, H, E]."""
    described = feature_map(features)
    heads, size = query.shape[1], query.shape[2]
    moments = None
    if described.traits.statistics:  # the state of no keys does not depend on them
        zero = query.new_zeros(heads, size, dtype=torch.float32)
        square = query.new_zeros(heads, size, size, dtype=torch.float32)
        moments = MapStatistics(zero, zero, square, square)
    return key_state(
        query.detach().unsqueeze(1)[:, :0],
        value.detach().unsqueeze(1)[:, :0],
        described,
        weights,
        moments,
        layout="bthd",
        seed=seed,
    )


def favor_step(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: State,
    features: Features = "softmax",
    weights: MapWeights | None = None,
    statistics: MapStatistics | None = None,
    *,
    scale: float | None = None,
    seed: int = 0,
    backend: str = "",
) -> Tensor:
    """One token of causal attention of each sequence, at a cost that does not depend on how many came before.

    Args:
        query, key: [B, H, D].
        value: [B, H, E].
        state: of :func:`empty_state` or of a call with return_state; updated in place.

    Returns:
        [B, H, E], the row that causal attention over all tokens so far has for this one. No gradients.

    Raises:
        ValueError, TypeError: for arguments that do not fit each other or the state.
    """
    described = feature_map(features)
    query, key, value = autocast(query, key, value)
    query = scaled(query, described, scale)
    if key.shape[1] != query.shape[1]:
        repeats = query.shape[1] // max(1, key.shape[1])
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    projection, matrix, bias = weights_of(described, weights, query.shape[1], query.shape[2], seed, query.device)
    with torch.no_grad():
        out: Tensor = ops.mapped_step(
            query,
            key,
            value,
            *state,
            *described.arguments,
            projection,
            matrix,
            bias,
            *(statistics or NO_STATISTICS),
            backend,
        )
    return out


def merge_states(first: State, second: State) -> State:
    """The state of the keys of both: exact and associative; an empty state changes nothing.

    Differentiable in kv and key_sum of both.

    Raises:
        ValueError: for states of different shapes.
    """
    return State(*ops.merge_states(*first, *second))

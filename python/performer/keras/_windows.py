# SPDX-License-Identifier: Apache-2.0
"""Causal linear attention to a window of the past (performer/nn/attention/window_sums.h, for Keras).

Sequences are cut into chunks of C tokens; a token sees the tokens up to itself in its own chunk and all tokens
of the W - 1 chunks before, those of a chunk d chunks back weighted by decay^d. States of windows are merged
from states of chunks: nothing is obtained by subtraction.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from keras import ops

from performer.keras import _linear
from performer.keras._linear import FeatureMap, State

Tensor = Any


@dataclasses.dataclass(frozen=True)
class Window:
    """chunk: tokens; length: chunks, the own one included; decay: from 0 to 1, a chunk of distance."""

    chunk: int
    length: int
    decay: float = 1.0

    @property
    def sees_earlier_chunks(self) -> bool:
        return self.length > 1 and self.decay > 0


def _aged(state: State, distance: int, exponential: bool, decay: float) -> State:
    """A state as it counts `distance` chunks later."""
    if decay == 1 or distance == 0:
        return state
    if exponential:
        return state._replace(log_scale=state.log_scale + distance * math.log(decay))
    factor = decay**distance
    return State(state.kv * factor, state.key_sum * factor, state.log_scale)


def _moved(states: State, by: int, count: int, exponential: bool, decay: float) -> State:
    """The states of `count` chunks of each sequence `by` < count chunks later, empty ones before them."""
    if by == 0:
        return states

    def shift(x: Tensor, nothing: float) -> Tensor:
        apart = ops.reshape(x, (-1, count, *x.shape[1:]))
        before = ops.full((apart.shape[0], by, *apart.shape[2:]), nothing, x.dtype)
        return ops.reshape(ops.concatenate([before, apart[:, : count - by]], 1), x.shape)

    old = _aged(states, by, exponential, decay)
    return State(
        shift(old.kv, 0.0), shift(old.key_sum, 0.0), shift(old.log_scale, _linear.EMPTY if exponential else 0.0)
    )


def _before(states: State, chunks: int, count: int, exponential: bool, decay: float) -> State:
    """For each chunk the merged state of the `chunks` before it, by doubling."""
    power, result, width, done = states, None, 1, 0
    while done < chunks:
        if chunks & width:
            moved = _moved(power, done, count, exponential, decay)
            result = moved if result is None else _linear.merge_states(result, moved, exponential)
            done += width
        if done < chunks:
            power = _linear.merge_states(power, _moved(power, width, count, exponential, decay), exponential)
        width *= 2
    assert result is not None
    return _moved(result, 1, count, exponential, decay)


def windowed(
    query: Tensor, key: Tensor, value: Tensor, features: FeatureMap, window: Window, key_mask: Tensor | None
) -> Tensor:
    """Attention of whole sequences ``[B, T, H, D]`` -> ``[B, T, H, E]``."""
    batch, tokens = query.shape[:2]
    chunk = min(window.chunk, tokens)
    count = -(-tokens // chunk)
    missing = count * chunk - tokens

    def cut(x: Tensor) -> Tensor:
        if missing:
            x = ops.concatenate([x, ops.zeros((batch, missing, *x.shape[2:]), x.dtype)], 1)
        return ops.reshape(x, (batch * count, chunk, *x.shape[2:]))

    if key_mask is None and missing:
        key_mask = ops.ones((batch, tokens), "bool")
    mask = None if key_mask is None else cut(ops.cast(key_mask, "bool"))
    features = _for_each_chunk(features, count)
    initial = None
    q, k, v = cut(query), cut(key), cut(value)
    if count > 1 and window.sees_earlier_chunks:
        states = _linear.key_state(k, v, features, mask)
        earlier = min(window.length, count) - 1
        initial = _before(states, earlier, count, features.exponential, window.decay)
    out, _ = _linear.attend(q, k, v, features, causal=True, key_mask=mask, initial=initial)
    return ops.reshape(out, (batch, count * chunk, *out.shape[2:]))[:, :tokens]


def _for_each_chunk(features: FeatureMap, count: int) -> FeatureMap:
    """Constants of single sequences, for each of their chunks."""

    def repeated(x: Tensor | None) -> Tensor | None:
        return x if x is None or x.shape[0] == 1 else ops.repeat(x, count, 0)

    return features._replace(projection=repeated(features.projection), offset=repeated(features.offset))


@dataclasses.dataclass
class Stream:
    """What a streamed sequence keeps: at most W + 1 states."""

    tokens: int = 0
    seen: State | None = None  # of all that the next token sees beside itself
    own: State | None = None  # of the present chunk alone
    earlier: list[State] = dataclasses.field(default_factory=list)  # of the W - 1 chunks before it


def _begin_chunk(stream: Stream, exponential: bool, window: Window) -> None:
    stream.seen = None
    if not window.sees_earlier_chunks:
        return
    assert stream.own is not None
    stream.earlier = [*stream.earlier, stream.own][-(window.length - 1) :]
    stream.own = None
    for i, state in enumerate(stream.earlier):
        old = _aged(state, len(stream.earlier) - i, exponential, window.decay)
        stream.seen = old if stream.seen is None else _linear.merge_states(stream.seen, old, exponential)


def streamed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    features: FeatureMap,
    window: Window,
    key_mask: Tensor | None,
    stream: Stream,
) -> Tensor:
    """The next tokens of a sequence, any number of them, as :func:`windowed` gives them for the whole."""
    outs, begin, tokens = [], 0, query.shape[1]
    while begin < tokens:
        if stream.tokens > 0 and stream.tokens % window.chunk == 0:
            _begin_chunk(stream, features.exponential, window)
        end = min(tokens, begin + window.chunk - stream.tokens % window.chunk)
        q, k, v = (x[:, begin:end] for x in (query, key, value))
        mask = None if key_mask is None else key_mask[:, begin:end]
        if window.sees_earlier_chunks:
            own = _linear.key_state(k, v, features, mask)
            stream.own = own if stream.own is None else _linear.merge_states(stream.own, own, features.exponential)
        out, stream.seen = _linear.attend(
            q, k, v, features, causal=True, key_mask=mask, initial=stream.seen, return_state=True
        )
        outs.append(out)
        stream.tokens += end - begin
        begin = end
    return outs[0] if len(outs) == 1 else ops.concatenate(outs, 1)

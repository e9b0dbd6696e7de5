# SPDX-License-Identifier: Apache-2.0
"""The attention kinds of models: what takes queries, keys and values [B, T, H, D] of each head.

A kind has ``forward(query, key, value, batch)`` and, for streams of causal models, ``begin(batch_size)`` and
``step(query, key, value, cache)`` of one token [B, H, D]. Definitions: performer/nn/attention/.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from performer.models.config import AttentionConfig
from performer.modules import FavorAttention
from performer.state import State


@dataclasses.dataclass
class Batch:
    """What attention knows of its sequences.

    key_mask bool [B, T], True keeps, for padded rows; or cu_seqlens int64 [N + 1] on the CPU, bounds of segments packed
    into one row. With `stream` the tokens follow those that it has read, and it reads them.
    """

    key_mask: Tensor | None = None
    cu_seqlens: Tensor | None = None
    stream: FavorCache | None = None


class Cache(Protocol):
    """What streamed sequences have read so far."""

    def select(self, rows: Tensor) -> Any:
        """The sequences `rows` of the batch, in that order."""


def _rows(tensor: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if tensor is None else tensor.index_select(0, rows)


def hide_rows(rows: Tensor, mask: Tensor | None) -> Tensor:
    """Rows [B, T, H, E] that the mask [B, T] hides set to 0."""
    return rows if mask is None else rows.masked_fill(~mask[..., None, None], 0)


Attend = Callable[[Tensor, Tensor, Tensor, Batch], Tensor]


def each_segment(query: Tensor, key: Tensor, value: Tensor, batch: Batch, attend: Attend) -> Tensor:
    """Packed attention of a kind that knows single sequences: `attend` is called for each segment."""
    assert batch.cu_seqlens is not None
    bounds = batch.cu_seqlens.tolist()
    parts = [value[:, :0]]
    for begin, end in itertools.pairwise(bounds):
        if end > begin:
            mask = None if batch.key_mask is None else batch.key_mask[:, begin:end]
            parts.append(attend(query[:, begin:end], key[:, begin:end], value[:, begin:end], Batch(mask)))
    return torch.cat(parts, 1)


class Favor(FavorAttention):
    """A favor-* kind."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, batch: Batch) -> Tensor:  # type: ignore[override]
        """Linear attention, [B, T, H, D] -> [B, T, H, E]."""
        stream = batch.stream
        out = super().forward(
            query,
            key,
            value,
            key_mask=batch.key_mask,
            query_mask=batch.key_mask,
            cu_seqlens=batch.cu_seqlens,
            state=None if stream is None else stream.state,
            return_state=stream is not None,
            layout="bthd",
        )
        if stream is not None:
            out, stream.state = out
        return cast(Tensor, out)

    def begin_cache(self, batch_size: int) -> FavorCache:
        """A cache of sequences without tokens."""
        return FavorCache()

    def step_cache(self, query: Tensor, key: Tensor, value: Tensor, cache: FavorCache) -> Tensor:
        """One token of each sequence."""
        if cache.state is None:
            cache.state = self.begin(query, value)
        return self.step(query, key, value, cache.state)


@dataclasses.dataclass
class FavorCache:
    """The state of a favor-* kind; None before the first token."""

    state: State | None = None

    def select(self, rows: Tensor) -> FavorCache:
        """The sequences `rows`."""
        return FavorCache(None if self.state is None else self.state.select(rows))


@dataclasses.dataclass
class ExactCache:
    """Keys and values [B, H, S, D] of all tokens so far, with room for more."""

    keys: Tensor | None = None
    values: Tensor | None = None
    length: int = 0

    def select(self, rows: Tensor) -> ExactCache:
        """The sequences `rows`."""
        return ExactCache(_rows(self.keys, rows), _rows(self.values, rows), self.length)


class Exact(nn.Module):
    """Exact softmax attention, softmax(q k / sqrt(D)) v."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal = causal

    def forward(self, query: Tensor, key: Tensor, value: Tensor, batch: Batch) -> Tensor:
        """[B, T, H, D] -> [B, T, H, E]."""
        if batch.cu_seqlens is not None:
            return each_segment(query, key, value, batch, self.forward)
        return exact_attention(query, key, value, self.causal, batch.key_mask, batch.key_mask)

    def begin_cache(self, batch_size: int) -> ExactCache:
        """A cache of sequences without tokens."""
        return ExactCache()

    def step_cache(self, query: Tensor, key: Tensor, value: Tensor, cache: ExactCache) -> Tensor:
        """One token of each sequence."""
        if cache.keys is None or cache.values is None or cache.length == cache.keys.shape[2]:
            capacity = max(16, 2 * cache.length)

            def grown(old: Tensor | None, token: Tensor) -> Tensor:
                wider = token.new_empty(*token.shape[:2], capacity, token.shape[2])
                if old is not None:
                    wider[:, :, : cache.length] = old[:, :, : cache.length]
                return wider

            cache.keys, cache.values = grown(cache.keys, key), grown(cache.values, value)
        cache.keys[:, :, cache.length] = key
        cache.values[:, :, cache.length] = value
        cache.length += 1
        seen = slice(0, cache.length)
        out = F.scaled_dot_product_attention(query.unsqueeze(2), cache.keys[:, :, seen], cache.values[:, :, seen])
        return out.squeeze(2)


def exact_attention(
    query: Tensor, key: Tensor, value: Tensor, causal: bool, key_mask: Tensor | None, query_mask: Tensor | None
) -> Tensor:
    """Exact attention of [B, T, H, D] to [B, S, H, D]; a row that sees nothing is 0."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    if q.shape[2] == 0 or k.shape[2] == 0:
        return value.new_zeros(q.shape[0], q.shape[2], v.shape[1], v.shape[3])
    if key_mask is None:
        rows = F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2)
        return hide_rows(rows, query_mask)
    allowed = key_mask[:, None, None, :]
    if causal:
        length = key_mask.shape[1]
        allowed = allowed & torch.ones(length, length, dtype=torch.bool, device=key_mask.device).tril()
    blind = ~allowed.any(-1, keepdim=True)
    rows = F.scaled_dot_product_attention(q, k, v, allowed | blind).masked_fill(blind, 0)
    return hide_rows(rows.transpose(1, 2), query_mask)


class Identity(nn.Module):
    """Attention replaced by its values: an upper bound of speed."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, batch: Batch) -> Tensor:
        """The values."""
        return hide_rows(value, batch.key_mask)

    def begin_cache(self, batch_size: int) -> ExactCache:
        """Nothing to keep."""
        return ExactCache()

    def step_cache(self, query: Tensor, key: Tensor, value: Tensor, cache: ExactCache) -> Tensor:
        """The value."""
        return value


@dataclasses.dataclass
class LocalCache:
    """Keys and values [B, S, H, D] of the last windows."""

    key: Tensor | None = None
    value: Tensor | None = None
    length: int = 0

    def select(self, rows: Tensor) -> LocalCache:
        """The sequences `rows`."""
        return LocalCache(_rows(self.key, rows), _rows(self.value, rows), self.length)


class Local(nn.Module):
    """Exact attention to the keys of a query's own window of tokens and of its neighbours."""

    def __init__(self, window: int, look_backward: int, look_forward: int, causal: bool) -> None:
        super().__init__()
        self.window, self.back, self.causal = window, look_backward, causal
        self.ahead = look_forward if look_forward >= 0 else 0 if causal else 1
        if causal and self.ahead > 0:
            raise ValueError(f"attention.look_forward must be 0 or -1 in a causal model, not {look_forward}")

    def _neighbours(self, windows: Tensor, fill: float) -> Tensor:
        """[B, N, W, ...] as [B, N, (back + 1 + ahead) W, ...]: each window beside its neighbours."""
        pads = [windows.new_full((windows.shape[0], n, *windows.shape[2:]), fill) for n in (self.back, self.ahead)]
        extended = torch.cat([pads[0], windows, pads[1]], 1)
        count = windows.shape[1]
        return torch.cat([extended[:, i : i + count] for i in range(self.back + 1 + self.ahead)], 2)

    def _split(self, x: Tensor) -> Tensor:
        missing = -x.shape[1] % self.window
        whole = torch.cat([x, x.new_zeros(x.shape[0], missing, *x.shape[2:])], 1) if missing else x
        return whole.reshape(whole.shape[0], -1, self.window, *whole.shape[2:])

    def forward(self, query: Tensor, key: Tensor, value: Tensor, batch: Batch) -> Tensor:
        """[B, T, H, D] -> [B, T, H, E]."""
        if batch.cu_seqlens is not None:
            return each_segment(query, key, value, batch, self.forward)
        tokens = query.shape[1]
        if tokens == 0:
            return torch.empty_like(value)
        q = self._split(query).transpose(2, 3)  # [B, N, H, W, D]
        k, v = (self._neighbours(self._split(x), 0).transpose(2, 3) for x in (key, value))
        places = self._split(torch.arange(tokens, device=query.device)[None])
        places = torch.arange(places.shape[1] * self.window, device=query.device).view(1, -1, self.window)
        keys = self._neighbours(places, -1)[:, :, None, None, :]
        hidden = (keys < 0) | (keys >= tokens)
        if self.causal:
            hidden = hidden | (keys > places[:, :, None, :, None])
        if batch.key_mask is not None:
            kept = self._neighbours(self._split(batch.key_mask.to(torch.uint8)), 0).bool()
            hidden = hidden | ~kept[:, :, None, None, :]
        scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2)
        scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1).masked_fill(hidden, 0).to(v.dtype)
        out = (weights @ v).transpose(2, 3).flatten(1, 2)[:, :tokens]
        return hide_rows(out, batch.key_mask)

    def begin_cache(self, batch_size: int) -> LocalCache:
        """A cache of sequences without tokens."""
        return LocalCache()

    def step_cache(self, query: Tensor, key: Tensor, value: Tensor, cache: LocalCache) -> Tensor:
        """One token of each sequence."""
        key, value = key.unsqueeze(1), value.unsqueeze(1)
        cache.key = key if cache.key is None else torch.cat([cache.key, key], 1)
        cache.value = value if cache.value is None else torch.cat([cache.value, value], 1)
        position, cache.length = cache.length, cache.length + 1
        first = max(0, (position // self.window - self.back) * self.window)
        seen = cache.length - first
        k, v = (x[:, -seen:].transpose(1, 2) for x in (cache.key, cache.value))
        out = F.scaled_dot_product_attention(query.unsqueeze(2), k, v).squeeze(2)
        kept = cache.length - max(0, (cache.length // self.window - self.back) * self.window)
        start = cache.key.shape[1] - min(kept, cache.key.shape[1])
        cache.key, cache.value = cache.key[:, start:], cache.value[:, start:]
        return out


@dataclasses.dataclass
class AutoCache:
    """Both parts; the exact one ends with the last query that is exact."""

    exact: ExactCache | None
    linear: FavorCache
    length: int = 0

    def select(self, rows: Tensor) -> AutoCache:
        """The sequences `rows`."""
        return AutoCache(None if self.exact is None else self.exact.select(rows), self.linear.select(rows), self.length)


class Auto(nn.Module):
    """Exact for queries that see at most `break_even` keys, linear for the others."""

    def __init__(self, exact: Exact, linear: Favor, break_even: int) -> None:
        super().__init__()
        self.exact, self.linear, self.break_even, self.causal = exact, linear, break_even, linear.causal

    def forward(self, query: Tensor, key: Tensor, value: Tensor, batch: Batch) -> Tensor:
        """[B, T, H, D] -> [B, T, H, E]."""
        if batch.cu_seqlens is not None:
            return each_segment(query, key, value, batch, self.forward)
        mask = batch.key_mask
        if key.shape[1] <= self.break_even and key.shape[1] > 0:
            return self.exact(query, key, value, batch)  # type: ignore[no-any-return]
        linear: Tensor = self.linear(query, key, value, batch)
        if not self.causal:
            if mask is None:
                return linear
            few = mask.sum(1).le(self.break_even)[:, None]
        else:
            seen = torch.ones_like(query[:, :, 0, 0], dtype=torch.long) if mask is None else mask.long()
            few = seen.cumsum(1).le(self.break_even)
        if not bool(few.any()):
            return linear
        exact: Tensor = self.exact(query, key, value, batch)
        return torch.where(few[..., None, None], exact, linear.to(exact.dtype))

    def begin_cache(self, batch_size: int) -> AutoCache:
        """A cache of sequences without tokens."""
        return AutoCache(self.exact.begin_cache(batch_size), self.linear.begin_cache(batch_size))

    def step_cache(self, query: Tensor, key: Tensor, value: Tensor, cache: AutoCache) -> Tensor:
        """One token of each sequence; the linear state takes in the first ones too."""
        estimate = self.linear.step_cache(query, key, value, cache.linear)
        cache.length += 1
        if cache.length > self.break_even or cache.exact is None:
            return estimate
        out = self.exact.step_cache(query, key, value, cache.exact)
        if cache.length == self.break_even:
            cache.exact = None
        return out


Kind = Favor | Exact | Identity | Local | Auto


def make_kind(config: AttentionConfig, heads: int, head_size: int, causal: bool, layer: int) -> Kind:
    """The module of a configuration's kind."""
    if config.kind == "exact":
        return Exact(causal)
    if config.kind == "identity":
        return Identity()
    if config.kind == "local":
        return Local(config.option("window"), config.option("look_backward"), config.option("look_forward"), causal)
    linear = Favor(heads, head_size, config.feature_map(), causal=causal, seed=config.seed, layer=layer)
    if config.kind != "auto":
        return linear
    features = config.option("features")
    return Auto(Exact(causal), linear, config.option("break_even") or (2 * features if causal else features))

# SPDX-License-Identifier: Apache-2.0
"""Transformer blocks as the project's models have them (performer/nn/block.h)."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from performer.attention import mapped_attention
from performer.models.config import AttentionConfig, ModelConfig
from performer.models.kinds import Batch, Exact, Favor, Local, exact_attention, make_kind
from performer.models.positions import rotate, shift_tokens

_QK_NORM_EPSILON = 1e-6
_DENSE_BIAS_STD = 1e-6


def _linear(inputs: int, outputs: int, bias: bool, bias_std: float = 0.0) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.normal_(layer.bias, 0, bias_std) if bias_std else nn.init.zeros_(layer.bias)
    return layer


@dataclasses.dataclass
class StreamCache:
    """What the parts of an attention layer have read."""

    kind: Any = None
    local: Any = None
    exact: Any = None
    length: int = 0

    def select(self, rows: Tensor) -> StreamCache:
        """The sequences `rows`."""
        parts: list[Any] = [None if p is None else p.select(rows) for p in (self.kind, self.local, self.exact)]
        return StreamCache(parts[0], parts[1], parts[2], self.length)


class AttentionLayer(nn.Module):
    """Queries, keys and values of each head, attention of a kind, and an output projection.

    With `cross` it reads a context: bidirectional, without positions, local heads and begin_kernel.
    """

    def __init__(self, model: ModelConfig, attention: AttentionConfig, layer: int, cross: bool = False) -> None:
        super().__init__()
        size = model.size_of_head
        self.heads, self.head_size, self.cross = model.heads, size, cross
        self.rotary = model.positions == "rotary" and not cross
        self.causal = model.objective == "causal" and not cross
        inner, bias = model.heads * size, model.attention_bias
        self.query, self.key, self.value = (_linear(model.width, inner, bias) for _ in range(3))
        self.out = _linear(inner, model.width, bias)
        self.query_gain = nn.Parameter(torch.ones(model.heads, size)) if attention.qk_norm else None
        self.key_gain = nn.Parameter(torch.ones(model.heads, size)) if attention.qk_norm else None
        self.temperature = nn.Parameter(torch.ones(model.heads)) if attention.learned_temperature else None
        self.local_heads = 0 if cross else attention.local_heads
        self.begin_kernel = 0 if cross else attention.begin_kernel
        others = model.heads - self.local_heads
        self.kind: Any = make_kind(attention, others, size, self.causal, layer) if others else None
        self.local: Any = Local(attention.local_window, 1, -1, self.causal) if self.local_heads else None
        self.exact: Any = Exact(self.causal) if self.begin_kernel and self.kind is not None else None
        if cross and not isinstance(self.kind, Favor | Exact):
            raise ValueError(
                f"attention.kind = {attention.kind} has no cross-attention; choose exact or a favor-* kind"
            )

    def _normalized(self, x: Tensor, gain: Tensor | None) -> Tensor:
        if gain is None:
            return x
        precise = x.to(gain.dtype)
        scale = torch.rsqrt(precise.square().mean(-1, keepdim=True) + _QK_NORM_EPSILON)
        return (precise * scale * gain).to(x.dtype)

    def project(self, x: Tensor, context: Tensor, table: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, T, H, D]."""
        query, key, value = (
            layer(source).unflatten(-1, (self.heads, self.head_size))
            for layer, source in ((self.query, x), (self.key, context), (self.value, context))
        )
        query, key = self._normalized(query, self.query_gain), self._normalized(key, self.key_gain)
        if self.temperature is not None:
            query = (query * self.temperature.unsqueeze(-1)).to(key.dtype)
        if table is not None:
            query, key = rotate(query, table), rotate(key, table)
        return query, key, value

    def _first_exactly(self, out: Tensor, query: Tensor, key: Tensor, value: Tensor, batch: Batch) -> Tensor:
        """The first begin_kernel queries of each sequence by exact attention."""
        assert self.exact is not None
        count = self.begin_kernel

        def first(q: Tensor, k: Tensor, v: Tensor, one: Batch) -> Tensor:
            n, mask = min(count, q.shape[1]), one.key_mask
            seen = n if self.causal else k.shape[1]
            own = None if mask is None else mask[:, :n]
            keys = None if mask is None else mask[:, :seen]
            return exact_attention(q[:, :n], k[:, :seen], v[:, :seen], self.causal, keys, own)

        if batch.cu_seqlens is None:
            exact = first(query, key, value, batch)
            return torch.cat([exact.to(out.dtype), out[:, exact.shape[1] :]], 1)
        parts = [out[:, :0]]
        for begin, end in itertools.pairwise(batch.cu_seqlens.tolist()):
            segment = slice(begin, end)
            exact = first(query[:, segment], key[:, segment], value[:, segment], Batch())
            parts += [exact.to(out.dtype), out[:, begin + exact.shape[1] : end]]
        return torch.cat(parts, 1)

    def forward(self, x: Tensor, batch: Batch, table: tuple[Tensor, Tensor] | None) -> Tensor:
        """x [B, T, width] -> [B, T, width]."""
        query, key, value = self.project(x, x, table)
        others = self.heads - self.local_heads
        parts = []
        if self.kind is not None:
            part = [t[:, :, :others] for t in (query, key, value)] if self.local_heads else [query, key, value]
            out = self.kind(*part, batch)
            parts.append(self._first_exactly(out, part[0], part[1], part[2], batch) if self.exact is not None else out)
        if self.local is not None:
            parts.append(self.local(*(t[:, :, others:] for t in (query, key, value)), batch))
        return cast(Tensor, self.out((parts[0] if len(parts) == 1 else torch.cat(parts, 2)).flatten(-2)))

    def attend_to(self, x: Tensor, batch: Batch, context: Tensor, of_context: Batch) -> Tensor:
        """Cross-attention: x [B, T, width] reads context [B, S, width]."""
        query, key, value = self.project(x, context, None)
        if isinstance(self.kind, Favor):
            out = mapped_attention(
                query,
                key,
                value,
                self.kind.map,
                self.kind.weights(),
                key_mask=of_context.key_mask,
                query_mask=batch.key_mask,
                cu_seqlens=batch.cu_seqlens,
                cu_seqlens_key=of_context.cu_seqlens,
                layout="bthd",
            )
        else:
            out = exact_attention(query, key, value, False, of_context.key_mask, batch.key_mask)
        return cast(Tensor, self.out(out.flatten(-2)))

    @property
    def advances(self) -> bool:
        """Whether forward() can go on from a stream's state: Batch.stream."""
        return isinstance(self.kind, Favor) and self.causal and self.local is None and self.exact is None

    def begin(self, batch_size: int) -> StreamCache:
        """A cache of sequences without tokens."""
        if not self.causal:
            raise ValueError("a model with model.objective = masked sees both sides of a token and cannot stream")
        parts: list[Any] = [
            None if p is None else p.begin_cache(batch_size) for p in (self.kind, self.local, self.exact)
        ]
        return StreamCache(*parts)

    def step(self, x: Tensor, cache: StreamCache, table: tuple[Tensor, Tensor] | None) -> Tensor:
        """One token of each sequence, [B, width] -> [B, width]."""
        query, key, value = (t.squeeze(1) for t in self.project(x.unsqueeze(1), x.unsqueeze(1), table))
        others = self.heads - self.local_heads
        parts = []
        if self.kind is not None:
            part = [t[:, :others] for t in (query, key, value)]
            out = self.kind.step_cache(*part, cache.kind)
            if self.exact is not None and cache.exact is not None:
                out = self.exact.step_cache(*part, cache.exact)
                if cache.length + 1 >= self.begin_kernel:
                    cache.exact = None
            parts.append(out)
        if self.local is not None:
            parts.append(self.local.step_cache(*(t[:, others:] for t in (query, key, value)), cache.local))
        cache.length += 1
        return cast(Tensor, self.out(torch.cat(parts, 1).flatten(-2)))


@dataclasses.dataclass
class BlockCache:
    """What a block remembers of streamed sequences."""

    attention: StreamCache
    attention_token: Tensor | None = None
    ffn_token: Tensor | None = None

    def select(self, rows: Tensor) -> BlockCache:
        """The sequences `rows`."""
        tokens = (None if t is None else t.index_select(0, rows) for t in (self.attention_token, self.ffn_token))
        return BlockCache(self.attention.select(rows), *tokens)


@dataclasses.dataclass
class Context:
    """What a decoder's block attends to: encoded [B, S, width], with the masks of its sequences."""

    encoded: Tensor
    batch: Batch = dataclasses.field(default_factory=Batch)


_ACTIVATIONS = {"gelu-tanh": ("gelu", "tanh"), "gelu": ("gelu", "none"), "relu": ("relu", "")}


class Block(nn.Module):
    """Attention and a feed-forward part with residuals, norms before (pre) or after (post)."""

    def __init__(self, model: ModelConfig, attention: AttentionConfig, layer: int, cross: bool = False) -> None:
        super().__init__()
        self.pre_norm, self.dropout, self.activation = model.norm == "pre", model.dropout, model.activation
        self.shifts: tuple[int, ...] = ()
        if model.token_shift:
            self.shifts = (0, 1) if model.objective == "causal" else (-1, 0, 1)
        self.attention_norm = nn.LayerNorm(model.width, eps=model.norm_epsilon)
        self.attention = AttentionLayer(model, attention, layer)
        if cross:
            self.cross_norm = nn.LayerNorm(model.width, eps=model.norm_epsilon)
            self.cross_attention = AttentionLayer(model, attention, layer, cross=True)
        self.ffn_norm = nn.LayerNorm(model.width, eps=model.norm_epsilon)
        self.up = _linear(model.width, model.ffn, True, _DENSE_BIAS_STD)
        self.down = _linear(model.ffn, model.width, True, _DENSE_BIAS_STD)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)

    def feed_forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        name, form = _ACTIVATIONS[self.activation]
        inner = self.up(x)
        inner = F.relu(inner) if name == "relu" else F.gelu(inner, approximate=form)
        return cast(Tensor, self.down(self._drop(inner)))

    def _shifted(self, x: Tensor, batch: Batch) -> Tensor:
        return shift_tokens(x, self.shifts, batch) if self.shifts else x

    def _residual(self, x: Tensor, norm: nn.LayerNorm, branch: Any) -> Tensor:
        if self.pre_norm:
            return x + self._drop(branch(norm(x)))
        return cast(Tensor, norm(x + self._drop(branch(x))))

    def forward(
        self, x: Tensor, batch: Batch, table: tuple[Tensor, Tensor] | None, context: Context | None = None
    ) -> Tensor:
        """x [B, T, width] -> [B, T, width]."""
        x = self._residual(x, self.attention_norm, lambda y: self.attention(self._shifted(y, batch), batch, table))
        if context is not None:
            x = self._residual(
                x,
                self.cross_norm,
                lambda y: self.cross_attention.attend_to(y, batch, context.encoded, context.batch),
            )
        return self._residual(x, self.ffn_norm, lambda y: self.feed_forward(self._shifted(y, batch)))

    def reversible(
        self, first: Tensor, second: Tensor, batch: Batch, table: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """The block as a reversible layer over two streams."""
        attended = self.attention(self._shifted(self.attention_norm(second), batch), batch, table)
        first = first + self._drop(attended)
        return first, second + self._drop(self.feed_forward(self._shifted(self.ffn_norm(first), batch)))

    @property
    def advances(self) -> bool:
        """Whether forward() and reversible() can go on from a stream's state: Batch.stream."""
        return self.attention.advances and not self.shifts

    def begin(self, batch_size: int) -> BlockCache:
        """A cache of sequences without tokens."""
        return BlockCache(self.attention.begin(batch_size))

    def _shifted_token(self, x: Tensor, cache: BlockCache, name: str) -> Tensor:
        if not self.shifts:
            return x
        last = getattr(cache, name)
        setattr(cache, name, x)
        before = torch.zeros_like(x) if last is None else last
        return shift_tokens(torch.stack([before, x], 1), self.shifts, Batch())[:, 1]

    def step(self, x: Tensor, cache: BlockCache, table: tuple[Tensor, Tensor] | None) -> Tensor:
        """One token of each sequence, [B, width] -> [B, width]."""
        x = self._residual(
            x,
            self.attention_norm,
            lambda y: self.attention.step(self._shifted_token(y, cache, "attention_token"), cache.attention, table),
        )
        return self._residual(x, self.ffn_norm, lambda y: self.feed_forward(self._shifted_token(y, cache, "ffn_token")))

    def step_reversible(
        self, first: Tensor, second: Tensor, cache: BlockCache, table: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """One token of each sequence through a reversible layer."""
        y = self._shifted_token(self.attention_norm(second), cache, "attention_token")
        first = first + self.attention.step(y, cache.attention, table)
        y = self._shifted_token(self.ffn_norm(first), cache, "ffn_token")
        return first, second + self.feed_forward(y)

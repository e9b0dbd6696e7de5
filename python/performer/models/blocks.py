# SPDX-License-Identifier: Apache-2.0
"""Transformer blocks as the project's models have them (performer/nn/block.h), and stacks of them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any, cast

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

from performer.attention import mapped_attention
from performer.models.config import AttentionConfig, ModelConfig
from performer.models.kinds import Batch, Exact, Favor, Local, exact_attention, make_kind
from performer.state import State

_QK_NORM_EPSILON = 1e-6
_DENSE_BIAS_STD = 1e-6


def rotary_table(positions: Tensor, head_size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines [..., 1, D / 2] of the rotary positions; angles are computed in float64."""
    pairs = torch.arange(head_size // 2, dtype=torch.float64, device=positions.device)
    rates = torch.exp(pairs * (-2 * math.log(10000.0) / head_size))
    angles = (positions.to(torch.float64).unsqueeze(-1) * rates).unsqueeze(-2)
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    return angles.cos().to(precise), angles.sin().to(precise)


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Heads [B, T, H, D] turned by their positions: neighbouring channels are a pair."""
    cosine, sine = table
    pairs = x.to(cosine.dtype).reshape(*x.shape[:-1], -1, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    turned = torch.stack([first * cosine - second * sine, first * sine + second * cosine], -1)
    return turned.flatten(-2).to(x.dtype)


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Sinusoidal positions [..., width]: sine and cosine of each rate side by side."""
    rates = torch.arange((width + 1) // 2, dtype=torch.float64, device=positions.device)
    angles = positions.to(torch.float64).unsqueeze(-1) * torch.exp(rates * (-2 * math.log(10000.0) / width))
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)[..., :width]


def shift_tokens(x: Tensor, shifts: tuple[int, ...], batch: Batch) -> Tensor:
    """Groups of features of x [B, T, C] taken from `shift` tokens earlier; zeros beyond a sequence's ends."""
    width = x.shape[2] // len(shifts)
    kept = x if batch.key_mask is None else x.masked_fill(~batch.key_mask.unsqueeze(-1), 0)
    parts = []
    for group, shift in enumerate(shifts):
        part = (x if shift == 0 else kept)[..., group * width : (group + 1) * width]
        if shift and abs(shift) >= x.shape[1]:
            part = torch.zeros_like(part)
        elif shift:
            part = F.pad(part, (0, 0, shift, -shift))
            if batch.cu_seqlens is not None:
                part = part.masked_fill(_crosses(batch.cu_seqlens, shift, x.device), 0)
        parts.append(part)
    return torch.cat([*parts, x[..., len(shifts) * width :]], -1)


def _crosses(bounds: Tensor, shift: int, device: torch.device) -> Tensor:
    """Bool [1, T, 1]: tokens whose neighbour `shift` tokens earlier is of another segment, or none."""
    segment = torch.arange(len(bounds) - 1).repeat_interleave(bounds.diff())
    return segment.ne(F.pad(segment, (shift, -shift), value=-1)).view(1, -1, 1).to(device)


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


class _Stack(nn.Module):
    """Blocks and a final norm over embeddings of one's own."""

    def __init__(self, model: ModelConfig, attention: AttentionConfig, cross: bool) -> None:
        super().__init__()
        self.model_config, self.attention_config = model, attention
        self.blocks = nn.ModuleList(Block(model, attention, layer, cross) for layer in range(model.layers))
        self.final_norm = nn.LayerNorm(model.width, eps=model.norm_epsilon)

    def _run(
        self, x: Tensor, key_mask: Tensor | None, cu_seqlens: Tensor | None, positions: Tensor | None, context: Any
    ) -> Tensor:
        bounds = None if cu_seqlens is None else cu_seqlens.to("cpu", torch.int64)
        batch = Batch(key_mask, bounds)
        if positions is None:
            positions = token_positions(x.shape[:2], bounds, x.device)
        config = self.model_config
        table = rotary_table(positions, config.size_of_head, x.dtype) if config.positions == "rotary" else None
        if config.positions == "sinusoidal":
            x = x + sinusoids(positions, config.width).to(x.dtype)
        for block in self.blocks:
            x = block(x, batch, table, context)
        return cast(Tensor, self.final_norm(x))


def token_positions(shape: torch.Size, bounds: Tensor | None, device: torch.device) -> Tensor:
    """The place of each token within its sequence, int64 [B, T]."""
    places = torch.arange(shape[1], device=device).expand(shape)
    if bounds is None:
        return places
    lengths = bounds.diff()
    return places - bounds[:-1].repeat_interleave(lengths).to(device).expand(shape)


def _stack_config(
    layers: int, width: int, heads: int, ffn: int | None, kind: str, options: dict[str, Any], objective: str
) -> tuple[ModelConfig, AttentionConfig]:
    in_model = {field.name for field in dataclasses.fields(ModelConfig)}
    in_attention = {field.name for field in dataclasses.fields(AttentionConfig)} - {"options"}
    model = {name: value for name, value in options.items() if name in in_model}
    attention = {name: value for name, value in options.items() if name in in_attention}
    own = {name: value for name, value in options.items() if name not in in_model | in_attention}
    config = ModelConfig(
        objective=objective, layers=layers, width=width, heads=heads, ffn=4 * width if ffn is None else ffn, **model
    )
    if config.limits_length:
        raise ValueError(f"positions = {config.positions} belong to the embedding: add yours to the input")
    return config, AttentionConfig(kind=kind, options=own, **attention)


class PerformerEncoder(_Stack):
    """Bidirectional blocks over embeddings: x [B, T, width] -> [B, T, width].

    Args:
        layers, width, heads, ffn: sizes; ffn None: 4 width.
        kind: an attention kind: "favor-softmax", "favor-relu", "exact", "auto", "local" ...
        options: further keys of a model's sections [model] and [attention]: dropout=0.1, positions="none",
            features=128, qk_norm=True ...

    Raises:
        ValueError: for unknown options and impossible sizes.
    """

    def __init__(
        self, layers: int, width: int, heads: int, ffn: int | None = None, kind: str = "favor-softmax", **options: Any
    ) -> None:
        super().__init__(*_stack_config(layers, width, heads, ffn, kind, options, "masked"), cross=False)

    def forward(
        self,
        x: Tensor,
        *,
        key_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Encodes x [B, T, width].

        Args:
            key_mask: bool [B, T], True keeps.
            cu_seqlens: int [N + 1], bounds of packed segments, for B = 1.
            positions: int [B, T]; None: from 0 in each sequence.
        """
        return self._run(x, key_mask, cu_seqlens, positions, None)


class PerformerDecoder(_Stack):
    """Causal blocks over embeddings, with cross_attend=True each reading a context between its two other parts.

    Arguments and errors are those of :class:`PerformerEncoder`.
    """

    def __init__(
        self,
        layers: int,
        width: int,
        heads: int,
        ffn: int | None = None,
        kind: str = "favor-softmax",
        cross_attend: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(*_stack_config(layers, width, heads, ffn, kind, options, "causal"), cross=cross_attend)
        self.cross_attend = cross_attend

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        cu_seqlens_context: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Decodes x [B, T, width] given context [B, S, width]; masks and bounds as in PerformerEncoder.

        Raises:
            ValueError: for a context where the decoder reads none, and none where it needs one.
        """
        if (context is None) == self.cross_attend:
            wanted = "needs a context" if self.cross_attend else "has no cross-attention: leave out the context"
            raise ValueError(f"this decoder {wanted}")
        bounds = None if cu_seqlens_context is None else cu_seqlens_context.to("cpu", torch.int64)
        of_context = None if context is None else Context(context, Batch(context_mask, bounds))
        return self._run(x, key_mask, cu_seqlens, positions, of_context)


__all__ = ["AttentionLayer", "Block", "Context", "PerformerDecoder", "PerformerEncoder", "State"]

# SPDX-License-Identifier: Apache-2.0
"""Attention as modules: FavorAttention over heads, and MultiheadAttention with the arguments of torch.nn's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from performer._arguments import Features, Layout, feature_map
from performer.attention import mapped_attention
from performer.features import MapStatistics, MapWeights, measure_statistics
from performer.state import State, empty_state, favor_step, key_state

_MOMENT_DECAY = 0.99  # of the running moments, a training step


class FavorAttention(nn.Module):
    """Linear attention of heads with a feature map whose data the module owns.

    Args:
        heads: H.
        head_size: D.
        features: a name, a number of softmax features, or a FeatureMap.
        causal: each query sees keys up to its own place.
        seed, layer: name the random projection, with the head and the number of redraws; give each layer its own.
        device: of parameters and buffers.

    Buffers and parameters, as far as the map has them: projection [H or 1, P, D] (float32, whatever type the module is
    converted to), matrix and bias (learned), and for causal maps with statistics running moments, which `after_step()`
    moves.

    Raises:
        ValueError: for options that are impossible together.

    Source: arXiv 2009.14794; docs/mechanisms.md for the maps.
    """

    projection: Tensor | None

    def __init__(
        self,
        heads: int,
        head_size: int,
        features: Features = "softmax",
        *,
        causal: bool = False,
        seed: int = 0,
        layer: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.map = feature_map(features)
        self.heads, self.head_size, self.causal = heads, head_size, causal
        self.seed, self.layer, self.redraw_index = seed, layer, 0
        self.map.feature_count(head_size)  # refuses what is impossible
        drawn = self._draw()
        self.register_buffer("projection", None if drawn is None else drawn.to(device))
        matrix, bias = self.map.initial_weights(heads, head_size)
        self.matrix = None if matrix is None else nn.Parameter(matrix.to(device))
        self.bias = None if bias is None else nn.Parameter(bias.to(device))
        self._moments = causal and self.map.traits.statistics
        if self._moments:
            for name in MapStatistics._fields:
                shape = (heads, head_size) if name.endswith("mean") else (heads, head_size, head_size)
                self.register_buffer(name, torch.zeros(shape, device=device))
        self._measured: MapStatistics | None = None

    def _draw(self) -> Tensor | None:
        return self.map.draw(self.heads, self.head_size, seed=self.seed, layer=self.layer, redraw=self.redraw_index)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FavorAttention:
        precise = self.projection
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        moved = self.projection
        if precise is not None and moved is not None and moved.dtype != torch.float32:
            self.projection = precise.to(moved.device, torch.float32)
        return self

    def reset_projection(self) -> None:
        """Fills the projection again from its name, for example after ``to_empty()``."""
        if self.projection is not None:
            with torch.no_grad():
                self.projection.copy_(cast(Tensor, self._draw()))

    def redraw(self, index: int) -> None:
        """Replaces the projection in place by draw number `index`; between optimizer steps, never within one."""
        self.redraw_index = index
        self.reset_projection()

    def weights(self) -> MapWeights:
        """The data of the map, for the functions of performer.attention."""
        return MapWeights(self.projection, self.matrix, self.bias)

    def statistics(self) -> MapStatistics | None:
        """The running moments of a causal map that has them, else None."""
        return MapStatistics(*(getattr(self, name) for name in MapStatistics._fields)) if self._moments else None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        cu_seqlens_key: Tensor | None = None,
        state: State | None = None,
        return_state: bool = False,
        layout: Layout = "bhtd",
        scale: float | None = None,
    ) -> Any:
        """Attention of query [B, H, T, D] to key [B, H, S, D] and value [B, H, S, E]; see mapped_attention.

        Returns [B, H, T, E], with return_state (output, State).
        """
        if self._moments and self.training:
            self._measured = measure_statistics(
                query.detach(),
                key.detach(),
                self.map.map,
                key_mask=key_mask,
                query_mask=query_mask,
                cu_seqlens=cu_seqlens,
                layout=layout,
            )
        return mapped_attention(
            query,
            key,
            value,
            self.map,
            self.weights(),
            self.statistics(),
            causal=self.causal,
            key_mask=key_mask,
            query_mask=query_mask,
            cu_seqlens=cu_seqlens,
            cu_seqlens_key=cu_seqlens_key,
            state=state,
            return_state=cast(Any, return_state),
            layout=layout,
            scale=scale,
        )

    def after_step(self) -> None:
        """Takes the moments of the last training batch into the running ones; call it after each optimizer step."""
        if self._measured is None:
            return
        with torch.no_grad():
            first = not bool(self.get_buffer("key_moment").count_nonzero())
            for name, measured in zip(MapStatistics._fields, self._measured, strict=True):
                running = self.get_buffer(name)
                running.copy_(measured) if first else running.lerp_(measured.to(running), 1 - _MOMENT_DECAY)
        self._measured = None

    def begin(self, query: Tensor, value: Tensor) -> State:
        """The state of streamed sequences without tokens, of query [B, H, D] and value [B, H, E]."""
        return empty_state(query, value, self.map, self.weights())

    def step(self, query: Tensor, key: Tensor, value: Tensor, state: State, *, scale: float | None = None) -> Tensor:
        """One token of causal attention, [B, H, D] -> [B, H, E]; `state` is updated in place. No gradients."""
        return favor_step(query, key, value, state, self.map, self.weights(), self.statistics(), scale=scale)

    def context(self, key: Tensor, value: Tensor, *, key_mask: Tensor | None = None, layout: Layout = "bhtd") -> State:
        """The state of a whole context, for cross-attention that reads it many times."""
        return key_state(key, value, self.map, self.weights(), self.statistics(), key_mask=key_mask, layout=layout)

    def extra_repr(self) -> str:
        """What print() shows of the module."""
        return f"heads={self.heads}, head_size={self.head_size}, map={self.map.map}, causal={self.causal}"


class MultiheadAttention(nn.MultiheadAttention):
    """torch.nn.MultiheadAttention with linear attention: the same arguments, weight names and initial weights.

    Args:
        embed_dim, num_heads, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first, device, dtype: as there.
        dropout: must be 0: there are no attention weights to drop; drop the output instead.
        features, seed, layer: as in :class:`FavorAttention`. The projection is the buffer ``favor.projection``.

    A state dict of torch.nn.MultiheadAttention loads with strict=False; what is missing is the projection alone.

    Raises:
        ValueError: for dropout.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        features: Features = "softmax",
        seed: int = 0,
        layer: int = 0,
    ) -> None:
        if dropout != 0:
            raise ValueError(
                f"dropout is {dropout}: linear attention has no attention weights that could be dropped; use 0 and "
                "drop the output of the layer instead"
            )
        super().__init__(
            embed_dim, num_heads, 0.0, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first, device, dtype
        )
        self._one_product = self._qkv_same_embed_dim
        # torch.nn's encoder layers would otherwise compute exact attention from the weights, past forward().
        self._qkv_same_embed_dim = False
        self.favor = FavorAttention(num_heads, embed_dim // num_heads, features, seed=seed, layer=layer, device=device)

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Each [B, T, width]."""
        if self._one_product:
            if query is key and key is value:
                return list(F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1))
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return [F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True)]

    def _check(self, need_weights: bool, attn_mask: Tensor | None, is_causal: bool, padding: Tensor | None) -> None:
        if need_weights:
            raise ValueError("need_weights is True: linear attention never forms attention weights; leave it False")
        if attn_mask is not None and not is_causal:
            raise ValueError(
                "attn_mask: linear attention cannot hide keys from single queries; for causal attention give "
                "is_causal=True, for padding key_padding_mask"
            )
        if padding is not None and padding.dtype != torch.bool:
            raise ValueError(f"key_padding_mask must be bool, True at padding, not {padding.dtype}")
        if is_causal and (self.bias_k is not None or self.add_zero_attn):
            raise ValueError("is_causal does not go with add_bias_kv and add_zero_attn, whose keys have no place")

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention; shapes as torch.nn.MultiheadAttention has them.

        Args:
            query, key, value: [T, B, width], with batch_first [B, T, width], or [T, width].
            key_padding_mask: bool [B, S], True hides a key.
            need_weights: must be False.
            attn_mask: ignored when is_causal, which says the same; refused otherwise.

        Returns:
            (output in the shape of query, None).

        Raises:
            ValueError: for what linear attention cannot do, naming the argument.
        """
        self._check(need_weights, attn_mask, is_causal, key_padding_mask)
        batched = query.dim() == 3
        same = query is key and key is value
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._project(query, query if same else key, query if same else value)
        extra = []
        if self.bias_k is not None and self.bias_v is not None:
            extra.append((self.bias_k, self.bias_v))
        if self.add_zero_attn:
            extra.append((torch.zeros_like(k[:1, :1]), torch.zeros_like(v[:1, :1])))
        for more_k, more_v in extra:
            k = torch.cat([k, more_k.expand(k.shape[0], -1, -1)], 1)
            v = torch.cat([v, more_v.expand(v.shape[0], -1, -1)], 1)
        if key_padding_mask is not None:
            key_padding_mask = ~F.pad(key_padding_mask, (0, len(extra)))
        q, k, v = (x.reshape(*x.shape[:-1], self.num_heads, -1) for x in (q, k, v))
        out = mapped_attention(
            q, k, v, self.favor.map, self.favor.weights(), causal=is_causal, key_mask=key_padding_mask, layout="bthd"
        )
        out = self.out_proj(out.flatten(-2))
        if not batched:
            return out.squeeze(0), None
        return (out if self.batch_first else out.transpose(0, 1)), None

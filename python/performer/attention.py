# SPDX-License-Identifier: Apache-2.0
"""Linear attention as functions of tensors.

Shapes: B sequences, T queries, S keys, H heads, D numbers a query or key, E numbers a value, M features. Layout "bhtd"
is [B, H, T, D], as torch.nn.functional.scaled_dot_product_attention has it, and "bthd" is [B, T, H, D], as the
projections of a layer leave it; neither costs a copy. Inputs are float32, bfloat16, float16 or float64; sums are
kept in float32 (float64 for float64), and outputs have the type of the values. Under torch.autocast queries, keys and
values are cast and projections and states are not. Derivatives are of first order.

On the CPU the project's kernels compute; tensors of every other device take the same attention composed of PyTorch's
operations.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from performer import _transforms
from performer._library import ops
from performer.features import FeatureMap, MapStatistics, MapWeights, default_projection, feature_map_names

Layout = Literal["bhtd", "bthd"]
Features = str | int | FeatureMap


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


_NO_WEIGHTS = MapWeights()
_NO_STATISTICS = (None, None, None, None)
_NO_STATE = (None, None, None)
_NAMED = {name: FeatureMap(name) for name in ["softmax", *feature_map_names()]}


def feature_map(features: Features) -> FeatureMap:
    """The description that an argument `features` stands for: a name, a number of softmax features, or itself."""
    if isinstance(features, FeatureMap):
        return features
    if isinstance(features, int):
        return FeatureMap(features=features)
    return _NAMED[features] if features in _NAMED else FeatureMap(features)


def _check_layout(layout: str) -> None:
    if layout not in ("bhtd", "bthd"):
        raise ValueError(f"layout must be 'bhtd' or 'bthd', not {layout!r}")


def _autocast(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Under torch.autocast inputs take its type, as those of matrix products do; float64 stays."""
    kind = query.device.type
    if torch.is_autocast_enabled(kind) and query.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
        return query.to(dtype), key.to(dtype), value.to(dtype)
    return query, key, value


def _cpu_bounds(bounds: Tensor | None) -> Tensor | None:
    return None if bounds is None else bounds.to("cpu", torch.int64)


def _repeated(tensor: Tensor, heads: int, name: str) -> Tensor:
    """Grouped heads: [B, S, G, D] with G a divisor of `heads` as [B, S, heads, D]."""
    if heads % tensor.shape[2] != 0:
        raise ValueError(
            f"{name} has {tensor.shape[2]} heads for {heads} query heads; expected as many, or a divisor of them"
        )
    return tensor.repeat_interleave(heads // tensor.shape[2], 2)


def _weights_of(
    described: FeatureMap, weights: MapWeights | None, heads: int, head_size: int, seed: int, device: torch.device
) -> MapWeights:
    if not described.default_drawn:
        return weights or _NO_WEIGHTS
    if weights is None:
        return MapWeights(default_projection(described, heads, head_size, seed, device))
    if weights.projection is not None:
        return weights
    return weights._replace(projection=default_projection(described, heads, head_size, seed, device))


def _scaled(query: Tensor, described: FeatureMap, scale: float | None) -> Tensor:
    """Maps of softmax estimate exp(q . k / sqrt(D)); another scale goes to the queries."""
    if scale is None:
        return query
    if not described.traits.exponential:
        raise ValueError(
            f"scale has a meaning for maps that estimate softmax attention, not for {described.map}; scale the "
            "queries and keys yourself"
        )
    factor = scale * math.sqrt(query.shape[-1])
    return query if factor == 1 else query * factor


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    features: Features,
    weights: MapWeights | None,
    statistics: MapStatistics | None,
    causal: bool,
    key_mask: Tensor | None,
    query_mask: Tensor | None,
    cu_seqlens: Tensor | None,
    cu_seqlens_key: Tensor | None,
    state: State | None,
    return_state: bool,
    layout: str,
    scale: float | None,
    seed: int,
    chunk: int,
    backend: str,
) -> Any:
    """mapped_attention with all of its arguments by place: names cost a small call a tenth of its time."""
    described = feature_map(features)
    if layout == "bhtd":
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    elif layout != "bthd":
        _check_layout(layout)
    if torch._C._is_any_autocast_enabled():
        query, key, value = _autocast(query, key, value)
    if scale is not None:
        query = _scaled(query, described, scale)
    heads = query.shape[2]
    if key.shape[2] != heads:
        key = _repeated(key, heads, "key")
    if value.shape[2] != heads:
        value = _repeated(value, heads, "value")
    projection, matrix, bias = _weights_of(described, weights, heads, query.shape[3], seed, query.device)
    moments = statistics or _NO_STATISTICS
    out, *final = _transforms.attend(
        query,
        key,
        value,
        *described.arguments,
        projection,
        matrix,
        bias,
        *moments,
        key_mask,
        query_mask,
        None if cu_seqlens is None else _cpu_bounds(cu_seqlens),
        None if cu_seqlens_key is None else _cpu_bounds(cu_seqlens_key),
        *(state or _NO_STATE),
        causal,
        chunk,
        return_state,
        backend,
    )
    if layout == "bhtd":
        out = out.transpose(1, 2)
    return (out, State(*final)) if return_state else out


@overload
def mapped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    features: Features = ...,
    weights: MapWeights | None = ...,
    statistics: MapStatistics | None = ...,
    *,
    causal: bool = ...,
    key_mask: Tensor | None = ...,
    query_mask: Tensor | None = ...,
    cu_seqlens: Tensor | None = ...,
    cu_seqlens_key: Tensor | None = ...,
    state: State | None = ...,
    return_state: Literal[False] = ...,
    layout: Layout = ...,
    scale: float | None = ...,
    seed: int = ...,
    chunk: int = ...,
    backend: str = ...,
) -> Tensor: ...


@overload
def mapped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    features: Features = ...,
    weights: MapWeights | None = ...,
    statistics: MapStatistics | None = ...,
    *,
    causal: bool = ...,
    key_mask: Tensor | None = ...,
    query_mask: Tensor | None = ...,
    cu_seqlens: Tensor | None = ...,
    cu_seqlens_key: Tensor | None = ...,
    state: State | None = ...,
    return_state: Literal[True],
    layout: Layout = ...,
    scale: float | None = ...,
    seed: int = ...,
    chunk: int = ...,
    backend: str = ...,
) -> tuple[Tensor, State]: ...


def mapped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    features: Features = "softmax",
    weights: MapWeights | None = None,
    statistics: MapStatistics | None = None,
    *,
    causal: bool = False,
    key_mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_key: Tensor | None = None,
    state: State | None = None,
    return_state: bool = False,
    layout: Layout = "bhtd",
    scale: float | None = None,
    seed: int = 0,
    chunk: int = 0,
    backend: str = "",
) -> Tensor | tuple[Tensor, State]:
    """Linear attention with any feature map: phi(q) (sum phi(k) v^T) / (phi(q) . sum phi(k)).

    Args:
        query: [B, H, T, D], with layout "bthd" [B, T, H, D].
        key: [B, H, S, D]; fewer heads are repeated (grouped heads).
        value: [B, H, S, E].
        features: the map: a name ("softmax", "relu", ...), a number of softmax features, or a FeatureMap.
        weights: the data of the map. Without a projection the one of (seed, layer 0, redraw 0) is used; learned maps
            need theirs.
        statistics: of oprf, sderf, aderf and saderf; None: measured from this call, where that does not leak the
            future.
        causal: each query sees keys up to its own place. Needs T = S.
        key_mask, query_mask: bool [B, S] and [B, T], True keeps. Rows that query_mask hides are 0.
        cu_seqlens, cu_seqlens_key: int [N + 1], bounds of N packed segments along T (and S), for B = 1. Segments may
            be empty and never see each other. cu_seqlens_key defaults to cu_seqlens.
        state: of earlier keys (batch N when packed): attention goes on from there.
        return_state: the state after the last key too.
        layout: "bhtd" or "bthd", of query, key, value and output.
        scale: softmax maps estimate exp(scale q . k); None: 1 / sqrt(D). Applied to the queries, so choose query and
            key norms alike.
        seed: names the projection that is drawn when none is given.
        chunk: tokens handled at a time, at most 256; 0: the kernel's choice.
        backend: "cpu", "composed", or "" for the fastest that serves the device.

    Returns:
        The output [B, H, T, E] (layout "bthd": [B, T, H, E]); with return_state (output, State).

    Raises:
        ValueError, TypeError: for arguments that do not fit, naming the argument, what was expected and what was found.

    Source: arXiv 2009.14794, equations 3 to 8 and section 2.4; docs/mechanisms.md for the maps.
    """
    return _attend(  # type: ignore[no-any-return]
        query, key, value, features, weights, statistics, causal, key_mask, query_mask, cu_seqlens, cu_seqlens_key,
        state, return_state, layout, scale, seed, chunk, backend,
    )  # fmt: skip


@overload
def favor_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool = ...,
    features: Features = ...,
    projection: Tensor | None = ...,
    key_mask: Tensor | None = ...,
    query_mask: Tensor | None = ...,
    cu_seqlens: Tensor | None = ...,
    cu_seqlens_key: Tensor | None = ...,
    state: State | None = ...,
    return_state: Literal[False] = ...,
    layout: Layout = ...,
    scale: float | None = ...,
    seed: int = ...,
    backend: str = ...,
) -> Tensor: ...


@overload
def favor_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool = ...,
    features: Features = ...,
    projection: Tensor | None = ...,
    key_mask: Tensor | None = ...,
    query_mask: Tensor | None = ...,
    cu_seqlens: Tensor | None = ...,
    cu_seqlens_key: Tensor | None = ...,
    state: State | None = ...,
    return_state: Literal[True],
    layout: Layout = ...,
    scale: float | None = ...,
    seed: int = ...,
    backend: str = ...,
) -> tuple[Tensor, State]: ...


def favor_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool = False,
    features: Features = "softmax",
    projection: Tensor | None = None,
    key_mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_key: Tensor | None = None,
    state: State | None = None,
    return_state: bool = False,
    layout: Layout = "bhtd",
    scale: float | None = None,
    seed: int = 0,
    backend: str = "",
) -> Tensor | tuple[Tensor, State]:
    """Performer attention (FAVOR+ and its relatives); for maps without learned parts.

    With "softmax" features it estimates softmax(q k^T / sqrt(D)) v, the better the more features and the smaller the
    norms of queries and keys; ``performer approx`` measures by how much. With "relu" it is the generalised attention
    of the Performer paper's protein models.

    Args:
        projection: [H or 1, P, D] float32 of FeatureMap.draw(); None: the one of `seed`, drawn once.

    All other arguments, results and errors are those of :func:`mapped_attention`.

    Source: arXiv 2009.14794.
    """
    return _attend(  # type: ignore[no-any-return]
        query, key, value, features, None if projection is None else MapWeights(projection), None, causal, key_mask,
        query_mask, cu_seqlens, cu_seqlens_key, state, return_state, layout, scale, seed, 0, backend,
    )  # fmt: skip


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
    _check_layout(layout)
    if layout == "bhtd":
        key, value = key.transpose(1, 2), value.transpose(1, 2)
    key, _, value = _autocast(key, key, value)
    projection, matrix, bias = _weights_of(described, weights, key.shape[2], key.shape[3], seed, key.device)
    moments = statistics or _NO_STATISTICS
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
            _cpu_bounds(cu_seqlens),
            *(state or _NO_STATE),
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
    query, key, value = _autocast(query, key, value)
    query = _scaled(query, described, scale)
    if key.shape[1] != query.shape[1]:
        repeats = query.shape[1] // max(1, key.shape[1])
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    projection, matrix, bias = _weights_of(described, weights, query.shape[1], query.shape[2], seed, query.device)
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
            *(statistics or _NO_STATISTICS),
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


def _key_mask_of(mask: Tensor, batch: torch.Size, keys: int) -> Tensor:
    """The key mask [B, S] that a mask of F.scaled_dot_product_attention stands for.

    Raises:
        ValueError: when it distinguishes queries or heads, which linear attention cannot, or is no bool mask.
    """
    if mask.dtype != torch.bool:
        raise ValueError(
            f"attn_mask is {mask.dtype}: linear attention has no scores to which a mask or bias could be added; give a "
            "bool mask of keys"
        )
    if mask.dim() < 2 or mask.shape[-2] != 1 or (mask.dim() > 2 and mask.shape[-3] != 1):
        raise ValueError(
            f"attn_mask has shape {list(mask.shape)}: linear attention can hide keys from all queries and heads alike, "
            "with a mask [..., 1, 1, S]; for causal attention give is_causal=True, for packed sequences cu_seqlens to "
            "favor_attention"
        )
    row = mask[..., 0, :]
    if row.dim() > 1:
        row = row[..., 0, :]
    return row.expand(*batch, keys).reshape(-1, keys)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    features: Features = "softmax",
    projection: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    """torch.nn.functional.scaled_dot_product_attention estimated in linear time.

    Args:
        query: [..., H, T, D] with any number of dimensions in front; [..., T, D] is one head.
        key: [..., H, S, D].
        value: [..., H, S, E].
        attn_mask: bool [..., 1, 1, S] (True keeps), the same keys for all queries and heads.
        dropout_p: must be 0: there are no attention weights to drop.
        is_causal: needs T = S.
        scale: None: 1 / sqrt(D).
        enable_gqa: key and value may have fewer heads.
        features, projection, seed: as in :func:`favor_attention`.

    Returns:
        [..., H, T, E].

    Raises:
        ValueError: for what linear attention cannot do: dropout, float masks, masks that distinguish queries or heads,
            causal attention with T != S.
    """
    if dropout_p != 0:
        raise ValueError(
            f"dropout_p is {dropout_p}: linear attention never forms attention weights, so none can be dropped; use 0 "
            "and drop outputs instead"
        )
    if query.dim() < 2:
        raise ValueError(f"query must have at least 2 dimensions, [..., T, D], found {query.dim()}")
    tokens, keys = query.shape[-2], key.shape[-2]
    if is_causal and tokens != keys:
        raise ValueError(
            f"is_causal needs as many keys as queries, found {keys} and {tokens}; go on from earlier keys with the "
            "state of favor_attention"
        )
    batch = query.shape[:-3]
    if key.dim() > 3 and not enable_gqa and key.shape[-3] != query.shape[-3]:
        raise ValueError(
            f"key has {key.shape[-3]} heads and query {query.shape[-3]}; give enable_gqa=True for grouped heads"
        )
    mask = None if attn_mask is None else _key_mask_of(attn_mask, batch, keys)

    def four(tensor: Tensor) -> Tensor:
        if tensor.dim() == 4:
            return tensor
        return tensor.reshape(-1, tensor.shape[-3] if tensor.dim() > 2 else 1, *tensor.shape[-2:])

    out = favor_attention(
        four(query),
        four(key),
        four(value),
        causal=is_causal,
        features=features,
        projection=projection,
        key_mask=mask,
        scale=scale,
        seed=seed,
    )
    return out if query.dim() == 4 else out.reshape(*query.shape[:-1], value.shape[-1])

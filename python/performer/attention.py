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

from typing import Any, Literal, overload

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
    repeated,
    scaled,
    weights_of,
)
from performer._library import ops
from performer._transforms import transformed
from performer.features import FeatureMap, MapStatistics, MapWeights, kept_projection
from performer.state import State

_operator = ops.mapped_attention
_call = _operator.default._op  # without the Python frames in front of it, which cost a small call half a microsecond


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
    described = features if isinstance(features, FeatureMap) else feature_map(features)
    heads_first = layout == "bhtd"
    if not heads_first and layout != "bthd":
        check_layout(layout)
    if torch._C._is_any_autocast_enabled():
        query, key, value = autocast(query, key, value)
    if scale is not None:
        query = scaled(query, described, scale)
    sizes = query.shape
    if len(sizes) != 4:
        raise ValueError(f"query must have 4 dimensions, with layout {layout!r}, found shape {list(sizes)}")
    place = 1 if heads_first else 2
    heads = sizes[place]
    if key.shape[place] != heads:
        key = repeated(key, heads, "key", place)
    if value.shape[place] != heads:
        value = repeated(value, heads, "value", place)
    arguments = described.arguments
    compiling = torch.compiler.is_compiling()
    projection: Tensor | None
    matrix = bias = None
    if weights is None and described.default_drawn and not compiling:  # the way of small calls, without detours
        shared = described.shared_projection
        projection = kept_projection(arguments, shared, heads, sizes[3], seed, query.device, 0)
    else:
        projection, matrix, bias = weights_of(described, weights, heads, sizes[3], seed, query.device)
    direct = _operator if compiling else _call
    operator = direct if compiling or not torch._C._are_functorch_transforms_active() else transformed
    results = operator(
        query,
        key,
        value,
        *arguments,
        projection,
        matrix,
        bias,
        *(statistics or NO_STATISTICS),
        key_mask,
        query_mask,
        None if cu_seqlens is None else cpu_bounds(cu_seqlens),
        None if cu_seqlens_key is None else cpu_bounds(cu_seqlens_key),
        *(state or NO_STATE),
        causal,
        chunk,
        return_state,
        backend,
        heads_first,
    )
    return (results[0], State(*results[1:])) if return_state else results[0]


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

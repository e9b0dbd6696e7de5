# SPDX-License-Identifier: Apache-2.0
"""The handlers of the shared library as JAX functions. Private; :mod:`performer.jax.favor` is the public side."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from performer import _kernels_library

_TARGETS = ("performer_favor_forward", "performer_favor_backward", "performer_reduce_mask", "performer_projection")


@functools.cache
def register() -> None:
    """Makes the handlers known to JAX, once. Raises ImportError when the shared library is missing."""
    library = _kernels_library.load()
    for name in _TARGETS:
        capsule = jax.ffi.pycapsule(getattr(library, name))  # type: ignore[no-untyped-call]
        jax.ffi.register_ffi_target(name, capsule, platform="cpu")


class Map(NamedTuple):
    """The numbers of a feature map (performer/kernels/favor.h); hashable."""

    family: str = "exponential"
    function: str | Callable[[jax.Array], jax.Array] = "relu"
    scale: float = 1.0
    norm_weight: float = 0.5
    epsilon: float = 0.0


class Arrays(NamedTuple):
    """The arguments of a call. What is not given has no elements."""

    query: jax.Array
    key: jax.Array
    value: jax.Array
    projection: jax.Array
    offset: jax.Array
    key_mask: jax.Array
    query_mask: jax.Array
    initial_kv: jax.Array
    initial_key_sum: jax.Array
    initial_log_scale: jax.Array

    @property
    def features(self) -> int:
        return int(self.projection.shape[2]) or int(self.query.shape[3])

    @property
    def stateful(self) -> bool:
        return self.initial_kv.size > 0


class Results(NamedTuple):
    """What the forward pass gives; the state parts have no elements unless it was asked for."""

    out: jax.Array
    normalizer: jax.Array
    kv: jax.Array
    key_sum: jax.Array
    log_scale: jax.Array


def sum_type(query: jax.Array) -> np.dtype[Any]:
    """The type of sums, states and normalizers: float32, and float64 of float64 inputs."""
    return np.dtype(np.float64 if query.dtype == np.float64 else np.float32)


def _attributes(mapping: Map, causal: bool, chunk: int) -> dict[str, object]:
    return {
        "family": mapping.family,
        "function": mapping.function,
        "scale": np.float64(mapping.scale),
        "norm_weight": np.float64(mapping.norm_weight),
        "epsilon": np.float64(mapping.epsilon),
        "causal": np.int64(causal),
        "chunk": np.int64(chunk),
    }


def _struct(shape: tuple[int, ...], dtype: DTypeLike) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]


def _shape(like: jax.Array) -> jax.ShapeDtypeStruct:
    return _struct(like.shape, like.dtype)


def forward(arrays: Arrays, mapping: Map, causal: bool, chunk: int, return_state: bool) -> Results:
    """The forward kernel."""
    register()
    batch, tokens, heads, _ = arrays.query.shape
    size, features, sums = arrays.value.shape[-1], arrays.features, sum_type(arrays.query)
    state = (batch, heads, features) if return_state else (0, 0, 0)
    call = jax.ffi.ffi_call(
        "performer_favor_forward",
        (
            _struct((batch, tokens, heads, size), arrays.value.dtype),
            _struct((batch, tokens, heads), sums),
            _struct((*state, size if return_state else 0), sums),
            _struct(state, sums),
            _struct(state, sums),
        ),
        vmap_method="expand_dims",
    )
    return Results(*call(*arrays, **_attributes(mapping, causal, chunk)))


def backward(
    arrays: Arrays,
    results: Results,
    grad_out: jax.Array,
    grad_kv: jax.Array,
    grad_key_sum: jax.Array,
    mapping: Map,
    causal: bool,
    chunk: int,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """The backward kernel: gradients of query, key, value, and of the initial state's kv and key_sum."""
    register()
    call = jax.ffi.ffi_call(
        "performer_favor_backward",
        (
            _shape(arrays.query),
            _shape(arrays.key),
            _shape(arrays.value),
            _shape(arrays.initial_kv),
            _shape(arrays.initial_key_sum),
        ),
        vmap_method="expand_dims",
    )
    gradients = call(
        *arrays,
        results.out,
        results.normalizer,
        grad_out,
        results.kv,
        results.key_sum,
        results.log_scale,
        grad_kv,
        grad_key_sum,
        **_attributes(mapping, causal, chunk),
    )
    return gradients[0], gradients[1], gradients[2], gradients[3], gradients[4]


def reduce_mask(codes: jax.Array, causal: bool) -> tuple[jax.Array, jax.Array]:
    """Masks of keys [B, S] and queries [B, T] of a matrix of codes [B, 1 or H, T, S] uint8; an error otherwise."""
    register()
    batch, _, queries, keys = codes.shape
    call = jax.ffi.ffi_call(
        "performer_reduce_mask",
        (_struct((batch, keys), jnp.bool_), _struct((batch, queries), jnp.bool_)),
        vmap_method="expand_dims",
    )
    key_mask, query_mask = call(codes, causal=np.int64(causal))
    return key_mask, query_mask


def projection(
    redraw: jax.Array, heads: int, features: int, head_size: int, kind: str, row_norm: str, seed: int, layer: int
) -> jax.Array:
    """[heads, features, head_size] float32 of the redraw with the number `redraw`, a uint32 scalar."""
    register()
    call = jax.ffi.ffi_call(
        "performer_projection",
        _struct((heads, features, head_size), jnp.float32),
        vmap_method="sequential",
    )
    return call(redraw, kind=kind, row_norm=row_norm, seed=np.int64(seed), layer=np.int64(layer))

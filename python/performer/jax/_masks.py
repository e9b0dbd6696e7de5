# SPDX-License-Identifier: Apache-2.0
"""Attention masks and biases of flax as masks of keys and of queries."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from performer.jax import _ffi

#: A bias up to here hides a key, as flax of 2020 and others write masks.
_HIDING = -1e9


class Masks(NamedTuple):
    """``key_mask`` [B, S] and ``query_mask`` [B, T], bool, None: all; ``valid`` [B], see :func:`reduce_mask`."""

    key_mask: jax.Array | None = None
    query_mask: jax.Array | None = None
    valid: jax.Array | None = None


def codes_of(mask: jax.Array | None, bias: jax.Array | None) -> jax.Array | None:
    """0 where a mask or a bias hides, 1 where both keep, 2 where a bias does neither; uint8."""
    codes = None
    if mask is not None:
        codes = (jnp.asarray(mask) != 0).astype(jnp.uint8)
    if bias is not None:
        bias = lax.stop_gradient(jnp.asarray(bias))
        hides = bias <= jnp.maximum(_HIDING, jnp.finfo(bias.dtype).min)  # type: ignore[no-untyped-call]
        of_bias = jnp.where(hides, 0, jnp.where(bias == 0, 1, 2)).astype(jnp.uint8)
        codes = of_bias if codes is None else jnp.where((codes == 0) | (of_bias == 0), 0, of_bias)
    return None if codes is None else lax.stop_gradient(codes)


def _composed(codes: jax.Array, causal: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    keep = codes == 1
    seen = jnp.tril(jnp.ones(codes.shape[-2:], bool)) if causal else jnp.ones(codes.shape[-2:], bool)
    key_mask, query_mask = (keep & seen)[:, 0].any(-2), (keep & seen)[:, 0].any(-1)
    expected = (query_mask[:, None, :, None] & key_mask[:, None, None, :]).astype(codes.dtype)
    return key_mask, query_mask, ((codes == expected) | ~seen).all((1, 2, 3))


@jax.jit(static_argnums=1)
def _reduce(codes: jax.Array, causal: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    def kernel(codes: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        key_mask, query_mask = _ffi.reduce_mask(codes, causal)
        return key_mask, query_mask, jnp.ones(codes.shape[:1], bool)

    reduced: tuple[jax.Array, jax.Array, jax.Array] = lax.platform_dependent(
        codes, cpu=kernel, default=lambda codes: _composed(codes, causal)
    )
    return reduced


def reduce_mask(
    codes: jax.Array | None, batch: tuple[int, ...], heads: int, queries: int, keys: int, causal: bool
) -> Masks:
    """What a mask ``[*batch or 1, H or 1, T or 1, S or 1]`` of :func:`codes_of` says of keys and of queries.

    A mask that is no product of the two (and a causal one, if the attention is) cannot be followed by linear
    attention. On CPUs the call then fails with an error that names the place. On other devices, where no
    compiled code can fail, ``valid`` is false for the sequence, and the caller makes its outputs NaN.

    Raises:
        ValueError: the shape does not fit.
    """
    if codes is None:
        return Masks()
    shape = (*batch, heads, queries, keys)
    fits = codes.ndim == len(shape) and all(n in (1, all_) for n, all_ in zip(codes.shape, shape, strict=True))
    if not fits:
        raise ValueError(
            f"the mask or bias must be [batch, 1 or heads, queries, keys], each its size or 1, which is "
            f"{list(shape)} here; found {list(codes.shape)}"
        )
    per_head, per_query = codes.shape[-3], codes.shape[-2]
    codes = jnp.broadcast_to(codes, (*batch, per_head, per_query, keys))
    codes = codes.reshape(-1, per_head, per_query, keys)
    # A single row of queries says nothing of queries, and is not causal by its place.
    key_mask, query_mask, valid = _reduce(codes, causal and per_query == keys and per_query > 1)
    return Masks(key_mask, None if per_query == 1 else query_mask, valid)

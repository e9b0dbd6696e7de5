# SPDX-License-Identifier: Apache-2.0
"""Projections by the number of their redraw."""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from performer._kernels_library import draw_projection
from performer.jax import _ffi

_current: contextvars.ContextVar[int | jax.Array] = contextvars.ContextVar("performer_redraw", default=0)


@contextlib.contextmanager
def redraw_index(index: int | jax.Array) -> Iterator[None]:
    """Within it, attentions with ``redraw_features=True`` use the draw number `index` of their projection.

    Draws are named, not consumed: (seed, layer, head, index) gives the same matrix everywhere, so that a redraw
    falls between steps of training and never between the passes of one step, and evaluation uses the draw of
    its training. Without this context the index is 0::

        @jax.jit
        def train_step(params, batch, step):
            with performer.jax.redraw_index(step // 1000):
                return jax.value_and_grad(loss)(params, batch)

    Args:
        index: from 0 to 2^32 - 1; it may be traced.
    """
    token = _current.set(index)
    try:
        yield
    finally:
        _current.reset(token)


class Draw(NamedTuple):
    """How a projection [heads, features, head_size] is drawn."""

    features: int
    kind: str
    row_norm: str
    seed: int
    layer: int

    def at(self, index: int | jax.Array, heads: int, head_size: int) -> jax.Array:
        """The projection ``[heads, features, head_size]`` of redraw number ``index``, which may be traced."""
        if isinstance(index, (int, np.integer)):
            return jnp.asarray(_constant(self, int(index), heads, head_size))
        drawn: jax.Array = _traced(jnp.asarray(index, jnp.uint32), self, heads, head_size)
        return drawn


@functools.lru_cache(maxsize=256)
def _constant(draw: Draw, index: int, heads: int, head_size: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return draw_projection(
        draw.features,
        head_size,
        heads,
        kind=draw.kind,
        row_norm=draw.row_norm,
        seed=draw.seed,
        layer=draw.layer,
        redraw=index,
    )


@jax.jit(static_argnums=(1, 2, 3))
def _traced(index: jax.Array, draw: Draw, heads: int, head_size: int) -> jax.Array:
    def kernel(index: jax.Array) -> jax.Array:
        sizes = (heads, draw.features, head_size)
        return _ffi.projection(index, *sizes, draw.kind, draw.row_norm, draw.seed, draw.layer)

    def callback(index: jax.Array) -> jax.Array:
        sizes = (heads, draw.features, head_size)
        shape = jax.ShapeDtypeStruct(sizes, jnp.float32)  # type: ignore[no-untyped-call]
        drawn: jax.Array = jax.pure_callback(
            lambda i: _constant(draw, int(i), heads, head_size), shape, index, vmap_method="sequential"
        )
        return drawn

    projection: jax.Array = lax.platform_dependent(index, cpu=kernel, default=callback)
    return projection


def current() -> int | jax.Array:
    """The index of the context."""
    return _current.get()

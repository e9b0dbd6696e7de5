# SPDX-License-Identifier: Apache-2.0
"""google-research's performer/fast_attention/jax as it computes, of JAX operations: its numbers, not its code.

For models that were trained with it, and for comparisons. Where its numbers are not what the paper describes:
signs of the QR decomposition are not corrected, so that FAVOR+ is biased; keys are shifted over the whole
sequence, so that the epsilon lets the future reach the past; denominators jump by twice the stabiliser where
they are small; masks and biases are ignored; redraws depend on the data. performer/references/jax holds the
same semantics in C++; the tests hold both to the same recordings.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from performer.jax import _composed


class ProjectionOptions(NamedTuple):
    """What a projection ``[rows, columns]`` is drawn as."""

    rows: int
    columns: int
    orthogonal: bool = True
    scaling: float = 0


def draw(options: ProjectionOptions, key: jax.Array) -> jax.Array:
    """``[rows, columns]`` float32: directions from a chain of split keys, lengths from the unsplit one."""
    if options.scaling not in (0, 1):
        raise ValueError(f"ortho_scaling must be 0 (lengths of Gaussian rows) or 1 (sqrt(D)), found {options.scaling}")
    gaussian = jax.random.normal(key, (options.rows, options.columns))
    if not options.orthogonal:
        return gaussian
    blocks = []
    for _ in range(-(-options.rows // options.columns)):
        key, own = jax.random.split(key)
        q, _ = jnp.linalg.qr(jax.random.normal(own, (options.columns, options.columns)))
        blocks.append(q.T)
    directions = jnp.concatenate(blocks)[: options.rows]
    if options.scaling == 1:
        return directions * math.sqrt(options.columns)
    lengths: jax.Array = jnp.linalg.norm(gaussian, axis=1, keepdims=True)
    return directions * lengths


def draw_of_seed(options: ProjectionOptions, seed: int | jax.Array) -> jax.Array:
    """The projection of a seed, which is 0 where there are no redraws."""
    return draw(options, jax.random.split(jax.random.PRNGKey(seed))[0])


def redraw_seed(query: jax.Array) -> jax.Array:
    """The seed of a redraw: ceil(sum(query) 1e7) in float32, saturating at the ends of int32."""
    seed: jax.Array = lax.convert_element_type(jnp.ceil(jnp.sum(lax.stop_gradient(query)) * 1e7), jnp.int32)
    return seed


def positive_features(x: jax.Array, projection: jax.Array, is_query: bool, epsilon: float) -> jax.Array:
    """``(exp(u - |x|^2/2 - shift) + epsilon) / sqrt(M)`` of x ``[N, T, D]`` scaled by D^(-1/4), u = W x.

    The shift is the largest u over the features of a query, over features and tokens for keys. Gradient goes
    through it; ties share it.
    """
    x = x * x.shape[-1] ** -0.25
    u = x @ projection.T
    shift = u.max((-1,) if is_query else (-2, -1), keepdims=True)
    return (jnp.exp(u - jnp.square(x).sum(-1, keepdims=True) / 2 - shift) + epsilon) / math.sqrt(projection.shape[0])


def trigonometric_features(x: jax.Array, projection: jax.Array) -> jax.Array:
    """``[cos u, sin u] exp(|x|^2/2 - max over tokens of |x|^2/2) / sqrt(M)``: 2M features."""
    x = x * x.shape[-1] ** -0.25
    u = x @ projection.T
    half = jnp.square(x).sum(-1, keepdims=True) / 2
    waves = jnp.concatenate([jnp.cos(u), jnp.sin(u)], -1) / math.sqrt(projection.shape[0])
    return waves * jnp.exp(half - half.max(-2, keepdims=True))


def generalized_features(
    x: jax.Array, projection: jax.Array | None, function: _composed.FunctionOfArrays, epsilon: float
) -> jax.Array:
    """``f(W x) + epsilon``, or ``f(x) + epsilon``: neither a scale nor 1/sqrt(M)."""
    return function(x if projection is None else x @ projection.T) + epsilon


def attend(
    phi_q: jax.Array, phi_k: jax.Array, value: jax.Array, causal: bool, renormalize: bool, stabilizer: float
) -> jax.Array:
    """Attention of features ``[N, T, M]``, ``[N, S, M]`` and values ``[N, S, E]`` -> ``[N, T, E]``.

    The denominator R becomes R + 2 stabilizer where |R| <= stabilizer.
    """
    numerator, denominator = _composed.sums_of_features(phi_q, phi_k, value, causal)
    if renormalize:
        small = (jnp.abs(denominator) <= stabilizer).astype(denominator.dtype)
        numerator = numerator / (denominator + 2 * stabilizer * small)[..., None]
    return numerator

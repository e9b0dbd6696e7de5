# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of TensorFlow Model Garden's KernelAttention (2.19), its faults included.

docs/kernel_attention.md lists the faults; performer/references/keras has the same semantics in C++, and the
tests hold both to the same recordings. Computed in double where the backend has it. Letters: B, T queries, S
keys, H heads, D head size, E value size, M features.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from keras import backend, ops

Tensor = Any

_GUARD = 1e-6  # added to every denominator
_RELU_EPSILON = 1e-3
_STABILIZER = 1e-6  # of expplus

TRANSFORMS = ("elu", "exp", "expmod", "expplus", "identity", "relu", "square")


class Window(NamedTuple):
    """Each chunk attends to itself, both ways, and to the chunks before it."""

    chunk_length: int = 1
    window_length: int = 3
    decay: float | None = None
    padding: str | None = None


class Options(NamedTuple):
    """Of one attention; ``window`` excludes ``is_short_seq``."""

    feature_transform: str = "exp"
    is_short_seq: bool = False
    scale: float = 1.0
    scale_by_length: bool = False
    window: Window | None = None


def wide() -> str:
    """The type that sums are computed in."""
    if backend.backend() == "jax":
        import jax

        return str(jax.dtypes.canonicalize_dtype("float64"))
    return "float64"


def _half_square(x: Tensor) -> Tensor:
    return ops.sum(ops.square(x), -1, keepdims=True) / 2


def _project(x: Tensor, w: Tensor) -> Tensor:
    return ops.einsum("bthd,md->bthm", x, w)


def _shifted_exp(u: Tensor) -> Tensor:
    if 0 in u.shape:  # no tokens: no maximum
        return ops.exp(u)
    return ops.exp(u - ops.amax(u, (1, 2, 3), keepdims=True))


def _expplus(x: Tensor, other: Tensor, is_query: bool, w: Tensor) -> Tensor:
    """Optimal positive random features (arXiv 2205.15317) as the layer has them: scaled twice, unmasked moments."""
    size, length = x.shape[-1], x.shape[1]
    normalizer = size**-0.25

    def mean_square(y: Tensor) -> Tensor:
        return ops.sum(ops.square(y), (1, 3), keepdims=True) * normalizer**2 / length

    product = ops.sum(ops.sum(x, 1, keepdims=True) * ops.sum(other, 1, keepdims=True), -1, keepdims=True)
    moment = mean_square(x) + mean_square(other) + product * normalizer**2 * 2 / length**2
    root = ops.sqrt(ops.square(2 * moment + size) + 8 * size * moment)
    rho = (root - 2 * moment - size) / (4 * moment)
    a = ops.stop_gradient((1 - 1 / rho) / 8)
    b, d = ops.sqrt(1 - 4 * a), ops.power(1 - 4 * a, size / 4)
    u = _project(normalizer * x, w)
    shift = b * (ops.amax(u, -1, keepdims=True) if is_query else ops.amax(u, (0, 1, 2, 3), keepdims=True))
    exponent = b * u - shift - _half_square(x) * normalizer**2 + a * ops.sum(ops.square(w), -1)
    return d * (ops.exp(exponent) + _STABILIZER) / math.sqrt(w.shape[0])


def transform(name: str, x: Tensor, other: Tensor, is_query: bool, projection: Tensor | None) -> Tensor:
    """Features ``[B, T, H, M]`` of x ``[B, T, H, D]``, which has its scale already.

    `other` are the keys of queries and the queries of keys; they matter to expplus alone.
    """
    if name == "expplus":
        return x if projection is None else _expplus(x, other, is_query, projection)
    u = x if projection is None else _project(x, projection)
    if name == "exp":
        features = ops.exp(-_half_square(x)) * _shifted_exp(u)
    elif name == "expmod":
        features = _shifted_exp(u) * math.exp(-0.5 * math.sqrt(x.shape[-1]))
    elif name == "relu":
        features = ops.where(u > 0, u, ops.zeros_like(u)) + _RELU_EPSILON
    elif name == "elu":
        features = ops.elu(u) + 1
    else:
        features = ops.square(u) if name == "square" else u
    return features if projection is None else features / math.sqrt(projection.shape[0])


def _moved(x: Tensor, by: int) -> Tensor:
    """Entries of dimension 1 moved `by` places on, zeros before them."""
    if by == 0:
        return x
    if by >= x.shape[1]:
        return ops.zeros_like(x)
    return ops.concatenate([ops.zeros_like(x[:, :by]), x[:, : x.shape[1] - by]], 1)


def rectangular_window_sum(x: Tensor, window: int) -> Tensor:
    """Sums of the last `window` entries of dimension 1, as differences of cumulative sums, which cancel."""
    # Not ops.cumsum and, above, not ops.matmul: on torch they turn float64 into float32.
    sums = ops.einsum("st,bt...->bs...", ops.cast(ops.tril(ops.ones((x.shape[1],) * 2)), x.dtype), x)
    return sums - _moved(sums, window)


def weighted_window_sum(x: Tensor, window: int, weights: list[float]) -> Tensor:
    """The same with weights, the last one for the entry itself."""
    total = ops.zeros_like(x)
    for i in range(window):
        total = total + weights[i] * _moved(x, window - 1 - i)
    return total


def _chunked(x: Tensor, window: Window) -> Tensor:
    missing = -x.shape[1] % window.chunk_length
    if window.padding in ("left", "right"):
        pad = (missing, 0) if window.padding == "left" else (0, missing)
        x = ops.pad(x, [(0, 0), pad, (0, 0), (0, 0)])
    elif missing:
        raise ValueError(
            f"{x.shape[1]} tokens cannot be cut into chunks of {window.chunk_length}: use causal_padding left or right"
        )
    return ops.reshape(x, (x.shape[0], -1, window.chunk_length, *x.shape[2:]))


def causal_windowed_attention(query: Tensor, key: Tensor, value: Tensor, window: Window) -> Tensor:
    """Of features ``[B, T, H, M]`` and values ``[B, T, H, E]``; left-padded outputs are not moved back."""
    q, k, v = (_chunked(x, window) for x in (query, key, value))
    kv, k_sum = ops.einsum("btchd,btcho->bthdo", k, v), ops.sum(k, 2, keepdims=True)
    if window.decay is not None:
        weights = [float(window.decay) ** age for age in reversed(range(window.window_length))]
        kv, k_sum = (weighted_window_sum(x, window.window_length, weights) for x in (kv, k_sum))
    else:
        kv, k_sum = (rectangular_window_sum(x, window.window_length) for x in (kv, k_sum))
    denominator = ops.einsum("btchd,bthd->btch", q, k_sum[:, :, 0]) + _GUARD
    out = ops.einsum("btchd,bthdo->btcho", q, kv) / denominator[..., None]
    out = ops.reshape(out, (out.shape[0], -1, *out.shape[3:]))
    return out[:, : value.shape[1]]


def _streamed(q: Tensor, k: Tensor, v: Tensor, window: Window, cache: Any) -> Tensor:
    if window.decay is None or not 0 <= window.decay <= 1:
        raise ValueError(f"a cache needs causal_window_decay from 0 to 1, found {window.decay}")
    kv, k_sum = ops.einsum("bthd,btho->bhod", k, v), ops.sum(k, 1)
    if cache.kv is not None:
        kv = kv + window.decay * ops.cast(cache.kv, kv.dtype)
        k_sum = k_sum + window.decay * ops.cast(cache.k_sum, k_sum.dtype)
    cache.kv, cache.k_sum = kv, k_sum
    denominator = ops.einsum("bthd,bhd->bth", q, k_sum) + _GUARD
    return ops.einsum("bthd,bhod->btho", q, kv) / denominator[..., None]


def compute_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    options: Options,
    projection: Tensor | None = None,
    mask: Tensor | None = None,
    cache: Any = None,
) -> Tensor:
    """query ``[B, T, H, D]``, key ``[B, S, H, D]``, value ``[B, S, H, E]`` -> ``[B, T, H, E]``.

    mask ``[B, S]`` multiplies key features; projection ``[M, D]``.
    """
    given = value.dtype
    q, k, v = (ops.cast(x, wide()) for x in (query, key, value))
    w = None if projection is None else ops.cast(projection, wide())
    weights = None if mask is None else ops.cast(mask, wide())
    if options.scale_by_length:
        if weights is None:
            raise ValueError("scale_by_length needs an attention_mask")
        scale = ops.log(ops.sum(weights, -1)) * options.scale / math.log(512.0)
        scale = ops.reshape(scale, (-1, 1, 1, 1))
        root = ops.sqrt(scale)
    else:
        scale, root = options.scale, math.sqrt(options.scale)
    q, k = (q * scale, k) if options.is_short_seq else (q * root, k * root)
    phi_k = transform(options.feature_transform, k, q, False, w)
    phi_q = transform(options.feature_transform, q, k, True, w)
    if weights is not None:
        phi_k = phi_k * weights[..., None, None]
    if options.is_short_seq:
        scores = ops.softmax(ops.einsum("btnh,bsnh->btsn", phi_q, phi_k), 2)
        out = ops.einsum("btsn,bsnh->btnh", scores, v)
    elif options.window is None:
        kv = ops.einsum("bsnh,bsnd->bndh", phi_k, v)
        denominator = ops.einsum("btnh,bnh->btn", phi_q, ops.sum(phi_k, 1)) + _GUARD
        out = ops.einsum("btnh,bndh->btnd", phi_q, kv) / denominator[..., None]
    elif cache is not None:
        out = _streamed(phi_q, phi_k, v, options.window, cache)
    else:
        out = causal_windowed_attention(phi_q, phi_k, v, options.window)
    return ops.cast(out, given)

# SPDX-License-Identifier: Apache-2.0
"""Attention of JAX operations: for devices without a kernel, and for what the kernels do not do.

The same sums as the kernels', differentiable in everything. Arrays have their heads in front here:
queries [B, H, T, D], features [B, H, T, M].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from performer.jax import _ffi

#: Stands for minus infinity as a log-scale: differences of two of them are 0 (performer/kernels/favor.h).
EMPTY = -1e30
#: Tokens of a causal chunk; a power of two.
CHUNK = 128
#: Denominators of trigonometric features below this share of the sum of the keys' weights are replaced by it.
TRIGONOMETRIC_FLOOR = 1e-4

FunctionOfArrays = Callable[[jax.Array], jax.Array]

#: The element-wise functions by their names (performer/kernels/function.h).
FUNCTIONS: dict[str, FunctionOfArrays] = {
    "relu": jax.nn.relu,
    "elu+1": lambda u: jnp.where(u > 0, u, 0) + jnp.exp(jnp.minimum(u, 0)),
    "square": jnp.square,
    # The gradient at 0 is 0, as in the kernels; that of jnp.abs would be 1.
    "abs": lambda u: jnp.where(u > 0, u, jnp.where(u < 0, -u, 0)),
    "requ": lambda u: jnp.square(jax.nn.relu(u)),
    "gelu": lambda u: jax.nn.gelu(u, approximate=False),
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "cos": jnp.cos,
    "sin": jnp.sin,
    "identity": lambda u: u,
    "exp": jnp.exp,
    "leaky-relu": lambda u: jnp.where(u > 0, u, 0.01 * u),
}


class _Part(NamedTuple):
    """What some keys give to rows: the row sums are exp(shift) * (numerator, denominator)."""

    numerator: jax.Array  # [..., T, E]
    denominator: jax.Array  # [..., T]
    shift: jax.Array  # [..., T]


class _Sums(NamedTuple):
    """The state [B, H, M, E], [B, H, M], [B, H, M]."""

    kv: jax.Array
    key_sum: jax.Array
    log_scale: jax.Array


def _fixed(x: jax.Array) -> jax.Array:
    """Shifts cancel in what is computed with them, so that no gradient has to go through them."""
    return lax.stop_gradient(x)


def _merge(a: _Part, b: _Part) -> _Part:
    shift = jnp.maximum(a.shift, b.shift)
    of_a, of_b = jnp.exp(a.shift - shift), jnp.exp(b.shift - shift)
    return _Part(
        a.numerator * of_a[..., None] + b.numerator * of_b[..., None],
        a.denominator * of_a + b.denominator * of_b,
        shift,
    )


class _Exponential:
    """phi = exp(u), sums with a log-scale for each feature."""

    @staticmethod
    def absorb(sums: _Sums, u: jax.Array, value: jax.Array) -> _Sums:
        raised = _fixed(jnp.maximum(sums.log_scale, jnp.max(u, axis=-2, initial=EMPTY)))
        decay = jnp.exp(sums.log_scale - raised)
        weight = jnp.exp(u - raised[..., None, :])
        return _Sums(
            sums.kv * decay[..., None] + jnp.einsum("...tm,...te->...me", weight, value),
            sums.key_sum * decay + weight.sum(-2),
            raised,
        )

    @staticmethod
    def read(u: jax.Array, sums: _Sums) -> _Part:
        weight = u + sums.log_scale[..., None, :]
        shift = _fixed(weight.max(-1))
        weight = jnp.exp(weight - shift[..., None])
        return _Part(
            jnp.einsum("...tm,...me->...te", weight, sums.kv),
            jnp.einsum("...tm,...m->...t", weight, sums.key_sum),
            shift,
        )

    @classmethod
    def read_causal(cls, q: jax.Array, k: jax.Array, value: jax.Array) -> _Part:
        """The rows of one chunk, of a power of two tokens, and its own keys.

        The chunk is halved again and again, and the second half of each block reads all of its first half, so
        that every shift is taken over keys that all of its rows see.
        """
        own = q + k
        shift = _fixed(jnp.maximum(own.max(-1), EMPTY))
        denominator = jnp.exp(own - shift[..., None]).sum(-1)
        total = _Part(denominator[..., None] * value, denominator, shift)
        size = 1
        while size < q.shape[-2]:
            total = _merge(total, cls._second_halves(q, k, value, size))
            size *= 2
        return total

    @staticmethod
    def _second_halves(q: jax.Array, k: jax.Array, value: jax.Array, size: int) -> _Part:
        def half(x: jax.Array, which: int) -> jax.Array:
            return x.reshape(*x.shape[:-2], -1, 2, size, x.shape[-1])[..., which, :, :]

        keys = half(k, 0)
        scale = _fixed(jnp.maximum(keys.max(-2, keepdims=True), EMPTY))
        of_queries = half(q, 1) + scale
        shift = _fixed(of_queries.max(-1))
        weights = jnp.einsum("...tm,...sm->...ts", jnp.exp(of_queries - shift[..., None]), jnp.exp(keys - scale))
        part = _Part(jnp.einsum("...ts,...se->...te", weights, half(value, 0)), weights.sum(-1), shift)

        def full(x: jax.Array, nothing: float, tail: int) -> jax.Array:
            """Rows of second halves with `nothing` in the first ones; `tail` dimensions follow the tokens."""
            axis = x.ndim - 1 - tail
            both = jnp.stack([jnp.full_like(x, nothing), x], axis)
            return both.reshape(*x.shape[: axis - 1], -1, *x.shape[axis + 1 :])

        return _Part(full(part.numerator, 0, 1), full(part.denominator, 0, 0), full(part.shift, EMPTY, 0))


class _Elementwise:
    """phi = g(u) + epsilon, which is applied before; sums without scales, shifts that are all 0."""

    @staticmethod
    def absorb(sums: _Sums, phi: jax.Array, value: jax.Array) -> _Sums:
        return _Sums(sums.kv + jnp.einsum("...tm,...te->...me", phi, value), sums.key_sum + phi.sum(-2), sums.log_scale)

    @staticmethod
    def read(phi: jax.Array, sums: _Sums) -> _Part:
        denominator = jnp.einsum("...tm,...m->...t", phi, sums.key_sum)
        return _Part(jnp.einsum("...tm,...me->...te", phi, sums.kv), denominator, jnp.zeros_like(denominator))

    @staticmethod
    def read_causal(q: jax.Array, k: jax.Array, value: jax.Array) -> _Part:
        weights = jnp.tril(jnp.einsum("...tm,...sm->...ts", q, k))
        denominator = weights.sum(-1)
        return _Part(jnp.einsum("...ts,...se->...te", weights, value), denominator, jnp.zeros_like(denominator))


def _heads_first(x: jax.Array, dtype: np.dtype[Any]) -> jax.Array:
    return jnp.moveaxis(x, 2, 1).astype(dtype)


def _scaled(x: jax.Array, scale: float, dtype: np.dtype[Any]) -> jax.Array:
    return _heads_first(x, dtype) * jnp.asarray(scale, dtype)


def _project(x: jax.Array, arrays: _ffi.Arrays) -> jax.Array:
    """u of rows [B, H, T, D], without the term of the norm."""
    u = jnp.einsum("bhtd,bhmd->bhtm", x, _spread(arrays.projection, x)) if arrays.projection.size else x
    return u + arrays.offset.astype(x.dtype)[:, :, None, :] if arrays.offset.size else u


def _spread(constant: jax.Array, x: jax.Array) -> jax.Array:
    """A constant [B or 1, H or 1, ...] for each sequence and head."""
    return jnp.broadcast_to(constant.astype(x.dtype), (*x.shape[:2], *constant.shape[2:]))


def _start(arrays: _ffi.Arrays, dtype: np.dtype[Any], exponential: bool) -> _Sums:
    if arrays.stateful:
        scale = arrays.initial_log_scale
        return _Sums(arrays.initial_kv, arrays.initial_key_sum, _fixed(scale) if exponential else jnp.zeros_like(scale))
    batch, _, heads, _ = arrays.query.shape
    shape = (batch, heads, arrays.features)
    return _Sums(
        jnp.zeros((*shape, arrays.value.shape[-1]), dtype),
        jnp.zeros(shape, dtype),
        jnp.full(shape, EMPTY if exponential else 0.0, dtype),
    )


def _causal(
    family: type[_Exponential] | type[_Elementwise],
    sums: _Sums,
    q: jax.Array,
    k: jax.Array,
    value: jax.Array,
    masked: float,
) -> tuple[_Part, _Sums]:
    """All rows of a causal attention, chunk by chunk; `masked` is what a key that does not exist has as u."""
    tokens = q.shape[-2]
    chunk = 1
    while chunk < min(tokens, CHUNK):
        chunk *= 2
    missing = -tokens % chunk

    def chunked(x: jax.Array, fill: float) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, 0), (0, missing), (0, 0)], constant_values=fill)
        return jnp.moveaxis(x.reshape(*x.shape[:2], -1, chunk, x.shape[-1]), 2, 0)

    @jax.checkpoint
    def step(sums: _Sums, rows: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[_Sums, _Part]:
        q, k, value = rows
        part = _merge(family.read(q, sums), family.read_causal(q, k, value))
        return family.absorb(sums, k, value), part

    sums, parts = lax.scan(step, sums, (chunked(q, 0), chunked(k, masked), chunked(value, 0)))

    def joined(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x, 0, 2)
        return x.reshape(*x.shape[:2], -1, *x.shape[4:])[:, :, :tokens]

    return _Part(*(joined(x) for x in parts)), sums


def sums_of(arrays: _ffi.Arrays, mapping: _ffi.Map, causal: bool) -> tuple[_Part, _Sums]:
    """Numerators and denominators of all rows, and the sums after all keys."""
    dtype = _ffi.sum_type(arrays.query)
    exponential = mapping.family == "exponential"
    x_k = _scaled(arrays.key, mapping.scale, dtype)
    q, k = _project(_scaled(arrays.query, mapping.scale, dtype), arrays), _project(x_k, arrays)
    value = _heads_first(arrays.value, dtype)
    if exponential:
        k = k - mapping.norm_weight * jnp.square(x_k).sum(-1, keepdims=True)
        k = jnp.maximum(k, EMPTY)
    else:
        function = FUNCTIONS[mapping.function] if isinstance(mapping.function, str) else mapping.function
        q, k = function(q) + mapping.epsilon, function(k) + mapping.epsilon
    masked = -jnp.inf if exponential else 0.0
    if arrays.key_mask.size:
        k = jnp.where(arrays.key_mask[:, None, :, None], k, masked)
    family = _Exponential if exponential else _Elementwise
    sums = _start(arrays, dtype, exponential)
    if causal and q.shape[-2] > 0:
        return _causal(family, sums, q, k, value, masked)
    sums = family.absorb(sums, k, value)
    return family.read(q, sums), sums


def forward(arrays: _ffi.Arrays, mapping: _ffi.Map, causal: bool, return_state: bool) -> _ffi.Results:
    """The forward pass as the kernels define it (performer/kernels/favor.h)."""
    part, sums = sums_of(arrays, mapping, causal)
    exponential = mapping.family == "exponential"
    if exponential:
        tiny = float(np.finfo(np.dtype(part.denominator.dtype)).tiny)
        empty = (part.shift < EMPTY / 2) | ~(part.denominator >= tiny)
    else:
        empty = part.denominator == 0
    if arrays.query_mask.size:
        empty = empty | ~arrays.query_mask[:, None, :]
    denominator = jnp.where(empty, 1, part.denominator)
    out = jnp.where(empty[..., None], 0, part.numerator / denominator[..., None])
    if exponential:
        normalizer = jnp.where(empty, jnp.inf, part.shift + jnp.log(denominator))
    else:
        normalizer = jnp.where(empty, 0, part.denominator)
    if not return_state:
        sums = _Sums(*(jnp.zeros((0,) * x.ndim, x.dtype) for x in sums))
    return _ffi.Results(jnp.moveaxis(out, 1, 2).astype(arrays.value.dtype), jnp.moveaxis(normalizer, 1, 2), *sums)


def sums_of_features(phi_q: jax.Array, phi_k: jax.Array, value: jax.Array, causal: bool) -> tuple[jax.Array, jax.Array]:
    """Numerators [N, T, E] and denominators [N, T] of given features [N, T, M], [N, S, M], values [N, S, E]."""
    q, k, v = phi_q[:, None], phi_k[:, None], value[:, None]
    sums = _Sums(
        jnp.zeros((*q.shape[:2], q.shape[-1], v.shape[-1]), q.dtype),
        jnp.zeros((*q.shape[:2], q.shape[-1]), q.dtype),
        jnp.zeros((*q.shape[:2], q.shape[-1]), q.dtype),
    )
    if causal and q.shape[-2] > 0:
        part, _ = _causal(_Elementwise, sums, q, k, v, 0.0)
    else:
        part = _Elementwise.read(q, _Elementwise.absorb(sums, k, v))
    return part.numerator[:, 0], part.denominator[:, 0]


def unnormalized(arrays: _ffi.Arrays, mapping: _ffi.Map, causal: bool) -> jax.Array:
    """sum_j (phi(q_i).phi(k_j)) v_j, [B, T, H, E], with phi = exp(u) / sqrt(M) in the exponential family."""
    part, _ = sums_of(arrays, mapping, causal)
    out = part.numerator
    if mapping.family == "exponential":
        x = _scaled(arrays.query, mapping.scale, out.dtype)
        rest = part.shift - mapping.norm_weight * jnp.square(x).sum(-1)
        out = out * (jnp.exp(rest) / arrays.features)[..., None]
    if arrays.query_mask.size:
        out = jnp.where(arrays.query_mask[:, None, :, None], out, 0)
    return jnp.moveaxis(out, 1, 2).astype(arrays.value.dtype)


def trigonometric(arrays: _ffi.Arrays, scale: float, causal: bool, renormalize: bool) -> jax.Array:
    """Attention of [cos u, sin u] exp(|x|^2/2): signed features, with the guard of performer/ops/trigonometric.h.

    Causal attention takes memory of T x T here.
    """
    dtype = _ffi.sum_type(arrays.query)
    x_q, x_k = _scaled(arrays.query, scale, dtype), _scaled(arrays.key, scale, dtype)
    value = _heads_first(arrays.value, dtype)

    def waves(x: jax.Array) -> jax.Array:
        u = _project(x, arrays)
        return jnp.concatenate([jnp.cos(u), jnp.sin(u)], -1)

    phi_q, phi_k = waves(x_q), waves(x_k)
    exponent = jnp.square(x_k).sum(-1) / 2
    if arrays.key_mask.size:
        exponent = jnp.where(arrays.key_mask[:, None, :], exponent, EMPTY)
    if causal:
        shift = jnp.maximum(_fixed(lax.cummax(exponent, exponent.ndim - 1)), EMPTY / 2)
        seen = jnp.tril(jnp.ones((exponent.shape[-1],) * 2, bool))
        weight = jnp.exp(jnp.where(seen, exponent[..., None, :] - shift[..., :, None], EMPTY))
        matrix = jnp.einsum("bhtm,bhsm->bhts", phi_q, phi_k) * weight
        numerator, denominator, total = jnp.einsum("bhts,bhse->bhte", matrix, value), matrix.sum(-1), weight.sum(-1)
    else:
        shift = jnp.maximum(_fixed(exponent.max(-1, keepdims=True, initial=EMPTY)), EMPTY / 2)
        weight = jnp.exp(exponent - shift)
        weighted = phi_k * weight[..., None]
        numerator = jnp.einsum("bhtm,bhme->bhte", phi_q, jnp.einsum("bhsm,bhse->bhme", weighted, value))
        denominator = jnp.einsum("bhtm,bhm->bht", phi_q, weighted.sum(-2))
        total = weight.sum(-1, keepdims=True)
    frequencies = arrays.projection.shape[2]
    if renormalize:
        floor = jnp.broadcast_to(total * (TRIGONOMETRIC_FLOOR * frequencies), denominator.shape)
        safe = jnp.where(jnp.abs(denominator) < floor, jnp.where(denominator < 0, -floor, floor), denominator)
        out = numerator / jnp.where(total > 0, safe, 1)[..., None]
    else:
        norm = jnp.square(x_q).sum(-1) / 2
        out = numerator * (jnp.exp(jnp.where(total > 0, norm + shift, EMPTY)) / frequencies)[..., None]
    if arrays.query_mask.size:
        out = jnp.where(arrays.query_mask[:, None, :, None], out, 0)
    return jnp.moveaxis(out, 1, 2).astype(arrays.value.dtype)

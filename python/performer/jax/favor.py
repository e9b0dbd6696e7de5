# SPDX-License-Identifier: Apache-2.0
"""FAVOR attention as a JAX function: the kernels of this project, with their gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

from performer.jax import _composed, _ffi

Implementation = Literal["auto", "kernel", "composed"]
Function = str | Callable[[jax.Array], jax.Array]

_TYPES = (jnp.float32, jnp.bfloat16, jnp.float16, jnp.float64)


class State(NamedTuple):
    """What linear attention keeps of the keys and values that it has seen.

    The true sums are ``exp(log_scale) * kv`` and ``exp(log_scale) * key_sum`` (docs/architecture.md). A state
    from one call continues in the next: a sequence may come in parts of any length.

    Attributes:
        kv: ``[B, H, M, E]`` float32, the sums of phi(k) v^T.
        key_sum: ``[B, H, M]``, the sums of phi(k).
        log_scale: ``[B, H, M]``; zeros in the element-wise family. A representation: it has no gradient.
    """

    kv: jax.Array
    key_sum: jax.Array
    log_scale: jax.Array


class _Statics(NamedTuple):
    mapping: _ffi.Map
    causal: bool
    chunk: int
    return_state: bool
    implementation: Implementation


def _choose(
    statics: _Statics, kernel: Callable[..., _Tuple], composed: Callable[..., _Tuple], *arguments: jax.Array
) -> _Tuple:
    """The kernel on CPUs, and the composed operations on every other device."""
    if statics.implementation == "composed":
        return composed(*arguments)
    if statics.implementation == "kernel":
        return kernel(*arguments)
    chosen: _Tuple = lax.platform_dependent(*arguments, cpu=kernel, default=composed)
    return chosen


_Tuple = tuple[jax.Array, ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(statics: _Statics, arrays: _ffi.Arrays) -> _ffi.Results:
    def kernel(*given: jax.Array) -> _Tuple:
        return tuple(
            _ffi.forward(_ffi.Arrays(*given), statics.mapping, statics.causal, statics.chunk, statics.return_state)
        )

    def composed(*given: jax.Array) -> _Tuple:
        return tuple(_composed.forward(_ffi.Arrays(*given), statics.mapping, statics.causal, statics.return_state))

    return _ffi.Results(*_choose(statics, kernel, composed, *arrays))


class _Residuals(NamedTuple):
    arrays: _ffi.Arrays
    results: _ffi.Results
    # Empty, or a number when the projection or the offset has a gradient, which the kernels do not compute.
    constants_vary: tuple[()] | tuple[jax.Array]


def _forward_rule(statics: _Statics, primals: Any) -> tuple[_ffi.Results, _Residuals]:
    arrays = _ffi.Arrays(*(p.value for p in primals))
    results = _attend(statics, arrays)
    vary = primals.projection.perturbed or primals.offset.perturbed
    return results, _Residuals(arrays, results, (jnp.zeros(()),) if vary else ())


def _instantiated(x: jax.Array | SymbolicZero) -> jax.Array:
    return jnp.zeros(x.shape, x.dtype) if isinstance(x, SymbolicZero) else x


def _composed_outputs(statics: _Statics, arrays: _ffi.Arrays) -> _Tuple:
    results = _composed.forward(arrays, statics.mapping, statics.causal, statics.return_state)
    return results.out, results.kv, results.key_sum


def _backward_rule(statics: _Statics, residuals: _Residuals, gradients: _ffi.Results) -> tuple[_ffi.Arrays]:
    arrays, results = residuals.arrays, residuals.results
    grad_out, grad_kv, grad_key_sum = (_instantiated(g) for g in (gradients.out, gradients.kv, gradients.key_sum))

    def kernel(out: jax.Array, kv: jax.Array, key_sum: jax.Array) -> _Tuple:
        return _ffi.backward(arrays, results, out, kv, key_sum, statics.mapping, statics.causal, statics.chunk)

    def composed(out: jax.Array, kv: jax.Array, key_sum: jax.Array) -> _Tuple:
        def of_inputs(*x: jax.Array) -> _Tuple:
            names = ("query", "key", "value", "initial_kv", "initial_key_sum")
            return _composed_outputs(statics, arrays._replace(**dict(zip(names, x, strict=True))))

        inputs = (arrays.query, arrays.key, arrays.value, arrays.initial_kv, arrays.initial_key_sum)
        found: _Tuple = jax.vjp(of_inputs, *inputs)[1]((out, kv, key_sum))
        return found

    query, key, value, initial_kv, initial_key_sum = _choose(statics, kernel, composed, grad_out, grad_kv, grad_key_sum)
    projection = offset = None
    if residuals.constants_vary:

        def of_constants(projection: jax.Array, offset: jax.Array) -> _Tuple:
            return _composed_outputs(statics, arrays._replace(projection=projection, offset=offset))

        pull = jax.vjp(of_constants, arrays.projection, arrays.offset)[1]
        projection, offset = pull((grad_out, grad_kv, grad_key_sum))
    nothing: jax.Array = None  # type: ignore[assignment]  # a symbolic zero
    return (
        _ffi.Arrays(
            query,
            key,
            value,
            nothing if projection is None else projection,
            nothing if offset is None else offset,
            nothing,
            nothing,
            initial_kv,
            initial_key_sum,
            nothing,
        ),
    )


_attend.defvjp(_forward_rule, _backward_rule, symbolic_zeros=True)
_attend_compiled = jax.jit(_attend, static_argnums=0)


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(f"favor_attention: {message}")


def _checked_constant(x: jax.Array | None, name: str, query: jax.Array, rank: int, tail: tuple[int, ...]) -> jax.Array:
    """A constant [B or 1, H or 1, ...] in float32; leading dimensions may be left out."""
    if x is None:
        return jnp.zeros((1,) * 2 + (0,) * (rank - 2), jnp.float32)
    x = jnp.asarray(x, jnp.float32)
    letters = ", ".join(["M", "D"][: rank - 2])
    expected = f"{name} must be [{letters}], [1 or H, {letters}] or [1 or B, 1 or H, {letters}]"
    _check(rank - 2 <= x.ndim <= rank, f"{expected}, found {x.shape}")
    x = x.reshape((1,) * (rank - x.ndim) + x.shape)
    batch, _, heads, size = query.shape
    fits = x.shape[0] in (1, batch) and x.shape[1] in (1, heads) and x.shape[2] > 0
    fits = fits and (rank == 3 or x.shape[3] == size) and (not tail or x.shape[2:] == tail)
    _check(fits, f"{expected} with B {batch}, H {heads}, D {size}" + f", found {x.shape}")
    return x


def _checked_mask(x: jax.Array | None, name: str, shape: tuple[int, int]) -> jax.Array:
    if x is None:
        return jnp.zeros((shape[0], 0), jnp.bool_)
    x = jnp.asarray(x)
    _check(
        x.dtype == jnp.bool_ and x.shape == shape,
        f"{name} must be bool {list(shape)}, true keeps; found {x.dtype} {list(x.shape)}",
    )
    return x


def _checked_state(state: State | None, like: tuple[int, ...], dtype: np.dtype[Any]) -> State:
    if state is None:
        return State(*(jnp.zeros((0,) * n, dtype) for n in (4, 3, 3)))
    found = tuple(jnp.shape(x) for x in state)
    _check(
        found == (like, like[:3], like[:3]),
        f"the state must have kv {list(like)} and key_sum and log_scale {list(like[:3])}, found "
        + ", ".join(str(list(s)) for s in found),
    )
    return State(*(jnp.asarray(x, dtype) for x in state))


def _check_rows(query: jax.Array, key: jax.Array, value: jax.Array, causal: bool) -> None:
    shapes = f"found {query.shape}, {key.shape} and {value.shape}"
    _check(query.ndim == key.ndim == value.ndim == 4, f"query, key and value need 4 dimensions, {shapes}")
    fits = query.shape[0] == key.shape[0] and query.shape[2:] == key.shape[2:] and key.shape[:3] == value.shape[:3]
    _check(fits, f"query [B, T, H, D], key [B, S, H, D] and value [B, S, H, E] must agree, {shapes}")
    _check(
        not causal or query.shape[1] == key.shape[1],
        f"causal attention needs as many keys as queries, {shapes}; continue a sequence by its state instead",
    )
    for name, x in (("query", query), ("key", key), ("value", value)):
        _check(x.dtype in _TYPES, f"{name} must be float32, bfloat16, float16 or float64, found {x.dtype}")
    doubles = [x.dtype == jnp.float64 for x in (query, key, value)]
    _check(
        all(doubles) or not any(doubles),
        f"query, key and value must all be float64 or none, found {query.dtype}, {key.dtype}, {value.dtype}",
    )


def _mapping(
    family: str, function: Function, scale: float | None, norm_weight: float, epsilon: float, head_size: int
) -> _ffi.Map:
    _check(family in ("exponential", "elementwise"), f"family must be exponential or elementwise, found {family!r}")
    if isinstance(function, str):
        _check(
            function in _composed.FUNCTIONS,
            f"function {function!r} is unknown; known: {', '.join(_composed.FUNCTIONS)}, or a function of your own",
        )
    if scale is None:
        scale = head_size**-0.25 if family == "exponential" else 1.0
    return _ffi.Map(family, function, float(scale), float(norm_weight), float(epsilon))


def favor_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    projection: jax.Array | None = None,
    offset: jax.Array | None = None,
    causal: bool = False,
    key_mask: jax.Array | None = None,
    query_mask: jax.Array | None = None,
    family: Literal["exponential", "elementwise"] = "exponential",
    function: Function = "relu",
    scale: float | None = None,
    norm_weight: float = 0.5,
    epsilon: float = 0.0,
    state: State | None = None,
    return_state: bool = False,
    chunk: int = 0,
    implementation: Implementation = "auto",
) -> jax.Array | tuple[jax.Array, State]:
    """Linear attention of one feature map (FAVOR+; Performers, arXiv 2009.14794, section 2).

    ``out_i = sum_j (phi(q_i).phi(k_j)) v_j / sum_j (phi(q_i).phi(k_j))``, over j <= i when causal, with
    x' = scale x and

    - exponential family: ``phi_f(x) = exp(P_f.x' + c_f - norm_weight |x'|^2)``; with random projections P an
      unbiased estimate of exp(q'.k');
    - element-wise family: ``phi_f(x) = function(P_f.x' + c_f) + epsilon``.

    Sums are kept in float32 (float64 of float64 inputs) with a log-scale for each feature, so that inputs of
    any size are safe and a prefix's outputs do not depend on what follows it. Works under jit, grad, vmap,
    remat and scan, with gradients by the backward kernel. Gradients of projection and offset, where they are
    asked for, are computed by JAX operations. Forward-mode and second derivatives need
    ``implementation="composed"``.

    Args:
        query: ``[B, T, H, D]``, float32, bfloat16, float16, or float64 (slow: the definition in plain loops).
        key: ``[B, S, H, D]``; S = T when causal.
        value: ``[B, S, H, E]``.
        projection: P, ``[M, D]``, ``[1 or H, M, D]`` or ``[1 or B, 1 or H, M, D]``, see
            :func:`performer.jax.draw_projection`. None: the features are those of x' itself, M = D.
        offset: c, ``[M]``, ``[1 or H, M]`` or ``[1 or B, 1 or H, M]``. None: 0.
        causal: whether a query sees only keys up to its own place.
        key_mask: ``[B, S]`` bool; false: the key does not exist.
        query_mask: ``[B, T]`` bool; rows of false are zero.
        family, function, norm_weight, epsilon: the feature map. ``function`` is a name of
            ``performer.jax.FUNCTIONS`` or a function of arrays, which JAX operations then compute.
        scale: None: D^(-1/4) in the exponential family (the softmax's 1/sqrt(D)), 1 in the other.
        state: where a former call ended. None: nothing was seen before.
        return_state: whether to return the state after the last key, too.
        chunk: tokens handled at a time by a causal kernel, up to 256; 0: its choice. Changes rounding only.
        implementation: ``kernel`` (CPU), ``composed`` of JAX operations (every device, differentiable any
            number of times), or ``auto``: the kernel on CPUs.

    Returns:
        ``[B, T, H, E]`` in the type of value, and the :class:`State` if it was asked for.

    Raises:
        ValueError: shapes, types or names that do not fit; the message names them.
        ImportError: the shared library with the kernels is missing.
    """
    query, key, value = jnp.asarray(query), jnp.asarray(key), jnp.asarray(value)
    _check_rows(query, key, value, causal)
    _check(implementation in ("auto", "kernel", "composed"), f"implementation {implementation!r} is unknown")
    _check(0 <= chunk <= 256, f"chunk must be from 0 to 256, found {chunk}")
    mapping = _mapping(family, function, scale, norm_weight, epsilon, query.shape[-1])
    if callable(function) and family == "elementwise":
        implementation = "composed"
    batch, tokens, heads, size = query.shape
    p = _checked_constant(projection, "projection", query, 4, ())
    features = p.shape[2] or size
    c = _checked_constant(offset, "offset", query, 3, (features,))
    initial = _checked_state(state, (batch, heads, features, value.shape[-1]), _ffi.sum_type(query))
    arrays = _ffi.Arrays(
        query,
        key,
        value,
        p,
        c,
        _checked_mask(key_mask, "key_mask", (batch, key.shape[1])),
        _checked_mask(query_mask, "query_mask", (batch, tokens)),
        *initial,
    )
    statics = _Statics(mapping, causal, chunk, return_state, implementation)
    if implementation == "composed":
        results = _composed.forward(arrays, mapping, causal, return_state)
    else:
        results = _attend_compiled(statics, arrays)
    if not return_state:
        return results.out
    return results.out, State(results.kv, results.key_sum, lax.stop_gradient(results.log_scale))

# SPDX-License-Identifier: Apache-2.0
"""Linear attention for Keras: by the kernels where the backend reaches them, else of Keras operations.

One feature map and one state, as performer/kernels/favor.h defines them. Letters: B, T, S, H, D, E as there,
M features.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from typing import Any, NamedTuple

from keras import backend, ops

Tensor = Any

EMPTY = -1e30  # a log-scale that stands for minus infinity
_CHUNK = 64  # tokens of a causal chunk; a power of two


class FeatureMap(NamedTuple):
    """``exp(P.x' + c - norm_weight |x'|^2)``, or ``function(P.x' + c) + epsilon``, of x' = scale x.

    projection is ``[1 or B, 1 or H, M, D]`` or None, offset ``[1 or B, 1 or H, M]`` or None.
    """

    family: str
    function: str = "relu"
    scale: float = 1.0
    norm_weight: float = 0.5
    epsilon: float = 0.0
    projection: Tensor | None = None
    offset: Tensor | None = None

    @property
    def exponential(self) -> bool:
        return self.family == "exponential"


class State(NamedTuple):
    """Sums of what was seen: kv ``[B, H, M, E]``, key_sum and log_scale ``[B, H, M]``."""

    kv: Tensor
    key_sum: Tensor
    log_scale: Tensor


class _Part(NamedTuple):
    numerator: Tensor
    denominator: Tensor
    shift: Tensor


def merge_states(a: State, b: State, exponential: bool) -> State:
    """The state of what either has seen."""
    if not exponential:
        return State(a.kv + b.kv, a.key_sum + b.key_sum, a.log_scale)
    scale = ops.maximum(a.log_scale, b.log_scale)
    of_a, of_b = ops.exp(a.log_scale - scale), ops.exp(b.log_scale - scale)
    return State(a.kv * of_a[..., None] + b.kv * of_b[..., None], a.key_sum * of_a + b.key_sum * of_b, scale)


def _fixed(x: Tensor) -> Tensor:
    return ops.stop_gradient(x)


def _merge(a: _Part, b: _Part) -> _Part:
    shift = ops.maximum(a.shift, b.shift)
    of_a, of_b = ops.exp(a.shift - shift), ops.exp(b.shift - shift)
    return _Part(
        a.numerator * of_a[..., None] + b.numerator * of_b[..., None],
        a.denominator * of_a + b.denominator * of_b,
        shift,
    )


_FUNCTIONS = {
    "relu": lambda u: ops.where(u > 0, u, ops.zeros_like(u)),
    "elu+1": lambda u: ops.elu(u) + 1,
    "square": ops.square,
    "identity": lambda u: u,
}


def _arguments(x: Tensor, features: FeatureMap, key: bool) -> Tensor:
    """u ``[B, H, T, M]`` of ``[B, T, H, D]``, or the features themselves in the element-wise family."""
    x = ops.transpose(ops.cast(x, _sum_type(x)), (0, 2, 1, 3)) * features.scale
    u = x
    if features.projection is not None:
        p = ops.broadcast_to(ops.cast(features.projection, x.dtype), (*x.shape[:2], *features.projection.shape[2:]))
        u = ops.einsum("bhtd,bhmd->bhtm", x, p)
    if features.offset is not None:
        u = u + ops.cast(features.offset, x.dtype)[:, :, None, :]
    if not features.exponential:
        return _FUNCTIONS[features.function](u) + features.epsilon
    return u - features.norm_weight * ops.sum(ops.square(x), -1, keepdims=True) if key else u


def _sum_type(x: Tensor) -> str:
    return "float64" if backend.standardize_dtype(x.dtype) == "float64" else "float32"


def _keys(key: Tensor, features: FeatureMap, key_mask: Tensor | None) -> Tensor:
    u = _arguments(key, features, True)
    if features.exponential:
        u = ops.maximum(u, EMPTY)
    if key_mask is None:
        return u
    hidden = -float("inf") if features.exponential else 0.0
    return ops.where(ops.cast(key_mask, "bool")[:, None, :, None], u, ops.cast(hidden, u.dtype))


def _values(value: Tensor) -> Tensor:
    return ops.transpose(ops.cast(value, _sum_type(value)), (0, 2, 1, 3))


def _absorb(state: State, u: Tensor, value: Tensor, exponential: bool) -> State:
    if not exponential:
        kv = state.kv + ops.einsum("bhtm,bhte->bhme", u, value)
        return State(kv, state.key_sum + ops.sum(u, 2), state.log_scale)
    raised = _fixed(ops.maximum(state.log_scale, ops.amax(u, 2)))
    decay, weight = ops.exp(state.log_scale - raised), ops.exp(u - raised[:, :, None])
    kv = state.kv * decay[..., None] + ops.einsum("bhtm,bhte->bhme", weight, value)
    return State(kv, state.key_sum * decay + ops.sum(weight, 2), raised)


def empty_state(batch: int, heads: int, features: int, size: int, exponential: bool, dtype: str) -> State:
    """The state of nothing."""
    shape = (batch, heads, features)
    scale = ops.full(shape, EMPTY if exponential else 0.0, dtype)
    return State(ops.zeros((*shape, size), dtype), ops.zeros(shape, dtype), scale)


def key_state(key: Tensor, value: Tensor, features: FeatureMap, key_mask: Tensor | None) -> State:
    """The state of keys ``[B, S, H, D]`` and values ``[B, S, H, E]``."""
    u, v = _keys(key, features, key_mask), _values(value)
    empty = empty_state(u.shape[0], u.shape[1], u.shape[-1], v.shape[-1], features.exponential, v.dtype)
    return _absorb(empty, u, v, features.exponential)


def _read(u: Tensor, state: State, exponential: bool) -> _Part:
    if not exponential:
        denominator = ops.einsum("bhtm,bhm->bht", u, state.key_sum)
        return _Part(ops.einsum("bhtm,bhme->bhte", u, state.kv), denominator, ops.zeros_like(denominator))
    weight = u + state.log_scale[:, :, None]
    shift = _fixed(ops.amax(weight, -1))
    weight = ops.exp(weight - shift[..., None])
    return _Part(
        ops.einsum("bhtm,bhme->bhte", weight, state.kv), ops.einsum("bhtm,bhm->bht", weight, state.key_sum), shift
    )


def _half(x: Tensor, size: int, which: int) -> Tensor:
    return ops.reshape(x, (*x.shape[:2], -1, 2, size, x.shape[-1]))[:, :, :, which]


def _read_halves(q: Tensor, k: Tensor, value: Tensor, size: int) -> _Part:
    """Second halves of blocks of 2 size tokens, which read all of the first halves."""
    keys = _half(k, size, 0)
    scale = _fixed(ops.maximum(ops.amax(keys, -2, keepdims=True), EMPTY))
    of_queries = _half(q, size, 1) + scale
    shift = _fixed(ops.amax(of_queries, -1))
    weights = ops.einsum("bhntm,bhnsm->bhnts", ops.exp(of_queries - shift[..., None]), ops.exp(keys - scale))

    def full(x: Tensor, nothing: float) -> Tensor:
        both = ops.concatenate([ops.full_like(x, nothing), x], 3)
        return ops.reshape(both, (*x.shape[:2], -1, *x.shape[4:]))

    return _Part(
        full(ops.einsum("bhnts,bhnse->bhnte", weights, _half(value, size, 0)), 0.0),
        full(ops.sum(weights, -1), 0.0),
        full(shift, EMPTY),
    )


def _read_causal(q: Tensor, k: Tensor, value: Tensor, exponential: bool) -> _Part:
    """The rows of one chunk and its own keys; no shift is taken over keys that a row must not see."""
    if not exponential:
        weights = ops.tril(ops.einsum("bhtm,bhsm->bhts", q, k))
        denominator = ops.sum(weights, -1)
        return _Part(ops.einsum("bhts,bhse->bhte", weights, value), denominator, ops.zeros_like(denominator))
    own = q + k
    shift = _fixed(ops.maximum(ops.amax(own, -1), EMPTY))
    denominator = ops.sum(ops.exp(own - shift[..., None]), -1)
    total = _Part(denominator[..., None] * value, denominator, shift)
    size = 1
    while size < q.shape[2]:
        total = _merge(total, _read_halves(q, k, value, size))
        size *= 2
    return total


def _padded(x: Tensor, missing: int, fill: float) -> Tensor:
    if missing == 0:
        return x
    return ops.concatenate([x, ops.full((*x.shape[:2], missing, x.shape[3]), fill, x.dtype)], 2)


def _composed_causal(q: Tensor, k: Tensor, value: Tensor, state: State, exponential: bool) -> tuple[_Part, State]:
    parts = []
    for begin in range(0, q.shape[2], _CHUNK):
        rows = [x[:, :, begin : begin + _CHUNK] for x in (q, k, value)]
        count, power = rows[0].shape[2], 1
        while power < count:
            power *= 2
        hidden = -float("inf") if exponential else 0.0
        padded = [_padded(x, power - count, fill) for x, fill in zip(rows, (0.0, hidden, 0.0), strict=True)]
        own = _Part(*(x[:, :, :count] for x in _read_causal(padded[0], padded[1], padded[2], exponential)))
        parts.append(_merge(_read(rows[0], state, exponential), own))
        state = _absorb(state, rows[1], rows[2], exponential)
    return _Part(*(ops.concatenate(x, 2) for x in zip(*parts, strict=True))), state


def _composed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    features: FeatureMap,
    causal: bool,
    key_mask: Tensor | None,
    initial: State | None,
) -> tuple[Tensor, State]:
    exponential = features.exponential
    q, k, v = _arguments(query, features, False), _keys(key, features, key_mask), _values(value)
    state = initial or empty_state(q.shape[0], q.shape[1], q.shape[-1], v.shape[-1], exponential, v.dtype)
    if causal:
        part, state = _composed_causal(q, k, v, state, exponential)
    else:
        state = _absorb(state, k, v, exponential)
        part = _read(q, state, exponential)
    empty = part.denominator == 0
    if exponential:
        empty = ops.logical_or(part.shift < EMPTY / 2, empty)
    denominator = ops.where(empty, ops.ones_like(part.denominator), part.denominator)
    out = part.numerator / denominator[..., None]
    out = ops.where(empty[..., None], ops.zeros_like(out), out)
    return ops.cast(ops.transpose(out, (0, 2, 1, 3)), value.dtype), state


@functools.cache
def _torch_operator() -> Any:
    """performer::favor_attention of the torch library, or None where that is not installed."""
    import torch

    with contextlib.suppress(ImportError, AttributeError):
        loads_the_library = "favor_attention"
        getattr(importlib.import_module("performer"), loads_the_library)
    try:
        return torch.ops.performer.favor_attention.default
    except AttributeError:
        return None


def _by_torch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    features: FeatureMap,
    causal: bool,
    key_mask: Tensor | None,
    initial: State | None,
    return_state: bool,
    operator: Any,
) -> tuple[Tensor, State | None]:
    projection = None if features.projection is None else ops.cast(features.projection, "float32")
    offset = None if features.offset is None else ops.cast(features.offset, "float32")
    results = operator(
        query,
        key,
        value,
        projection,
        offset,
        None if key_mask is None else ops.cast(key_mask, "bool"),
        None,
        None,
        None,
        None if initial is None else initial.kv,
        None if initial is None else initial.key_sum,
        None if initial is None else initial.log_scale,
        "exponential" if features.exponential else features.function,
        features.scale,
        features.norm_weight,
        features.epsilon,
        causal,
        0,
        return_state,
    )
    return results[0], State(results[2], results[3], results[4]) if return_state else None


def _by_jax(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    features: FeatureMap,
    causal: bool,
    key_mask: Tensor | None,
    initial: State | None,
    return_state: bool,
) -> tuple[Tensor, State | None]:
    from performer.jax import favor
    from performer.jax.favor import favor_attention

    result = favor_attention(
        query,
        key,
        value,
        projection=features.projection,
        offset=features.offset,
        causal=causal,
        key_mask=None if key_mask is None else ops.cast(key_mask, "bool"),
        family="exponential" if features.exponential else "elementwise",
        function=features.function,
        scale=features.scale,
        norm_weight=features.norm_weight,
        epsilon=features.epsilon,
        state=None if initial is None else favor.State(*initial),
        return_state=return_state,
    )
    return (result[0], State(*result[1])) if isinstance(result, tuple) else (result, None)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    features: FeatureMap,
    *,
    causal: bool = False,
    key_mask: Tensor | None = None,
    initial: State | None = None,
    return_state: bool = False,
) -> tuple[Tensor, State | None]:
    """Linear attention ``[B, T, H, E]``, and the state after all keys if it was asked for."""
    if backend.backend() == "jax":
        return _by_jax(query, key, value, features, causal, key_mask, initial, return_state)
    if backend.backend() == "torch":
        operator = _torch_operator()
        if operator is not None:
            return _by_torch(query, key, value, features, causal, key_mask, initial, return_state, operator)
    return _composed(query, key, value, features, causal, key_mask, initial)


def exact(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: Tensor | float,
    *,
    key_mask: Tensor | None = None,
    seen: Tensor | None = None,
) -> Tensor:
    """Softmax attention; masked keys are left out, rows without keys are zero. `seen` is ``[T, S]`` bool."""
    dtype = _sum_type(query)
    q, k = ops.cast(query, dtype) * ops.cast(scale, dtype), ops.cast(key, dtype)
    scores = ops.einsum("bthd,bshd->bhts", q, k)
    keep = ops.ones((1, 1, 1, 1), "bool")
    if key_mask is not None:
        keep = ops.cast(key_mask, "bool")[:, None, None, :]
    if seen is not None:
        keep = ops.logical_and(keep, seen[None, None])
    keep = ops.broadcast_to(keep, scores.shape)
    scores = ops.where(keep, scores, ops.cast(EMPTY, dtype))
    weights = ops.where(keep, ops.softmax(scores, -1), ops.zeros_like(scores))
    return ops.cast(ops.einsum("bhts,bshe->bthe", weights, ops.cast(value, dtype)), value.dtype)

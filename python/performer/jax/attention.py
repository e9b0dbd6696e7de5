# SPDX-License-Identifier: Apache-2.0
"""The attention function that flax calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from performer.jax import _composed, _ffi, _masks, _reference, redraw
from performer.jax.favor import favor_attention


class _Rows(NamedTuple):
    """Query [B, T, H, D], key and value with everything that is not attended over in B; and the way back."""

    query: jax.Array
    key: jax.Array
    value: jax.Array
    restore: Callable[[jax.Array], jax.Array]


def check(condition: bool, message: str) -> None:
    """Raises ValueError unless the condition holds."""
    if not condition:
        raise ValueError(f"fast attention: {message}")


def _attention_axes(axis: int | Sequence[int] | None, dimensions: int) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(1, dimensions - 2))
    given = (axis,) if isinstance(axis, int) else tuple(axis)
    axes = tuple(i + dimensions if i < 0 else i for i in given)
    check(
        len(axes) > 0 and len(set(axes)) == len(axes) and all(1 <= i < dimensions - 2 for i in axes),
        f"axis must name different dimensions from 1 to {dimensions - 3}, between batch and heads; found {given}",
    )
    return axes


def _arranged(query: jax.Array, key: jax.Array, value: jax.Array, axes: tuple[int, ...]) -> _Rows:
    """Moves the dimensions attended over behind the others, and flattens both."""
    dimensions = query.ndim
    others = tuple(i for i in range(dimensions - 2) if i not in axes)
    order = (*others, *axes, dimensions - 2, dimensions - 1)

    def flat(x: jax.Array) -> jax.Array:
        x = x.transpose(order)
        return x.reshape(int(np.prod(x.shape[: len(others)])), -1, *x.shape[-2:])

    lead = tuple(query.shape[i] for i in (*others, *axes))
    inverse = tuple(int(i) for i in np.argsort(order))
    return _Rows(
        flat(query),
        flat(key),
        flat(value),
        lambda out: out.reshape(*lead, *out.shape[-2:]).transpose(inverse),
    )


def _check_rows(query: jax.Array, key: jax.Array, value: jax.Array, axes: tuple[int, ...]) -> None:
    check(
        query.shape[-1] == key.shape[-1] and key.shape[:-1] == value.shape[:-1],
        "query and key must agree in the head size, key and value in all but the last dimension; found "
        f"{query.shape}, {key.shape} and {value.shape}",
    )
    for i in range(query.ndim - 1):
        check(
            i in axes or query.shape[i] == key.shape[i],
            f"dimension {i} is not attended over, so query and key must agree in it; found {query.shape} and "
            f"{key.shape}",
        )


def _with_as_many_heads(x: jax.Array, heads: int) -> jax.Array:
    """Keys or values of grouped heads, one for each head of the queries."""
    check(
        x.shape[-2] > 0 and heads % x.shape[-2] == 0,
        f"the {heads} heads of the queries are no multiple of the {x.shape[-2]} of the keys and values",
    )
    return x if x.shape[-2] == heads else jnp.repeat(x, heads // x.shape[-2], axis=-2)


class Options(NamedTuple):
    """What the two factories have in common."""

    head_size: int
    renormalize: bool
    stabilizer: float
    unidirectional: bool
    redraw: bool
    draw: redraw.Draw | None  # None: no projection
    reference_draw: _reference.ProjectionOptions | None
    kind: Literal["positive", "trigonometric", "generalized"]
    function: str | _composed.FunctionOfArrays
    epsilon: float


class FastAttention:
    """An attention function for flax; :mod:`performer.jax.factories` makes it."""

    def __init__(self, options: Options, projection: jax.Array | np.ndarray[Any, Any] | None, reference: bool) -> None:
        self._options = options
        self._projection = None if projection is None else np.asarray(projection, np.float32)
        self._reference = reference
        if self._projection is not None:
            shape, size = self._projection.shape, options.head_size
            check(
                self._projection.ndim in ((2,) if reference else (2, 3)) and shape[-1] == size,
                f"the projection must be [features, {size}]"
                + ("" if reference else f" or [heads, features, {size}]")
                + f", found {list(shape)}",
            )

    def __repr__(self) -> str:
        return f"FastAttention({self._options}, reference={self._reference})"

    def __call__(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        bias: jax.Array | None = None,
        mask: jax.Array | None = None,
        broadcast_dropout: bool = True,
        dropout_rng: jax.Array | None = None,
        dropout_rate: float = 0.0,
        deterministic: bool = False,
        dtype: Any = None,
        precision: Any = None,
        module: Any = None,
        is_causal: bool = False,
        *,
        axis: int | Sequence[int] | None = None,
        key_mask: jax.Array | None = None,
        query_mask: jax.Array | None = None,
        projection: jax.Array | None = None,
    ) -> jax.Array:
        """Attends.

        Args:
            query: ``[B, tokens..., H, D]``.
            key: ``[B, tokens..., H or a divisor of it, D]``.
            value: ``[B, tokens..., as key, E]``.
            bias: added to the scores, which linear attention does not have: it must be a mask, 0 or at most
                -1e9 everywhere. Shapes as of `mask`.
            mask: ``[B, 1 or H, T, S]``, true (or not 0) keeps, broadcast where a size is 1. It must be a product
                of a mask of queries and a mask of keys, and of the causal one if the attention is causal: what
                ``make_attention_mask``, ``make_causal_mask`` and decoding make of padded sequences. Another one
                raises when it is seen, under jit too; on devices other than CPUs, where compiled code cannot
                fail, its sequences become NaN. Rows of masked queries are zero.
            broadcast_dropout, dropout_rng, dropout_rate, deterministic: dropout of attention weights, which do
                not exist here: refused unless `deterministic` or the rate is 0.
            dtype: query, key and value are converted to it first.
            precision: of no effect: sums are float32, whatever the inputs are.
            module: of no effect: there are no weights to sow.
            is_causal: makes this call causal, as ``unidirectional=True`` makes all.
            axis: the dimensions attended over; None: all between batch and heads. Pass ``axis=-3`` for several
                dimensions of batch. Masks need one attended dimension.
            key_mask: ``[B, S]`` bool, an own mask of keys: cheaper than `mask`. With further dimensions in the
                place of B where query has them.
            query_mask: ``[B, T]`` bool.
            projection: used instead of the own one, ``[M, D]`` or ``[H, M, D]``; it may be traced.

        Returns:
            As query, with the last dimension of value.

        Raises:
            ValueError: shapes that do not fit; several attended dimensions for a causal attention.
            NotImplementedError: dropout of attention weights.
        """
        query, key, value = (jnp.asarray(x) if dtype is None else jnp.asarray(x, dtype) for x in (query, key, value))
        check(
            query.ndim == key.ndim == value.ndim and query.ndim >= 4,
            f"query, key and value need [B, tokens..., H, D], found {query.shape}, {key.shape} and {value.shape}",
        )
        check(
            query.shape[-1] == self._options.head_size,
            f"the head size is {query.shape[-1]}, and the attention was made for qkv_dim={self._options.head_size}",
        )
        axes = _attention_axes(axis, query.ndim)
        causal = self._options.unidirectional or is_causal
        check(
            not causal or len(axes) == 1,
            "unidirectional attention needs an order of its tokens and so exactly one attention axis, found "
            f"{axes}; name one in `axis`",
        )
        key, value = (_with_as_many_heads(x, query.shape[-2]) for x in (key, value))
        _check_rows(query, key, value, axes)
        rows = _arranged(query, key, value, axes)
        if self._reference:
            w = self._reference_projection(query) if projection is None else projection
            return rows.restore(self._attend_as_reference(rows, causal, w))
        if dropout_rate > 0 and not deterministic:
            raise NotImplementedError(
                f"dropout_rate={dropout_rate}: linear attention has no matrix of weights that could be dropped. "
                "Set it to 0 and use dropout on the outputs"
            )
        # One query of many keys, as in decoding: all keys are before it.
        causal = causal and not (rows.query.shape[1] == 1 and rows.key.shape[1] != 1)
        masks = self._masks(query, axes, rows, mask, bias, causal)
        own = _masks.Masks(_flat_mask(key_mask, rows.key), _flat_mask(query_mask, rows.query))
        out = self._attend(
            rows,
            causal,
            _both(masks.key_mask, own.key_mask),
            _both(masks.query_mask, own.query_mask),
            self._projection_for(rows, projection),
        )
        if masks.valid is not None:
            out = jnp.where(masks.valid[:, None, None, None], out, jnp.asarray(jnp.nan, out.dtype))
        return rows.restore(out)

    def projection(self, heads: int, index: int = 0) -> jax.Array | None:
        """The projection of draw `index`, ``[heads, M, D]`` or as it was given; None if there is none.

        The reference's has no heads, and one that follows the queries cannot be told before.
        """
        if self._projection is not None:
            return jnp.asarray(self._projection)
        options = self._options
        if self._reference:
            return None if options.reference_draw is None else _reference.draw_of_seed(options.reference_draw, index)
        return None if options.draw is None else options.draw.at(index, heads, options.head_size)

    def _projection_for(self, rows: _Rows, given: jax.Array | None) -> jax.Array | None:
        options = self._options
        if given is not None or self._projection is not None:
            return jnp.asarray(self._projection if given is None else given)
        if options.draw is None:
            return None
        index = redraw.current() if options.redraw else 0
        return options.draw.at(index, rows.query.shape[2], options.head_size)

    @staticmethod
    def _masks(
        query: jax.Array,
        axes: tuple[int, ...],
        rows: _Rows,
        mask: jax.Array | None,
        bias: jax.Array | None,
        causal: bool,
    ) -> _masks.Masks:
        codes = _masks.codes_of(mask, bias)
        if codes is None:
            return _masks.Masks()
        check(
            axes == (query.ndim - 3,),
            f"a mask or bias needs the one attention axis {query.ndim - 3}, before the heads; found {axes}. Give "
            "key_mask, or name the axis",
        )
        batch = query.shape[:-3]
        return _masks.reduce_mask(codes, batch, query.shape[-2], rows.query.shape[1], rows.key.shape[1], causal)

    def _attend(
        self,
        rows: _Rows,
        causal: bool,
        key_mask: jax.Array | None,
        query_mask: jax.Array | None,
        projection: jax.Array | None,
    ) -> jax.Array:
        options = self._options
        softmax = options.kind != "generalized"
        if options.kind != "trigonometric" and options.renormalize:
            out = favor_attention(
                rows.query,
                rows.key,
                rows.value,
                projection=projection,
                causal=causal,
                key_mask=key_mask,
                query_mask=query_mask,
                family="exponential" if softmax else "elementwise",
                function=options.function,
                epsilon=options.epsilon,
            )
            assert isinstance(out, jax.Array)
            return out
        check(
            not causal or rows.query.shape[1] == rows.key.shape[1],
            f"causal attention needs as many keys as queries, found {rows.query.shape[1]} and {rows.key.shape[1]}",
        )
        empty = jnp.zeros((1, 1, 0, 0), jnp.float32)
        if projection is not None:
            empty = jnp.asarray(projection, jnp.float32)
            empty = empty.reshape((1,) * (4 - empty.ndim) + empty.shape)
        nothing = jnp.zeros((0, 0), bool)
        arrays = _ffi.Arrays(
            rows.query,
            rows.key,
            rows.value,
            empty,
            jnp.zeros((1, 1, 0), jnp.float32),
            nothing if key_mask is None else key_mask,
            nothing if query_mask is None else query_mask,
            *(jnp.zeros((0,) * n) for n in (4, 3, 3)),
        )
        scale = options.head_size**-0.25
        if options.kind == "trigonometric":
            return _composed.trigonometric(arrays, scale, causal, options.renormalize)
        mapping = _ffi.Map("exponential", scale=scale)
        if not softmax:
            mapping = _ffi.Map("elementwise", options.function, epsilon=options.epsilon)
        return _composed.unnormalized(arrays, mapping, causal)

    def _attend_as_reference(self, rows: _Rows, causal: bool, w: jax.Array | None) -> jax.Array:
        options = self._options
        batch, tokens, heads, _ = rows.query.shape

        def heads_apart(x: jax.Array) -> jax.Array:
            return jnp.moveaxis(x, 2, 1).reshape(-1, x.shape[1], x.shape[3])

        query, key, value = (heads_apart(x) for x in (rows.query, rows.key, rows.value))
        if options.kind == "generalized":
            function = options.function
            f = _reference_function(function) if isinstance(function, str) else function
            phi_q, phi_k = (_reference.generalized_features(x, w, f, options.epsilon) for x in (query, key))
        else:
            assert w is not None
            if options.kind == "positive":
                phi_q = _reference.positive_features(query, w, True, options.stabilizer)
                phi_k = _reference.positive_features(key, w, False, options.stabilizer)
            else:
                phi_q, phi_k = (_reference.trigonometric_features(x, w) for x in (query, key))
        out = _reference.attend(phi_q, phi_k, value, causal, options.renormalize, options.stabilizer)
        return jnp.moveaxis(out.reshape(batch, heads, tokens, -1), 1, 2)

    def _reference_projection(self, query: jax.Array) -> jax.Array | None:
        if self._projection is not None:
            return jnp.asarray(self._projection)
        draws = self._options.reference_draw
        if draws is None:
            return None
        return _reference.draw_of_seed(draws, _reference.redraw_seed(query) if self._options.redraw else 0)


def _reference_function(name: str) -> _composed.FunctionOfArrays:
    # JAX's gradient of |u| is 1 at 0, and the original takes it.
    return jnp.abs if name == "abs" else _composed.FUNCTIONS[name]


def _both(a: jax.Array | None, b: jax.Array | None) -> jax.Array | None:
    if a is None or b is None:
        return b if a is None else a
    return a & b


def _flat_mask(mask: jax.Array | None, rows: jax.Array) -> jax.Array | None:
    return None if mask is None else jnp.asarray(mask).reshape(rows.shape[:2])

# SPDX-License-Identifier: Apache-2.0
"""``make_fast_softmax_attention`` and ``make_fast_generalized_attention`` of google-research's Performer, rebuilt.

Parameters have the original's names, order and defaults; what they return goes to ``attention_fn=`` of
``flax.linen.MultiHeadDotProductAttention``, ``flax.nnx.MultiHeadAttention`` and the attention of flax's API of
2020. By default they compute what the papers describe, by this project's kernels; ``reference=True`` gives the
original's numbers.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from performer.jax import _composed, _reference, redraw
from performer.jax.attention import FastAttention, Options, check


def make_fast_softmax_attention(
    qkv_dim: int,
    renormalize_attention: bool = True,
    numerical_stabilizer: float = 0.000001,
    nb_features: int = 256,
    ortho_features: bool = True,
    ortho_scaling: float = 0.0,
    redraw_features: bool = True,
    unidirectional: bool = False,
    nonnegative_features: bool = True,
    lax_scan_unroll: int = 1,
    *,
    reference: bool = False,
    seed: int = 0,
    layer: int = 0,
    projection: jax.Array | np.ndarray[Any, Any] | None = None,
) -> FastAttention:
    """Attention that estimates the softmax's by random features (FAVOR+, arXiv 2009.14794).

    Args:
        qkv_dim: D, the size of a head's queries and keys.
        renormalize_attention: whether to divide by the denominator.
        numerical_stabilizer: the original adds it to features and, twice, to small denominators. Own features
            have log-scales and need neither: it is used with ``reference=True`` only.
        nb_features: M, the number of random features.
        ortho_features: rows of orthogonal matrices, Haar-distributed; otherwise independent Gaussian rows.
        ortho_scaling: 0: rows are as long as Gaussian ones; 1: all sqrt(D).
        redraw_features: whether :func:`redraw_index` chooses the draw. Alone it changes nothing: the original
            draws at every call by a seed that it makes of the data, in evaluation too, and so does
            ``reference=True``.
        unidirectional: causal.
        nonnegative_features: positive features; otherwise trigonometric ones, whose denominators may vanish.
            They are computed by JAX operations, as is ``renormalize_attention=False``.
        lax_scan_unroll: of no effect: kernels choose their own chunks.
        reference: the original's numbers instead, of JAX operations; then all heads share one projection, and
            masks, biases and dropout are ignored, as they are there.
        seed, layer: name the draw of the own projections, one for each head. Layers of one model should differ
            in `layer`.
        projection: ``[M, D]`` or (not as reference) ``[H, M, D]``, used instead of a draw.

    Returns:
        The attention function.

    Raises:
        ValueError: sizes or options that are not possible.
    """
    _check_sizes(qkv_dim, nb_features, lax_scan_unroll)
    check(ortho_scaling in (0, 1), f"ortho_scaling must be 0 or 1, found {ortho_scaling}")
    options = Options(
        head_size=qkv_dim,
        renormalize=renormalize_attention,
        stabilizer=numerical_stabilizer,
        unidirectional=unidirectional,
        redraw=redraw_features,
        draw=_draw_of(nb_features, ortho_features, ortho_scaling, seed, layer),
        reference_draw=_reference.ProjectionOptions(nb_features, qkv_dim, ortho_features, ortho_scaling),
        kind="positive" if nonnegative_features else "trigonometric",
        function="exp",
        epsilon=0.0,
    )
    return FastAttention(options, projection, reference)


def make_fast_generalized_attention(
    qkv_dim: int,
    renormalize_attention: bool = True,
    numerical_stabilizer: float = 0.0,
    nb_features: int = 256,
    features_type: str = "deterministic",
    kernel_fn: str | _composed.FunctionOfArrays = jax.nn.relu,
    kernel_epsilon: float = 0.001,
    redraw_features: bool = False,
    unidirectional: bool = False,
    lax_scan_unroll: int = 1,
    *,
    reference: bool = False,
    seed: int = 0,
    layer: int = 0,
    projection: jax.Array | np.ndarray[Any, Any] | None = None,
) -> FastAttention:
    """Attention of element-wise features f(W x) + epsilon (generalised attention, arXiv 2009.14794, section 2).

    Args:
        qkv_dim: D, the size of a head's queries and keys.
        renormalize_attention: whether to divide by the denominator.
        numerical_stabilizer: added, twice, to denominators up to it, with ``reference=True`` only. Otherwise a
            row whose denominator is 0 is zero.
        nb_features: M, the number of random features; not used when deterministic.
        features_type: ``deterministic``: no projection, features f(x) + epsilon; ``ortho`` or ``iid``: W of
            orthogonal or independent rows.
        kernel_fn: f, a function of arrays, or a name of ``performer.jax.FUNCTIONS``. ``jax.nn.relu``,
            ``jax.nn.sigmoid``, ``jnp.abs``, ``jnp.exp``, ``jnp.tanh``, ``jnp.square``, ``jnp.cos``, ``jnp.sin``
            and the names run as kernels, other functions as JAX operations.
        kernel_epsilon: epsilon.
        redraw_features, unidirectional, lax_scan_unroll, reference, seed, layer, projection: as in
            :func:`make_fast_softmax_attention`. A given projection makes the features those of ``ortho``.

    Returns:
        The attention function.

    Raises:
        ValueError: sizes, names or options that are not possible.
    """
    _check_sizes(qkv_dim, nb_features, lax_scan_unroll)
    check(
        features_type in ("deterministic", "ortho", "iid"),
        f"features_type must be deterministic, ortho or iid, found {features_type!r}",
    )
    function = _NAMES.get(kernel_fn, kernel_fn)
    check(
        callable(function) or function in _composed.FUNCTIONS,
        f"kernel_fn {kernel_fn!r} is unknown; known: {', '.join(_composed.FUNCTIONS)}, or a function of your own",
    )
    drawn = features_type != "deterministic"
    orthogonal = features_type == "ortho"
    options = Options(
        head_size=qkv_dim,
        renormalize=renormalize_attention,
        stabilizer=numerical_stabilizer,
        unidirectional=unidirectional,
        redraw=redraw_features,
        draw=_draw_of(nb_features, orthogonal, 0, seed, layer) if drawn else None,
        reference_draw=_reference.ProjectionOptions(nb_features, qkv_dim, orthogonal) if drawn else None,
        kind="generalized",
        function=function,
        epsilon=kernel_epsilon,
    )
    return FastAttention(options, projection, reference)


# Functions that have a kernel. jax.nn.gelu is not among them: by default it is the approximation by tanh.
_NAMES: dict[Any, str] = {
    jax.nn.relu: "relu",
    jax.nn.sigmoid: "sigmoid",
    jnp.abs: "abs",
    jnp.square: "square",
    jnp.exp: "exp",
    jnp.tanh: "tanh",
    jnp.cos: "cos",
    jnp.sin: "sin",
}


def _check_sizes(head_size: int, features: int, unroll: int) -> None:
    check(
        head_size >= 1 and features >= 1 and unroll >= 1,
        f"qkv_dim, nb_features and lax_scan_unroll must be at least 1, found {head_size}, {features} and {unroll}",
    )


def _draw_of(features: int, orthogonal: bool, scaling: float, seed: int, layer: int) -> redraw.Draw:
    kind = "orthogonal" if orthogonal else "iid"
    # Independent rows keep the lengths of their own, as in the original, where scaling is one of orthogonal rows.
    return redraw.Draw(features, kind, "sqrt-d" if orthogonal and scaling == 1 else "chi", seed, layer)

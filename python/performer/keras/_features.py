# SPDX-License-Identifier: Apache-2.0
"""Feature maps, projections and masks of the layer as it is meant."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from performer.keras import _linear, _projection

Tensor = Any


def fixed_map(name: str, scale: float, projection: Tensor | None) -> _linear.FeatureMap:
    """The map of a feature_transform other than expplus; projection ``[1, H, M, D]`` or None."""
    if name in ("exp", "expmod"):
        weight = 0.5 if name == "exp" else 0.0
        return _linear.FeatureMap("exponential", scale=scale, norm_weight=weight, projection=projection)
    function = "elu+1" if name == "elu" else name
    epsilon = 1e-3 if name == "relu" else 0.0
    return _linear.FeatureMap("elementwise", function, scale, epsilon=epsilon, projection=projection)


def optimal_map(a: Tensor, scale: float, projection: Tensor) -> _linear.FeatureMap:
    """FAVOR++ (arXiv 2205.15317): ``exp(sqrt(1 - 4A) w.x + A |w|^2 - |x|^2/2)``, A ``[B or 1, H]``."""
    a = a[:, :, None]
    return _linear.FeatureMap(
        "exponential",
        scale=scale,
        projection=projection * ops.sqrt(1 - 4 * a)[..., None],
        offset=a * ops.sum(ops.square(projection), -1),
    )


def optimal_a(s: Tensor) -> Tensor:
    """A of least variance for s = E|q + k|^2 / D (arXiv 2205.15317): (1 - 2s - sqrt((2s + 1)^2 + 8s)) / 16."""
    return (1 - 2 * s - ops.sqrt(ops.square(2 * s + 1) + 8 * s)) / 16


def moment_of_sums(q: Tensor, k: Tensor, query_mask: Tensor | None, keys: Tensor | None, scale: float) -> Tensor:
    """E|q + k|^2 over all pairs of queries and keys that are not masked, ``[B, H]``."""

    def moments(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        x = ops.cast(x, "float32") * scale
        if mask is None:
            return ops.mean(x, 1), ops.mean(ops.sum(ops.square(x), -1), 1)
        weight = ops.cast(mask, "float32")[:, :, None, None]
        x, count = x * weight, ops.maximum(ops.sum(weight, (1, 2, 3)), 1.0)
        return (
            ops.sum(x, 1) / count[:, None, None],
            ops.sum(ops.square(x), (1, 3)) / count[:, None],
        )

    (mean_q, square_q), (mean_k, square_k) = moments(q, query_mask), moments(k, keys)
    return ops.maximum(square_q + square_k + 2 * ops.sum(mean_q * mean_k, -1), 0.0)


def draw(heads: int, rows: int, size: int, generator: Any) -> Tensor:
    """``[heads, rows, size]``: rows of Haar-distributed orthogonal matrices, as long as fresh Gaussian ones."""
    blocks = -(-rows // size)
    q, r = ops.qr(keras.random.normal((heads, blocks, size, size), dtype="float32", seed=generator))
    q = q * ops.sign(ops.diagonal(r, axis1=-2, axis2=-1))[..., None, :]
    directions = ops.reshape(ops.swapaxes(q, -1, -2), (heads, -1, size))[:, :rows]
    gaussian = keras.random.normal((heads, rows, size), dtype="float32", seed=generator)
    return directions * ops.sqrt(ops.sum(ops.square(gaussian), -1, keepdims=True))


def draw_as_reference(rows: int, size: int, generator: Any) -> Tensor:
    """``[rows, size]`` as the original redraws: signs of QR as they are, row lengths that never change."""
    q, _ = ops.qr(keras.random.normal((-(-rows // size), size, size), dtype="float32", seed=generator))
    norms = ops.convert_to_tensor(_projection.redrawn_norms(rows, size))[:, None]
    return ops.reshape(ops.swapaxes(q, -1, -2), (-1, size))[:rows] * norms


def joined_key_mask(value_mask: Tensor | None, key_mask: Tensor | None, attention_mask: Tensor | None) -> Tensor | None:
    """One bool mask ``[B, S]`` of those that are given, ``attention_mask`` being ``[B, S]`` or ``[B, 1, S]``."""
    keep = None
    if attention_mask is not None and len(attention_mask.shape) == 3:
        if attention_mask.shape[1] != 1:
            raise ValueError(
                "KernelAttention: attention_mask must be one of keys, [batch, keys] or [batch, 1, keys]: linear "
                f"attention has no matrix of queries and keys to mask; found {tuple(attention_mask.shape)}. For a "
                "causal mask pass use_causal_mask=True"
            )
        attention_mask = attention_mask[:, 0]
    for mask in (value_mask, key_mask, attention_mask):
        if mask is not None:
            if keras.backend.standardize_dtype(mask.dtype) != "bool":
                mask = ops.not_equal(mask, ops.cast(0, mask.dtype))
            keep = mask if keep is None else ops.logical_and(keep, mask)
    return keep

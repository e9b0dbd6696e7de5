# SPDX-License-Identifier: Apache-2.0
"""The layer's call with reference=True: the original's numbers, its faults included."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from performer.keras import _reference
from performer.keras._options import check
from performer.keras.cache import KernelAttentionCache

Tensor = Any


def call_reference(
    layer: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    cache: KernelAttentionCache | None,
    training: bool,
    use_causal_mask: bool,
) -> Tensor:
    """What the original's layer computes for these inputs, with the weights of `layer`.

    Arguments are those of KernelAttention.call(); raises ValueError for what the original cannot do.
    """
    check(not use_causal_mask, "the original has no causal mask: use windows")
    check(
        layer.begin_kernel == 0 or not layer.use_causal_windowed,
        "begin_kernel with use_causal_windowed always raises in the original: leave one of them out",
    )
    check(
        cache is None or layer.feature_transform != "expplus",
        "there is no cache with feature_transform expplus in the original",
    )
    check(
        mask is None or "float" in keras.backend.standardize_dtype(mask.dtype),
        "attention_mask must be floating: the original refuses bool and integers",
    )

    def project(dense: Any, x: Tensor) -> Tensor:
        """In the wide type: the attention can magnify the rounding of heads a thousandfold."""
        y = ops.einsum(dense.equation, ops.cast(x, _reference.wide()), ops.cast(dense.kernel, _reference.wide()))
        return y if dense.bias is None else y + ops.cast(dense.bias, _reference.wide())

    q, k, v = project(layer._query_dense, query), project(layer._key_dense, key), project(layer._value_dense, value)
    projection = None if layer.projection is None else ops.convert_to_tensor(layer.projection)
    # With begin_kernel the flag `training` never arrives at this place of the original.
    if layer.redraw and training and layer.begin_kernel == 0:
        projection = layer._drawn()
    window = None
    if layer.use_causal_windowed:
        window = _reference.Window(
            layer.causal_chunk_length, layer.causal_window_length, layer.causal_window_decay, layer.causal_padding
        )
    options = _reference.Options(
        layer.feature_transform, layer.is_short_seq, layer._scale(), layer.scale_by_length, window
    )
    count = min(layer.begin_kernel, q.shape[1])
    out = _reference.compute_attention(q[:, count:], k, v, options, projection, mask, cache)
    parts = [(layer._output_dense, out)]
    if layer.begin_kernel > 0:
        short = options._replace(feature_transform="identity", is_short_seq=True)
        first = _reference.compute_attention(q[:, :count], k, v, short, projection, mask)
        parts.insert(0, (layer._output_dense_softmax, first))
    outs = [project(dense, layer._dropout_layer(x, training=training)) for dense, x in parts]
    return ops.cast(outs[0] if len(outs) == 1 else ops.concatenate(outs, 1), layer.compute_dtype)

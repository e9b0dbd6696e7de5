# SPDX-License-Identifier: Apache-2.0
"""The checks of the layer's options."""

from __future__ import annotations

from typing import Any

from performer.keras import _reference


def check(condition: bool, message: str) -> None:
    """Raises ValueError unless the condition holds."""
    if not condition:
        raise ValueError(f"KernelAttention: {message}")


def check_options(layer: Any) -> None:
    """Raises ValueError naming the option of a KernelAttention that is impossible or excludes another."""
    for name in ("num_heads", "key_dim", "value_dim", "causal_chunk_length", "causal_window_length"):
        value = getattr(layer, name)
        check(isinstance(value, int) and value >= 1, f"{name} must be at least 1, found {value!r}")
    check(
        layer.attention_axes in (None, 1, (1,), [1]),
        f"attention_axes {layer.attention_axes} are not possible: attention is over the tokens, dimension 1",
    )
    check(
        layer.feature_transform in _reference.TRANSFORMS,
        f"feature_transform {layer.feature_transform!r} is unknown; known: {', '.join(_reference.TRANSFORMS)}",
    )
    projected = layer.num_random_features > 0
    check(not layer.redraw or projected, "redraw needs a projection: num_random_features must be at least 1")
    check(0 <= layer.dropout < 1, f"dropout must be in [0, 1), found {layer.dropout}")
    check(layer.begin_kernel >= 0, f"begin_kernel must not be negative, found {layer.begin_kernel}")
    check(
        not (layer.use_causal_windowed and layer.is_short_seq),
        "use_causal_windowed and is_short_seq exclude each other",
    )
    check(
        layer.causal_padding in (None, "left", "right"),
        f"causal_padding {layer.causal_padding!r} is unknown; known: None, left, right",
    )
    limit = 2**31
    check(-limit <= layer.seed < limit - 1, f"seed and seed + 1 must fit int32, found {layer.seed}")
    if layer.reference:
        return
    check(layer.seed >= 0, f"seed must not be negative, found {layer.seed}")
    check(layer.scale is None or layer.scale >= 0, f"scale must not be negative, found {layer.scale}")
    decay = layer.causal_window_decay
    check(decay is None or 0 <= decay <= 1, f"causal_window_decay must be from 0 to 1, found {decay}")
    check(
        layer.feature_transform != "expplus" or projected,
        "feature_transform expplus needs random features: num_random_features must be at least 1",
    )

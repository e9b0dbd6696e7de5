# SPDX-License-Identifier: Apache-2.0
"""Linear attention with the signature of torch.nn.functional.scaled_dot_product_attention."""

from __future__ import annotations

import torch
from torch import Tensor

from performer._arguments import Features
from performer.attention import favor_attention


def _key_mask_of(mask: Tensor, batch: torch.Size, keys: int) -> Tensor:
    """The key mask [B, S] that a mask of F.scaled_dot_product_attention stands for.

    Raises:
        ValueError: when it distinguishes queries or heads, which linear attention cannot, or is no bool mask.
    """
    if mask.dtype != torch.bool:
        raise ValueError(
            f"attn_mask is {mask.dtype}: linear attention has no scores to which a mask or bias could be added; give a "
            "bool mask of keys"
        )
    if mask.dim() < 2 or mask.shape[-2] != 1 or (mask.dim() > 2 and mask.shape[-3] != 1):
        raise ValueError(
            f"attn_mask has shape {list(mask.shape)}: linear attention can hide keys from all queries and heads alike, "
            "with a mask [..., 1, 1, S]; for causal attention give is_causal=True, for packed sequences cu_seqlens to "
            "favor_attention"
        )
    row = mask[..., 0, :]
    if row.dim() > 1:
        row = row[..., 0, :]
    return row.expand(*batch, keys).reshape(-1, keys)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    features: Features = "softmax",
    projection: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    """torch.nn.functional.scaled_dot_product_attention estimated in linear time.

    Args:
        query: [..., H, T, D] with any number of dimensions in front; [..., T, D] is one head.
        key: [..., H, S, D].
        value: [..., H, S, E].
        attn_mask: bool [..., 1, 1, S] (True keeps), the same keys for all queries and heads.
        dropout_p: must be 0: there are no attention weights to drop.
        is_causal: needs T = S.
        scale: None: 1 / sqrt(D).
        enable_gqa: key and value may have fewer heads.
        features, projection, seed: as in :func:`favor_attention`.

    Returns:
        [..., H, T, E].

    Raises:
        ValueError: for what linear attention cannot do: dropout, float masks, masks that distinguish queries or heads,
            causal attention with T != S.
    """
    if dropout_p != 0:
        raise ValueError(
            f"dropout_p is {dropout_p}: linear attention never forms attention weights, so none can be dropped; use 0 "
            "and drop outputs instead"
        )
    if query.dim() < 2:
        raise ValueError(f"query must have at least 2 dimensions, [..., T, D], found {query.dim()}")
    tokens, keys = query.shape[-2], key.shape[-2]
    if is_causal and tokens != keys:
        raise ValueError(
            f"is_causal needs as many keys as queries, found {keys} and {tokens}; go on from earlier keys with the "
            "state of favor_attention"
        )
    batch = query.shape[:-3]
    if key.dim() > 3 and not enable_gqa and key.shape[-3] != query.shape[-3]:
        raise ValueError(
            f"key has {key.shape[-3]} heads and query {query.shape[-3]}; give enable_gqa=True for grouped heads"
        )
    mask = None if attn_mask is None else _key_mask_of(attn_mask, batch, keys)

    def four(tensor: Tensor) -> Tensor:
        if tensor.dim() == 4:
            return tensor
        return tensor.reshape(-1, tensor.shape[-3] if tensor.dim() > 2 else 1, *tensor.shape[-2:])

    out = favor_attention(
        four(query),
        four(key),
        four(value),
        causal=is_causal,
        features=features,
        projection=projection,
        key_mask=mask,
        scale=scale,
        seed=seed,
    )
    return out if query.dim() == 4 else out.reshape(*query.shape[:-1], value.shape[-1])

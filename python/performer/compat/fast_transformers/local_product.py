# SPDX-License-Identifier: Apache-2.0
"""Products of queries and values with the keys around them, in memory in proportion to length times context.

Place j of the `context` places of query i is key i - context // 2 + j.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Finite, so that a query without a key weighs its places alike; rounded to float32, as masks are.
_MASKED = float(torch.tensor(-1e24))


def _block_size(context: int) -> int:
    """Queries a block: at least as many as their context, so that a block sees less than two contexts of keys."""
    return max(context, 16)


def _blocks(x: Tensor, size: int) -> Tensor:
    """[N, H, L, E] -> [N, H, blocks, size, E], with zeros at the end."""
    padded = F.pad(x, (0, 0, 0, -x.shape[2] % size))
    return padded.reshape(*x.shape[:2], padded.shape[2] // size, size, x.shape[3])


def _seen(x: Tensor, blocks: int, size: int, context: int) -> Tensor:
    """[N, H, S, E] -> [N, H, blocks, E, size + context - 1]: what each block sees, with zeros beyond the ends."""
    before, total = context // 2, blocks * size + context - 1
    padded = F.pad(x, (0, 0, before, max(0, total - before - x.shape[2])))
    return padded[:, :, :total].unfold(2, size + context - 1, size)


def _diagonals(rows: int, context: int, device: torch.device) -> Tensor:
    """[rows, context]: row + place, which is where in what a block sees the places of its queries lie."""
    return torch.arange(rows, device=device).unsqueeze(1) + torch.arange(context, device=device)


def local_dot_product(
    queries: Tensor, keys: Tensor, attn_mask: Tensor, key_lengths: Tensor, local_context: int
) -> Tensor:
    """Scores [N, H, L, context] of queries [N, H, L, E] and keys [N, H, S, E], -1e24 where there is no key.

    Args:
        queries: [N, H, L, E].
        keys: [N, H, S, E].
        attn_mask: [L, S], added to the scores.
        key_lengths: int64 [N]: keys from there on are none.
        local_context: how many keys a query sees.
    """
    length, keys_there = queries.shape[2], keys.shape[2]
    size = _block_size(local_context)
    blocks = _blocks(queries, size)
    dense = blocks @ _seen(keys, blocks.shape[2], size, local_context)
    band = _diagonals(size, local_context, queries.device).expand(*dense.shape[:-1], -1)
    scores = dense.gather(-1, band).flatten(2, 3)[:, :, :length]

    places = _diagonals(length, local_context, queries.device)
    before = local_context // 2
    missing = max(0, length + local_context - 1 - before - keys_there)
    mask = F.pad(attn_mask, (before, missing)).gather(1, places).to(scores.dtype)
    key = places - before
    there = (key >= 0) & (key < key_lengths.clamp(max=keys_there).view(-1, 1, 1))
    lowest = max(_MASKED, torch.finfo(scores.dtype).min)
    return torch.where(there.unsqueeze(1), scores + mask, lowest)


def local_weighted_average(attention: Tensor, values: Tensor) -> Tensor:
    """Sums [N, H, L, E] of values [N, H, S, E] by weights [N, H, L, context]; places beyond the ends count as zeros."""
    length, context = attention.shape[2:]
    size = _block_size(context)
    weights = _blocks(attention, size)
    band = _diagonals(size, context, attention.device).expand(weights.shape)
    dense = weights.new_zeros(*weights.shape[:-1], size + context - 1).scatter(-1, band, weights)
    return (dense @ _seen(values, weights.shape[2], size, context).transpose(-1, -2)).flatten(2, 3)[:, :, :length]

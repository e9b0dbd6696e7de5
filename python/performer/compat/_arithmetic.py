# SPDX-License-Identifier: Apache-2.0
"""What the drop-ins share: linear attention of given features, and random projections as other packages draw them."""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 128


def linear_attention(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Numerator [..., L, E] and denominator [..., L, 1] of features [..., L, M] and values [..., S, E], in float64."""
    q, k, v = query.double(), key.double(), value.double()
    return q @ (k.transpose(-1, -2) @ v), q @ k.sum(-2).unsqueeze(-1)


def causal_linear_attention(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The same for queries that see keys up to their own place, by chunks: nothing of size L x M x E is kept."""
    q, k, v = query.double(), key.double(), value.double()
    length = q.shape[-2]
    sums = k.new_zeros(*k.shape[:-2], k.shape[-1], v.shape[-1])
    total = k.new_zeros(*k.shape[:-2], k.shape[-1], 1)
    numerators, denominators = [v[..., :0, :]], [v[..., :0, :1]]
    for begin in range(0, length, _CHUNK):
        part = slice(begin, min(begin + _CHUNK, length))
        own = (q[..., part, :] @ k[..., part, :].transpose(-1, -2)).tril()
        numerators.append(own @ v[..., part, :] + q[..., part, :] @ sums)
        denominators.append(own.sum(-1, keepdim=True) + q[..., part, :] @ total)
        sums = sums + k[..., part, :].transpose(-1, -2) @ v[..., part, :]
        total = total + k[..., part, :].sum(-2).unsqueeze(-1)
    return torch.cat(numerators, -2), torch.cat(denominators, -2)


def orthogonal_rows(rows: int, columns: int, blocks: Tensor | None = None) -> Tensor:
    """[rows, columns]: rows of Q of Gaussian blocks, signs as QR leaves them (so not quite Haar), cut to `rows`."""
    count = -(-rows // columns)
    gaussian = torch.randn(count, columns, columns) if blocks is None else blocks
    return torch.cat([torch.linalg.qr(block).Q.transpose(-1, -2) for block in gaussian])[:rows]

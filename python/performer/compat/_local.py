# SPDX-License-Identifier: Apache-2.0
"""Local attention as performer-pytorch's heads have it, from local-attention 1.11.2, its quirks included."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from performer.models.kinds import Local


class _Rates(nn.Module):
    inv_freq: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", 1.0 / (10000 ** (torch.arange(0, dim, 2).float() / dim)))


def _rotated(x: Tensor, positions: Tensor, rates: Tensor) -> Tensor:
    """Windows [B, N, H, W, D] turned by halves, not pairs, of their channels."""
    angles = positions.to(rates.dtype).unsqueeze(-1) * rates
    cosine, sine = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)


class LocalAttention(Local):
    """Heads that see their own window of tokens and its neighbours: [B, H, L, D] -> same.

    Positions count from the start of a group of windows, and in the bidirectional form queries stand one window late;
    zero keys of the padding take part unless a mask hides them.
    """

    def __init__(self, dim: int, window_size: int, causal: bool, dropout: float) -> None:
        super().__init__(window_size, 1, -1, causal)
        self.rel_pos = _Rates(dim)
        self.dropout = dropout

    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, input_mask: Tensor | None = None
    ) -> Tensor:
        """Attention of heads; input_mask bool [B, L], True keeps."""
        tokens = query.shape[2]
        q, k, v = (self._split(x.transpose(1, 2)) for x in (query, key, value))
        q = q.transpose(2, 3)
        k, v = (self._neighbours(x, -1).transpose(2, 3) for x in (k, v))
        group = k.shape[3]
        positions = torch.arange(group, device=q.device)
        rates = self.rel_pos.inv_freq
        q, k = _rotated(q, positions[-self.window :], rates), _rotated(k, positions, rates)
        places = torch.arange(q.shape[1] * self.window, device=q.device).view(1, -1, self.window)
        keys = self._neighbours(places, -1)[:, :, None, None, :]
        hidden = keys < 0
        if self.causal:
            hidden = hidden | (keys > places[:, :, None, :, None])
        if input_mask is not None:
            kept = self._neighbours(self._split(input_mask.to(torch.uint8)), 0).bool()
            hidden = hidden | ~kept[:, :, None, None, :]
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
        weights = F.dropout(scores.softmax(-1), self.dropout, self.training)
        out = (weights @ v).transpose(2, 3).flatten(1, 2)[:, :tokens]
        return out.transpose(1, 2)

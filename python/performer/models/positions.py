# SPDX-License-Identifier: Apache-2.0
"""Positions of tokens, and features taken from neighbouring ones."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from performer.models.kinds import Batch


def rotary_table(positions: Tensor, head_size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines [..., 1, D / 2] of the rotary positions; angles are computed in float64."""
    pairs = torch.arange(head_size // 2, dtype=torch.float64, device=positions.device)
    rates = torch.exp(pairs * (-2 * math.log(10000.0) / head_size))
    angles = (positions.to(torch.float64).unsqueeze(-1) * rates).unsqueeze(-2)
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    return angles.cos().to(precise), angles.sin().to(precise)


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Heads [B, T, H, D] turned by their positions: neighbouring channels are a pair."""
    cosine, sine = table
    pairs = x.to(cosine.dtype).reshape(*x.shape[:-1], -1, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    turned = torch.stack([first * cosine - second * sine, first * sine + second * cosine], -1)
    return turned.flatten(-2).to(x.dtype)


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Sinusoidal positions [..., width]: sine and cosine of each rate side by side."""
    rates = torch.arange((width + 1) // 2, dtype=torch.float64, device=positions.device)
    angles = positions.to(torch.float64).unsqueeze(-1) * torch.exp(rates * (-2 * math.log(10000.0) / width))
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)[..., :width]


def shift_tokens(x: Tensor, shifts: tuple[int, ...], batch: Batch) -> Tensor:
    """Groups of features of x [B, T, C] taken from `shift` tokens earlier; zeros beyond a sequence's ends."""
    width = x.shape[2] // len(shifts)
    kept = x if batch.key_mask is None else x.masked_fill(~batch.key_mask.unsqueeze(-1), 0)
    parts = []
    for group, shift in enumerate(shifts):
        part = (x if shift == 0 else kept)[..., group * width : (group + 1) * width]
        if shift and abs(shift) >= x.shape[1]:
            part = torch.zeros_like(part)
        elif shift:
            part = F.pad(part, (0, 0, shift, -shift))
            if batch.cu_seqlens is not None:
                part = part.masked_fill(_crosses(batch.cu_seqlens, shift, x.device), 0)
        parts.append(part)
    return torch.cat([*parts, x[..., len(shifts) * width :]], -1)


def _crosses(bounds: Tensor, shift: int, device: torch.device) -> Tensor:
    """Bool [1, T, 1]: tokens whose neighbour `shift` tokens earlier is of another segment, or none."""
    segment = torch.arange(len(bounds) - 1).repeat_interleave(bounds.diff())
    return segment.ne(F.pad(segment, (shift, -shift), value=-1)).view(1, -1, 1).to(device)


def token_positions(shape: torch.Size, bounds: Tensor | None, device: torch.device) -> Tensor:
    """The place of each token within its sequence, int64 [B, T]."""
    places = torch.arange(shape[1], device=device).expand(shape)
    if bounds is None:
        return places
    lengths = bounds.diff()
    return places - bounds[:-1].repeat_interleave(lengths).to(device).expand(shape)

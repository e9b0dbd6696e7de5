# SPDX-License-Identifier: Apache-2.0
"""What stands around attention: norms, chunks, token shift, the feed-forward part, positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from performer.models.kinds import Batch
from performer.models.positions import shift_tokens


class ReZero(nn.Module):
    """fn(x) times a learned number that begins at 1e-3."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.tensor(1e-3))
        self.fn = fn

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """[..., D] -> same."""
        return cast(Tensor, self.fn(x, **kwargs) * self.g)


class PreScaleNorm(nn.Module):
    """fn of x divided by its length, times a learned number."""

    def __init__(self, dim: int, fn: nn.Module, eps: float = 1e-5) -> None:
        super().__init__()
        self.fn, self.eps = fn, eps
        self.g = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """[..., D] -> same."""
        length = torch.norm(x, dim=-1, keepdim=True).clamp(min=self.eps)
        return cast(Tensor, self.fn(x / length * self.g, **kwargs))


class PreLayerNorm(nn.Module):
    """fn of a layer norm of x."""

    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = fn

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """[..., D] -> same."""
        return cast(Tensor, self.fn(self.norm(x), **kwargs))


class Chunk(nn.Module):
    """fn of pieces of x along a dimension, one after the other."""

    def __init__(self, chunks: int, fn: nn.Module, along_dim: int = -1) -> None:
        super().__init__()
        self.dim, self.chunks, self.fn = along_dim, chunks, fn

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """The same shape."""
        if self.chunks == 1:
            return cast(Tensor, self.fn(x, **kwargs))
        return torch.cat([self.fn(part, **kwargs) for part in x.chunk(self.chunks, dim=self.dim)], self.dim)


class PreShiftTokens(nn.Module):
    """fn of x with groups of features taken from neighbouring tokens."""

    def __init__(self, shifts: Sequence[int], fn: nn.Module) -> None:
        super().__init__()
        self.fn, self.shifts = fn, tuple(shifts)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """[B, L, D] -> same."""
        return cast(Tensor, self.fn(shift_tokens(x, self.shifts, Batch(kwargs.get("mask"))), **kwargs))


class FeedForward(nn.Module):
    """Two linear layers around an activation, with a gate when `glu`."""

    def __init__(
        self, dim: int, mult: int = 4, dropout: float = 0.0, activation: Any = None, glu: bool = False
    ) -> None:
        super().__init__()
        self.glu = glu
        self.w1 = nn.Linear(dim, dim * mult * (2 if glu else 1))
        self.act = (activation or nn.GELU)()
        self.dropout = nn.Dropout(dropout)
        self.w2 = nn.Linear(dim * mult, dim)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """[..., D] -> same."""
        if not self.glu:
            inner = self.act(self.w1(x))
        else:
            first, gate = self.w1(x).chunk(2, dim=-1)
            inner = self.act(first) * gate
        return cast(Tensor, self.w2(self.dropout(inner)))


class FixedPositionalEmbedding(nn.Module):
    """A table of sines, then cosines, [1, L, D]."""

    emb: Tensor

    def __init__(self, dim: int, max_seq_len: int) -> None:
        super().__init__()
        rates = 1.0 / (10000 ** (torch.arange(0, dim, 2).float() / dim))
        angles = torch.einsum("i,j->ij", torch.arange(max_seq_len).float(), rates)
        self.register_buffer("emb", torch.cat([angles.sin(), angles.cos()], -1))

    def forward(self, x: Tensor) -> Tensor:
        """The rows of x's tokens [B, L, ...]."""
        return self.emb[None, : x.shape[1]].to(x)


class AbsolutePositionalEmbedding(nn.Module):
    """Learned positions."""

    def __init__(self, dim: int, max_seq_len: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(max_seq_len, dim)
        nn.init.normal_(self.emb.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """[L, D]."""
        return self.emb.weight[: x.shape[1]]


class AxialPositionalEmbedding(nn.Module):
    """Learned positions as a sum of two smaller tables."""

    def __init__(self, dim: int, axial_shape: Sequence[int]) -> None:
        super().__init__()
        self.dim, self.shape = dim, tuple(axial_shape)
        self.weights = nn.ParameterList()
        for axis, size in enumerate(self.shape):
            shape = [1] * (len(self.shape) + 2)
            shape[axis + 1], shape[-1] = size, dim
            self.weights.append(nn.Parameter(torch.randn(shape) * 0.02))

    def forward(self, x: Tensor) -> Tensor:
        """[1, L, D]."""
        total = sum(self.weights[1:], self.weights[0])
        return cast(Tensor, total.reshape(1, -1, self.dim)[:, : x.shape[1]])


class Always(nn.Module):
    """Gives the same whatever it is called with."""

    def __init__(self, val: Any) -> None:
        super().__init__()
        self.val = val

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The value."""
        return self.val

# SPDX-License-Identifier: Apache-2.0
"""Features, linear attention of features, FastAttention, and the redrawing of its projections."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from performer.compat import _arithmetic

Activation = Callable[[Tensor], Tensor]


def gaussian_orthogonal_random_matrix(
    nb_rows: int, nb_columns: int, scaling: int = 0, device: torch.device | str | None = None
) -> Tensor:
    """A projection [nb_rows, nb_columns]; rows have the length of Gaussian ones (scaling 0) or sqrt(columns) (1).

    Raises:
        ValueError: for another scaling.
    """
    rows = _arithmetic.orthogonal_rows(nb_rows, nb_columns)
    if scaling == 0:
        lengths: Tensor = torch.linalg.vector_norm(torch.randn(nb_rows, nb_columns), dim=1)
    elif scaling == 1:
        lengths = torch.full((nb_rows,), math.sqrt(nb_columns))
    else:
        raise ValueError(f"scaling must be 0 or 1, not {scaling}")
    return (lengths.unsqueeze(-1) * rows).to(device)


def softmax_kernel(
    data: Tensor,
    *,
    projection_matrix: Tensor,
    is_query: bool,
    normalize_data: bool = True,
    eps: float = 1e-4,
    device: Any = None,
) -> Tensor:
    """Positive softmax features [B, H, L, M] of data [B, H, L, D]: M^(-1/2) (exp(u - |x|^2 / 2 - max u) + eps)."""
    x = data * data.shape[-1] ** -0.25 if normalize_data else data
    u = x @ projection_matrix.to(x.dtype).transpose(-1, -2)
    shift = u.amax(-1, keepdim=True) if is_query else u.amax((-1, -2), keepdim=True)
    half = x.square().sum(-1, keepdim=True) / 2
    ratio: float = projection_matrix.shape[0] ** -0.5
    return (torch.exp(u - half - shift.detach()) + eps) * ratio


def generalized_kernel(
    data: Tensor,
    *,
    projection_matrix: Tensor | None,
    kernel_fn: Activation = F.relu,
    kernel_epsilon: float = 0.001,
    normalize_data: bool = True,
    device: Any = None,
) -> Tensor:
    """f(W x) + epsilon, or f(x) + epsilon without a projection."""
    x = data * data.shape[-1] ** -0.25 if normalize_data else data
    if projection_matrix is not None:
        x = x @ projection_matrix.to(x.dtype).transpose(-1, -2)
    return kernel_fn(x) + kernel_epsilon


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of features q [..., L, M], k [..., S, M] and values v [..., S, E], without a guard."""
    numerator, denominator = _arithmetic.linear_attention(q, k, v)
    return (numerator / denominator).to(v.dtype)


def causal_linear_attention(q: Tensor, k: Tensor, v: Tensor, chunk_size: int = 128, eps: float = 1e-6) -> Tensor:
    """The causal form; eps is added to each feature of the running key sum.

    Raises:
        ValueError: for different numbers of queries and keys beyond 128, which the original pairs up by pieces.
    """
    length = min(q.shape[-2], k.shape[-2])
    if q.shape[-2] != k.shape[-2] and max(q.shape[-2], k.shape[-2]) > chunk_size:
        raise ValueError(f"causal attention needs as many keys as queries, found {k.shape[-2]} and {q.shape[-2]}")
    q, k, v = q[..., :length, :], k[..., :length, :], v[..., :length, :]
    if not bool(torch.isfinite(k).all()):  # exp of large keys: overflows as the original does
        sums = (k.unsqueeze(-1) * v.unsqueeze(-2)).cumsum(-3)
        denominator = 1.0 / torch.einsum("...nd,...nd->...n", q, k.cumsum(-2).to(q.dtype) + eps)
        return torch.einsum("...nde,...nd,...n->...ne", sums, q, denominator).to(v.dtype)
    numerator, denominator = _arithmetic.causal_linear_attention(q, k, v)
    return (numerator / (denominator + eps * q.double().sum(-1, keepdim=True))).to(v.dtype)


causal_linear_attention_noncuda = causal_linear_attention


class FastAttention(nn.Module):
    """Attention of heads: q, k, v [B, H, L, D] -> [B, H, L, D].

    Args and names are performer-pytorch's; the projection is the buffer ``projection_matrix``.
    """

    projection_matrix: Tensor

    def __init__(
        self,
        dim_heads: int,
        nb_features: int | None = None,
        ortho_scaling: int = 0,
        causal: bool = False,
        generalized_attention: bool = False,
        kernel_fn: Activation = F.relu,
        no_projection: bool = False,
    ) -> None:
        super().__init__()
        self.dim_heads, self.ortho_scaling = dim_heads, ortho_scaling
        self.nb_features = int(dim_heads * math.log(dim_heads)) if nb_features is None else nb_features
        self.create_projection = functools.partial(
            gaussian_orthogonal_random_matrix, self.nb_features, dim_heads, ortho_scaling
        )
        self.register_buffer("projection_matrix", self.create_projection())
        self.causal, self.generalized_attention = causal, generalized_attention
        self.kernel_fn, self.no_projection = kernel_fn, no_projection

    @torch.no_grad()
    def redraw_projection_matrix(self, device: Any = None) -> None:
        """Draws a new projection."""
        self.projection_matrix.copy_(self.create_projection(device=device))

    def _features(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if self.no_projection:
            return q.softmax(-1), k.exp() if self.causal else k.softmax(-2)
        if self.generalized_attention:
            make = functools.partial(
                generalized_kernel, projection_matrix=self.projection_matrix, kernel_fn=self.kernel_fn
            )
            return make(q), make(k)
        features = functools.partial(softmax_kernel, projection_matrix=self.projection_matrix)
        return features(q, is_query=True), features(k, is_query=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[B, H, L, D] -> [B, H, L, E]."""
        q_features, k_features = self._features(q.double(), k.double())
        if q.dtype != torch.float64 and not bool(torch.isfinite(k_features.float()).all()):
            q_features, k_features = self._features(q, k)
        return (causal_linear_attention if self.causal else linear_attention)(q_features, k_features, v)


class ProjectionUpdater(nn.Module):
    """Redraws the projections of an instance every feature_redraw_interval + 1 training calls."""

    calls_since_last_redraw: Tensor

    def __init__(self, instance: nn.Module, feature_redraw_interval: int | None) -> None:
        super().__init__()
        self.instance, self.feature_redraw_interval = instance, feature_redraw_interval
        self.register_buffer("calls_since_last_redraw", torch.tensor(0))

    def fix_projections_(self) -> None:
        """Never redraws again."""
        self.feature_redraw_interval = None

    def redraw_projections(self) -> None:
        """Counts a training call, and redraws when it is time."""
        if not self.training or self.feature_redraw_interval is None:
            return
        if self.calls_since_last_redraw >= self.feature_redraw_interval:
            for module in self.instance.modules():
                if isinstance(module, FastAttention):
                    module.redraw_projection_matrix(module.projection_matrix.device)
            self.calls_since_last_redraw.zero_()
            return
        self.calls_since_last_redraw += 1

    def forward(self, x: Tensor) -> Tensor:
        """Not for calls."""
        raise NotImplementedError("ProjectionUpdater is not called; redraw_projections() counts")

# SPDX-License-Identifier: Apache-2.0
"""Random feature maps; `omega` [D, n] is drawn anew as `redraw` says."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from performer.compat.fast_transformers.feature_maps.base import FeatureMap


def orthogonal_random_matrix_(w: Tensor) -> None:
    """Fills w [rows, columns] with columns of orthogonal blocks; column j is as long as row j of its Gaussian block."""
    rows, columns = w.shape
    for start in range(0, columns, rows):
        end = min(start + rows, columns)
        block = torch.randn(rows, rows, device=w.device)
        lengths = block.square().sum(1).sqrt()
        q = torch.linalg.qr(block).Q * lengths[None]
        w[:, start:end] = q[:, : end - start]


class RandomFourierFeatures(FeatureMap):
    """sqrt(2 / n) [cos u, sin u], u = sqrt(t) x omega: the kernel exp(-t |x - y|^2 / 2)."""

    omega: Tensor

    def __init__(
        self,
        query_dimensions: int,
        n_dims: int | None = None,
        softmax_temp: float | None = None,
        orthogonal: bool = False,
        redraw: int = 1,
        deterministic_eval: bool = False,
    ) -> None:
        super().__init__(query_dimensions)
        self.n_dims = n_dims or query_dimensions
        self.orthogonal, self.redraw, self.deterministic_eval = orthogonal, redraw, deterministic_eval
        self.softmax_temp = 1 / math.sqrt(query_dimensions) if softmax_temp is None else softmax_temp
        self.register_buffer("omega", torch.zeros(query_dimensions, self.n_dims // 2))
        self._calls = -1
        self._draw()

    def _draw(self) -> None:
        omega = torch.empty_like(self.omega)
        if self.orthogonal:
            orthogonal_random_matrix_(omega)
        else:
            omega.normal_()
        self.omega = omega

    def new_feature_map(self, device: Any = None) -> None:
        """Draws a new omega in the first call and then in every `redraw`-th."""
        if self.deterministic_eval and not self.training:
            return
        self._calls += 1
        if self.redraw and self._calls % self.redraw == 0:
            self._draw()

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x * math.sqrt(self.softmax_temp)
        return x, x @ self.omega.to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Features [..., n]."""
        _, u = self._projected(x)
        return torch.cat([u.cos(), u.sin()], -1) * math.sqrt(2 / self.n_dims)


class SmoothedRandomFourierFeatures(RandomFourierFeatures):
    """Random Fourier features of n - 1 and the constant `smoothing`."""

    def __init__(
        self,
        query_dimensions: int,
        n_dims: int | None = None,
        softmax_temp: float | None = None,
        orthogonal: bool = False,
        smoothing: float = 1.0,
        redraw: int = 1,
        deterministic_eval: bool = False,
    ) -> None:
        asked = (query_dimensions if n_dims is None else n_dims) - 1
        super().__init__(query_dimensions, asked, softmax_temp, orthogonal, redraw, deterministic_eval)
        self.smoothing = smoothing

    def forward(self, x: Tensor) -> Tensor:
        """Features [..., n]."""
        return torch.cat([super().forward(x), torch.full_like(x[..., :1], self.smoothing)], -1)


class Favor(RandomFourierFeatures):
    """exp(u - |x|^2 / 2 - ln(n) / 2) and exp(-u - ...): positive features of the softmax kernel, without a shift."""

    def __init__(
        self,
        query_dimensions: int,
        n_dims: int | None = None,
        softmax_temp: float | None = None,
        orthogonal: bool = True,
        stabilize: bool = False,
        redraw: int = 1,
        deterministic_eval: bool = False,
    ) -> None:
        super().__init__(query_dimensions, n_dims, softmax_temp, orthogonal, redraw, deterministic_eval)
        self.stabilize = stabilize

    def forward(self, x: Tensor) -> Tensor:
        """Features [..., n]."""
        x, u = self._projected(x)
        square = x.square().sum(-1, keepdim=True)
        offset = square * 0.5 + 0.5 * math.log(self.n_dims)
        if self.stabilize:
            offset = offset + square.max(1, keepdim=True).values
        return torch.cat([torch.exp(u - offset), torch.exp(-u - offset)], -1)


class GeneralizedRandomFeatures(RandomFourierFeatures):
    """f(x omega)."""

    def __init__(
        self,
        query_dimensions: int,
        n_dims: int | None = None,
        softmax_temp: float = 1.0,
        orthogonal: bool = True,
        kernel_fn: Callable[[Tensor], Tensor] = torch.relu,
        redraw: int = 1,
        deterministic_eval: bool = False,
    ) -> None:
        asked = 2 * (n_dims or query_dimensions)
        super().__init__(query_dimensions, asked, softmax_temp, orthogonal, redraw, deterministic_eval)
        self.kernel_fn = kernel_fn

    def forward(self, x: Tensor) -> Tensor:
        """Features [..., n]."""
        if self.softmax_temp != 1.0:
            x = x * math.sqrt(self.softmax_temp)
        return self.kernel_fn(x @ self.omega.to(x.dtype))

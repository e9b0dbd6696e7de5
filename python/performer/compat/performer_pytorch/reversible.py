# SPDX-License-Identifier: Apache-2.0
"""Layers one after the other: with residuals, or reversible."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.utils.checkpoint
from torch import Tensor, nn


class SequentialSequence(nn.Module):
    """Layers one after the other with residuals; keyword arguments go where `args_route` says."""

    def __init__(self, layers: nn.ModuleList, args_route: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.layers, self.args_route = layers, args_route or {}

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """[B, L, D] -> same."""
        for layer, (f_args, g_args) in zip(
            self.layers, _routed(self.args_route, kwargs, len(self.layers)), strict=True
        ):
            f, g = cast(nn.ModuleList, layer)
            x = x + f(x, **f_args)
            x = x + g(x, **g_args)
        return x


class Deterministic(nn.Module):
    """A branch of a reversible block."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """net(x)."""
        return cast(Tensor, self.net(x, **kwargs))


class ReversibleBlock(nn.Module):
    """Two branches over two streams."""

    def __init__(self, f: nn.Module, g: nn.Module) -> None:
        super().__init__()
        self.f, self.g = Deterministic(f), Deterministic(g)

    def forward(self, x1: Tensor, x2: Tensor, f_args: dict[str, Any], g_args: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Both streams moved on."""
        y1 = x1 + self.f(x2, **f_args)
        return y1, x2 + self.g(y1, **g_args)


class ReversibleSequence(nn.Module):
    """Reversible blocks; begins with both streams as x and ends with their sum.

    In training each block is recomputed in the backward pass, so that memory holds two tensors a block.
    """

    def __init__(self, blocks: nn.ModuleList, args_route: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.args_route = args_route or {}
        self.blocks = nn.ModuleList(ReversibleBlock(*cast(nn.ModuleList, pair)) for pair in blocks)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """[B, L, D] -> same."""
        first = second = x
        recompute = self.training and torch.is_grad_enabled()
        for block, (f_args, g_args) in zip(
            self.blocks, _routed(self.args_route, kwargs, len(self.blocks)), strict=True
        ):
            args = (first, second, f_args, g_args)
            if recompute:
                first, second = torch.utils.checkpoint.checkpoint(block, *args, use_reentrant=False)
            else:
                first, second = block(*args)
        return first + second


def _routed(route: dict[str, Any], kwargs: dict[str, Any], depth: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    routed: list[tuple[dict[str, Any], dict[str, Any]]] = [({}, {}) for _ in range(depth)]
    for name in kwargs:
        if name not in route:
            continue
        for (f_args, g_args), (to_f, to_g) in zip(routed, route[name], strict=True):
            if to_f:
                f_args[name] = kwargs[name]
            if to_g:
                g_args[name] = kwargs[name]
    return routed

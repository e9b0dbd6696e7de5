# SPDX-License-Identifier: Apache-2.0
"""Feature maps, and those that apply a function to each number."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

Factory = Callable[[int], "FeatureMap"]


class FeatureMap(nn.Module):
    """A map of queries and keys [..., D]."""

    def __init__(self, query_dims: int) -> None:
        super().__init__()
        self.query_dims = query_dims

    def new_feature_map(self, device: Any = None) -> None:
        """Called before each use of the map on a new batch."""

    def forward_queries(self, x: Tensor) -> Tensor:
        """Features of queries."""
        return cast(Tensor, self(x))

    def forward_keys(self, x: Tensor) -> Tensor:
        """Features of keys."""
        return cast(Tensor, self(x))

    @classmethod
    def factory(cls, *args: Any, **kwargs: Any) -> Factory:
        """A function of the head size that makes the map."""
        return functools.partial(_make, cls, args, kwargs)


def _make(cls: type[FeatureMap], args: tuple[Any, ...], kwargs: dict[str, Any], query_dims: int) -> FeatureMap:
    return cls(query_dims, *args, **kwargs)


class ActivationFunctionFeatureMap(FeatureMap):
    """f(x)."""

    def __init__(self, query_dims: int, activation_function: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__(query_dims)
        self.activation_function = activation_function

    def forward(self, x: Tensor) -> Tensor:
        """Features [..., D]."""
        return self.activation_function(x)


def _elu1(x: Tensor) -> Tensor:
    return F.elu(x) + 1


elu_feature_map: Factory = ActivationFunctionFeatureMap.factory(_elu1)

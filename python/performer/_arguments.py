# SPDX-License-Identifier: Apache-2.0
"""What the attention functions do with their arguments before the operators see them."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from performer.features import FeatureMap, MapWeights, default_projection, feature_map_names

Layout = Literal["bhtd", "bthd"]
Features = str | int | FeatureMap

NO_WEIGHTS = MapWeights()
NO_STATISTICS = (None, None, None, None)
NO_STATE = (None, None, None)
_NAMED = {name: FeatureMap(name) for name in ["softmax", *feature_map_names()]}


def feature_map(features: Features) -> FeatureMap:
    """The description that an argument `features` stands for: a name, a number of softmax features, or itself."""
    if isinstance(features, FeatureMap):
        return features
    if isinstance(features, int):
        return FeatureMap(features=features)
    return _NAMED[features] if features in _NAMED else FeatureMap(features)


def check_layout(layout: str) -> None:
    if layout not in ("bhtd", "bthd"):
        raise ValueError(f"layout must be 'bhtd' or 'bthd', not {layout!r}")


def autocast(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Under torch.autocast inputs take its type, as those of matrix products do; float64 stays."""
    kind = query.device.type
    if torch.is_autocast_enabled(kind) and query.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
        return query.to(dtype), key.to(dtype), value.to(dtype)
    return query, key, value


def cpu_bounds(bounds: Tensor | None) -> Tensor | None:
    return None if bounds is None else bounds.to("cpu", torch.int64)


def repeated(tensor: Tensor, heads: int, name: str, place: int) -> Tensor:
    """Grouped heads: G of them in dimension `place`, a divisor of `heads`, each repeated so that there are `heads`."""
    if heads % tensor.shape[place] != 0:
        raise ValueError(
            f"{name} has {tensor.shape[place]} heads for {heads} query heads; expected as many, or a divisor of them"
        )
    return tensor.repeat_interleave(heads // tensor.shape[place], place)


def weights_of(
    described: FeatureMap, weights: MapWeights | None, heads: int, head_size: int, seed: int, device: torch.device
) -> MapWeights:
    if not described.default_drawn:
        return weights or NO_WEIGHTS
    if weights is None:
        return MapWeights(default_projection(described, heads, head_size, seed, device))
    if weights.projection is not None:
        return weights
    return weights._replace(projection=default_projection(described, heads, head_size, seed, device))


def scaled(query: Tensor, described: FeatureMap, scale: float | None) -> Tensor:
    """Maps of softmax estimate exp(q . k / sqrt(D)); another scale goes to the queries."""
    if scale is None:
        return query
    if not described.traits.exponential:
        raise ValueError(
            f"scale has a meaning for maps that estimate softmax attention, not for {described.map}; scale the "
            "queries and keys yourself"
        )
    factor = scale * math.sqrt(query.shape[-1])
    return query if factor == 1 else query * factor

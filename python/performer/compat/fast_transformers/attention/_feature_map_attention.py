# SPDX-License-Identifier: Apache-2.0
"""What linear attentions share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from performer.compat.fast_transformers.events import EventDispatcher
from performer.compat.fast_transformers.feature_maps import FeatureMap, elu_feature_map
from performer.compat.fast_transformers.masking import BaseMask


class FeatureMapAttention(nn.Module):
    """A feature map of queries and keys, and a denominator with `eps` added."""

    def __init__(
        self, query_dimensions: int, feature_map: Any = None, eps: float = 1e-6, event_dispatcher: Any = ""
    ) -> None:
        super().__init__()
        self.feature_map: FeatureMap = (feature_map or elu_feature_map)(query_dimensions)
        self.eps = eps
        self.event_dispatcher = EventDispatcher.get(event_dispatcher)

    def _features(self, queries: Tensor, keys: Tensor, key_lengths: BaseMask | None) -> tuple[Tensor, Tensor]:
        """[N, H, L, M] and [N, H, S, M]."""
        self.feature_map.new_feature_map(queries.device)
        q = self.feature_map.forward_queries(queries)
        k = self.feature_map.forward_keys(keys)
        if key_lengths is not None:
            k = k * key_lengths.float_matrix[:, :, None, None].to(k.dtype)
        return q.transpose(1, 2), k.transpose(1, 2)

    def _normalized(self, numerator: Tensor, denominator: Tensor, dtype: torch.dtype) -> Tensor:
        return (numerator / (denominator + self.eps)).transpose(1, 2).to(dtype).contiguous()

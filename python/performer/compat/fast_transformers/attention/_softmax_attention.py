# SPDX-License-Identifier: Apache-2.0
"""What exact attentions share."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from performer.compat.fast_transformers.events import EventDispatcher


class SoftmaxAttention(nn.Module):
    """Softmax of scores times `softmax_temp`, by default 1 / sqrt(D), with dropout of the weights."""

    def __init__(
        self, softmax_temp: float | None = None, attention_dropout: float = 0.1, event_dispatcher: Any = ""
    ) -> None:
        super().__init__()
        self.softmax_temp = softmax_temp
        self.dropout = nn.Dropout(attention_dropout)
        self.event_dispatcher = EventDispatcher.get(event_dispatcher)

    def _temperature(self, queries: Tensor) -> float:
        return self.softmax_temp or 1 / math.sqrt(queries.shape[-1])

# SPDX-License-Identifier: Apache-2.0
"""One query to a memory."""

from performer.compat.fast_transformers.recurrent.attention.cross_attention.attention_layer import (
    RecurrentCrossAttentionLayer,
)
from performer.compat.fast_transformers.recurrent.attention.cross_attention.full_attention import (
    RecurrentCrossFullAttention,
)
from performer.compat.fast_transformers.recurrent.attention.cross_attention.linear_attention import (
    RecurrentCrossLinearAttention,
)

__all__ = ["RecurrentCrossAttentionLayer", "RecurrentCrossFullAttention", "RecurrentCrossLinearAttention"]

# SPDX-License-Identifier: Apache-2.0
"""Recurrent attentions: one more token of causal attention, or one query to a memory."""

from performer.compat.fast_transformers.recurrent.attention.cross_attention import (
    RecurrentCrossAttentionLayer,
    RecurrentCrossFullAttention,
    RecurrentCrossLinearAttention,
)
from performer.compat.fast_transformers.recurrent.attention.self_attention import (
    RecurrentAttentionLayer,
    RecurrentFullAttention,
    RecurrentLinearAttention,
)

__all__ = [
    "RecurrentAttentionLayer",
    "RecurrentCrossAttentionLayer",
    "RecurrentCrossFullAttention",
    "RecurrentCrossLinearAttention",
    "RecurrentFullAttention",
    "RecurrentLinearAttention",
]

# SPDX-License-Identifier: Apache-2.0
"""Recurrent attentions: one more token of causal linear attention, or one query to a memory."""

from performer.compat.fast_transformers.attention import (
    RecurrentAttentionLayer,
    RecurrentCrossAttentionLayer,
    RecurrentCrossLinearAttention,
    RecurrentLinearAttention,
)

__all__ = [
    "RecurrentAttentionLayer",
    "RecurrentCrossAttentionLayer",
    "RecurrentCrossLinearAttention",
    "RecurrentLinearAttention",
]

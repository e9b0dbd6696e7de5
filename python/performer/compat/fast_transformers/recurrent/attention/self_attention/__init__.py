# SPDX-License-Identifier: Apache-2.0
"""One more token of causal attention."""

from performer.compat.fast_transformers.recurrent.attention.self_attention.attention_layer import (
    RecurrentAttentionLayer,
)
from performer.compat.fast_transformers.recurrent.attention.self_attention.full_attention import RecurrentFullAttention
from performer.compat.fast_transformers.recurrent.attention.self_attention.linear_attention import (
    RecurrentLinearAttention,
)

__all__ = ["RecurrentAttentionLayer", "RecurrentFullAttention", "RecurrentLinearAttention"]

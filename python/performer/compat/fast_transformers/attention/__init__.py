# SPDX-License-Identifier: Apache-2.0
"""Attentions: queries [N, L, H, D], keys [N, S, H, D], values [N, S, H, E] -> [N, L, H, E]."""

from performer.compat.fast_transformers.attention.attention_layer import AttentionLayer
from performer.compat.fast_transformers.attention.causal_linear_attention import CausalLinearAttention
from performer.compat.fast_transformers.attention.conditional_full_attention import ConditionalFullAttention
from performer.compat.fast_transformers.attention.exact_topk_attention import ExactTopKAttention
from performer.compat.fast_transformers.attention.full_attention import FullAttention
from performer.compat.fast_transformers.attention.linear_attention import LinearAttention
from performer.compat.fast_transformers.attention.local_attention import LocalAttention
from performer.compat.fast_transformers.attention.refused import (
    ClusteredAttention,
    ImprovedClusteredAttention,
    ImprovedClusteredCausalAttention,
    ReformerAttention,
)

__all__ = [
    "AttentionLayer",
    "CausalLinearAttention",
    "ClusteredAttention",
    "ConditionalFullAttention",
    "ExactTopKAttention",
    "FullAttention",
    "ImprovedClusteredAttention",
    "ImprovedClusteredCausalAttention",
    "LinearAttention",
    "LocalAttention",
    "ReformerAttention",
]

# SPDX-License-Identifier: Apache-2.0
"""Which attentions the builders know, and what values their parameters take."""

from performer.compat.fast_transformers.attention_registry.registry import (
    AttentionRegistry,
    RecurrentAttentionRegistry,
    RecurrentCrossAttentionRegistry,
    Registry,
)
from performer.compat.fast_transformers.attention_registry.spec import (
    Bool,
    Callable,
    Choice,
    EventDispatcherInstance,
    Float,
    Int,
    Optional,
    Spec,
)

__all__ = [
    "AttentionRegistry",
    "Bool",
    "Callable",
    "Choice",
    "EventDispatcherInstance",
    "Float",
    "Int",
    "Optional",
    "RecurrentAttentionRegistry",
    "RecurrentCrossAttentionRegistry",
    "Registry",
    "Spec",
]

# SPDX-License-Identifier: Apache-2.0
"""Parameters that several attentions have in the builders."""

from performer.compat.fast_transformers.attention_registry.spec import (
    Bool,
    Callable,
    EventDispatcherInstance,
    Float,
    Int,
    Optional,
    Spec,
)

_EVENTS: list[tuple[str, Spec]] = [("event_dispatcher", Optional(EventDispatcherInstance, ""))]
LINEAR: list[tuple[str, Spec]] = [
    ("query_dimensions", Int),
    ("feature_map", Optional(Callable)),
    ("eps", Optional(Float, 1e-6)),
    *_EVENTS,
]
SOFTMAX: list[tuple[str, Spec]] = [
    ("softmax_temp", Optional(Float)),
    ("attention_dropout", Optional(Float, 0.1)),
    *_EVENTS,
]
CLUSTERED: list[tuple[str, Spec]] = [
    ("clusters", Int),
    ("iterations", Optional(Int, 10)),
    ("bits", Optional(Int, 63)),
    ("hash_bias", Optional(Bool, True)),
    *SOFTMAX,
]
REFORMER: list[tuple[str, Spec]] = [
    ("chunk_size", Optional(Int, 32)),
    ("bits", Optional(Int, 63)),
    ("rounds", Optional(Int, 4)),
    ("masked", Optional(Bool, False)),
    *SOFTMAX,
]

# SPDX-License-Identifier: Apache-2.0
"""What layers report. Classes of events combine to filters: AttentionEvent & from_layer(layer)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from performer.compat.fast_transformers.events.filters import EventFilter


class _EventClass(type):
    """The class of events: `&`, `|` and `~` of it are filters."""

    def __and__(cls, other: Any) -> Any:
        return _filter_of(cls) & other

    def __rand__(cls, other: Any) -> Any:
        return other & _filter_of(cls)

    def __or__(cls, other: Any) -> Any:
        return _filter_of(cls) | other

    def __ror__(cls, other: Any) -> Any:
        return other | _filter_of(cls)

    def __invert__(cls) -> Any:
        return ~_filter_of(cls)


def _filter_of(kind: type) -> EventFilter:
    from performer.compat.fast_transformers.events.filters import event_class

    return event_class(kind)


class Event(metaclass=_EventClass):
    """Something that `source` has computed."""

    def __init__(self, source: nn.Module | None) -> None:
        self.source = source


class AttentionEvent(Event):
    """Weights of exact attention [N, H, L, S], after dropout; [N, H, S] or [N, S, H] in recurrent layers."""

    def __init__(self, source: nn.Module, attention_matrix: Tensor) -> None:
        super().__init__(source)
        self.attention_matrix = attention_matrix


class QKVEvent(Event):
    """Projected queries [N, L, H, D], keys [N, S, H, D] and values [N, S, H, E] of an AttentionLayer."""

    def __init__(self, source: nn.Module, queries: Tensor, keys: Tensor, values: Tensor) -> None:
        super().__init__(source)
        self.queries, self.keys, self.values = queries, keys, values

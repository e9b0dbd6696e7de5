# SPDX-License-Identifier: Apache-2.0
"""Who listens to events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from performer.compat.fast_transformers.events.event import Event
from performer.compat.fast_transformers.events.filters import as_filter


class EventDispatcher:
    """Hands events to those who listen.

    dispatcher.listen(AttentionEvent & layer_name_contains(model, "layers.1"), print)
    """

    _shared: ClassVar[dict[str, EventDispatcher]] = {}

    def __init__(self) -> None:
        self._listeners: dict[Callable[[Any], Any], Callable[[Event], bool]] = {}

    def listen(self, event_filter: Any, event_handler: Callable[[Any], Any]) -> None:
        """Calls `event_handler` with each event that the filter, a class of events or a function, lets through."""
        self._listeners[event_handler] = as_filter(event_filter)

    def remove(self, event_handler: Callable[[Any], Any]) -> None:
        """The handler gets no more events."""
        self._listeners.pop(event_handler, None)

    def clear(self) -> None:
        """Nobody listens any more."""
        self._listeners.clear()

    def dispatch(self, event: Event) -> None:
        """Hands `event` to those whose filter lets it through, in the order in which they began to listen."""
        for handler, wanted in list(self._listeners.items()):
            if wanted(event):
                handler(event)

    @classmethod
    def get(cls, key: str | EventDispatcher = "") -> EventDispatcher:
        """The dispatcher of that name, shared by all who ask for it; a dispatcher is returned as it is."""
        return key if isinstance(key, EventDispatcher) else cls._shared.setdefault(key, cls())

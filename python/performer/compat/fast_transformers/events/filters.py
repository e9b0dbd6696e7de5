# SPDX-License-Identifier: Apache-2.0
"""Filters of events: functions of an event that can be combined by &, | and ~."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from performer.compat.fast_transformers.events.event import Event


class EventFilter:
    """A filter; subclasses say by __call__ whether an event passes."""

    def __call__(self, event: Event) -> bool:
        """Whether the event passes."""
        raise NotImplementedError

    def __and__(self, other: Any) -> EventFilter:
        return _both(self, as_filter(other))

    def __rand__(self, other: Any) -> EventFilter:
        return _both(as_filter(other), self)

    def __or__(self, other: Any) -> EventFilter:
        return _either(self, as_filter(other))

    def __ror__(self, other: Any) -> EventFilter:
        return _either(as_filter(other), self)

    def __invert__(self) -> EventFilter:
        return CallableEventFilter(lambda event: not self(event))


class CallableEventFilter(EventFilter):
    """A function as a filter."""

    def __init__(self, event_filter: Callable[[Any], Any]) -> None:
        self._passes = event_filter

    def __call__(self, event: Event) -> bool:
        """Whether the function says so."""
        return bool(self._passes(event))


class LayerNameEventFilter(EventFilter):
    """Events of those modules within `root` whose name `name_filter` accepts; modules are known by identity."""

    def __init__(self, root: nn.Module, name_filter: Callable[[str], bool]) -> None:
        self._root, self._accepts = root, name_filter

    def __call__(self, event: Event) -> bool:
        """Whether the name of the event's source is accepted."""
        return any(module is event.source and self._accepts(name) for name, module in self._root.named_modules())


def _both(first: EventFilter, second: EventFilter) -> EventFilter:
    return CallableEventFilter(lambda event: first(event) and second(event))


def _either(first: EventFilter, second: EventFilter) -> EventFilter:
    return CallableEventFilter(lambda event: first(event) or second(event))


def as_filter(given: Any) -> EventFilter:
    """A filter, a class of events or a function as a filter; raises TypeError for anything else."""
    if isinstance(given, EventFilter):
        return given
    if isinstance(given, type) and issubclass(given, Event):
        return event_class(given)
    if not callable(given):
        raise TypeError(f"a filter of events must be a class of events or a function of an event, found {given!r}")
    return CallableEventFilter(given)


def event_class(klass: type) -> EventFilter:
    """Events of a class."""
    return CallableEventFilter(lambda event: isinstance(event, klass))


def from_layer(layer: Any) -> EventFilter:
    """Events of one module."""
    return CallableEventFilter(lambda event: event.source is layer)


def layer_name_contains(root: nn.Module, name: str) -> EventFilter:
    """Events of modules within `root` whose name, such as layers.2.attention, contains `name`."""
    return LayerNameEventFilter(root, lambda found: name in found)

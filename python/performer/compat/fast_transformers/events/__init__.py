# SPDX-License-Identifier: Apache-2.0
"""Events: attention matrices, queries, keys and values as layers compute them."""

from performer.compat.fast_transformers.events.event import AttentionEvent, Event, QKVEvent
from performer.compat.fast_transformers.events.event_dispatcher import EventDispatcher

__all__ = ["AttentionEvent", "Event", "EventDispatcher", "QKVEvent"]

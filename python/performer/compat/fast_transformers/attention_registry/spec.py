# SPDX-License-Identifier: Apache-2.0
"""Types of parameters: each turns a value into the one that is used, or raises ValueError."""

from __future__ import annotations

import collections.abc
from typing import Any

from performer.compat.fast_transformers.events import EventDispatcher


class Spec:
    """A type whose function `predicate` returns the value that is used, or raises ValueError."""

    def __init__(self, predicate: collections.abc.Callable[[Any], Any], name: str = "CustomSpec") -> None:
        self._predicate, self._name = predicate, name

    def __repr__(self) -> str:
        return self._name

    def get(self, x: Any) -> Any:
        """The value that is used for x."""
        return self._predicate(x)

    def check(self, x: Any) -> bool:
        """Whether x is of the type."""
        try:
            self.get(x)
        except ValueError:
            return False
        return True


class Choice(Spec):
    """One of several values."""

    def __init__(self, choices: collections.abc.Collection[Any]) -> None:
        super().__init__(self._chosen, f"Choice({choices!r})")
        self._choices = choices

    def _chosen(self, x: Any) -> Any:
        if x not in self._choices:
            raise ValueError(f"{x!r} is not in {self._choices!r}")
        return x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Choice) and self._choices == other._choices

    __hash__ = None  # type: ignore[assignment]


class Optional(Spec):
    """A value of another type, or None, which stands for `default`."""

    def __init__(self, spec: Spec, default: Any = None) -> None:
        super().__init__(lambda x: default if x is None else spec.get(x), f"Optional[{spec!r}, {default!r}]")
        self._parts = (spec, default)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Optional) and self._parts == other._parts

    __hash__ = None  # type: ignore[assignment]


def _callable(x: Any) -> Any:
    if not callable(x):
        raise ValueError(f"{x!r} is not a callable")
    return x


def _dispatcher(x: Any) -> Any:
    if not isinstance(x, (str, EventDispatcher)):
        raise ValueError(f"{x!r} is not an event dispatcher")
    return x


Int = Spec(int, "Int")
Float = Spec(float, "Float")
Bool = Spec(bool, "Bool")
Callable = Spec(_callable, "Callable")
EventDispatcherInstance = Spec(_dispatcher, "EventDispatcherInstance")
